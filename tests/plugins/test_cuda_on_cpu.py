"""The CUDA kernels themselves, compiled with g++ and run on a CPU (cuda_on_cpu): the reference's bits, with
no GPU and no nvcc. Every CUDA thread is a fiber; seeds decide which one goes on at barriers and atomics."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tfiseg.plugins.native import ResultStruct, cluster_native, problem_struct
from tfiseg.plugins.problem import problem_of
from tfiseg.plugins.reference_views import cut_views_reference, place_pieces_reference

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "plugins" / "csrc"


@pytest.fixture(scope="session")
def kernels(compile_cpp, tmp_path_factory) -> Path:
    """cluster_cuda.cu and cuda_runner.cu for a CPU; loops take a second block from 2,048 pixels on."""
    flags = (
        "-O1",
        "-fPIC",
        "-shared",
        "-fno-strict-aliasing",  # atomics see uint64_t as unsigned long long
        "-DTFISEG_WITH_CUDA",
        "-DTFISEG_PIXELS_PER_BLOCK=1024",
        "-I" + str(HERE / "cuda_on_cpu" / "include"),
        "-xc++",
    )
    sources = [HERE / "cuda_runner.cu", HERE / "cuda_on_cpu" / "fibers.cpp"]
    sources += [CSRC / name for name in ("api.cpp", "cluster_cpu.cpp", "fit_cpu.cpp", "views_cpu.cpp")]
    return compile_cpp(tmp_path_factory.mktemp("cuda_on_cpu") / "kernels.so", *sources, flags=flags)


@pytest.fixture
def configure(kernels) -> Callable[..., None]:
    """configure(seed, yield_every=0, converges=True, processors=132): how the next kernels run."""
    library = ctypes.CDLL(str(kernels))

    def set_to(seed: int, yield_every: int = 0, converges: bool = True, processors: int = 132) -> None:
        library.cuda_on_cpu_configure(
            ctypes.c_uint(seed), ctypes.c_uint(yield_every), int(converges), processors
        )

    yield set_to
    set_to(1)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({}, id="warps converge"),
        pytest.param({"converges": False}, id="warps diverge"),
        pytest.param({"yield_every": 7}, id="atomics interleave"),
        pytest.param({"yield_every": 3, "processors": 2}, id="few processors"),
    ],
)
def test_random_problems(way, random_problem, kernels, by_phases, configure, assert_same):
    run = by_phases(kernels)
    for seed in range(10):
        problem = random_problem(seed)
        expected = cluster_native(problem)
        configure(seed, **way)
        assert_same(run(problem, seed=seed, half=seed % 2 == 1), expected)


def test_several_blocks_meet_at_grid_barriers(kernels, by_phases, configure, assert_same):
    class_map = (np.random.default_rng(0).random((64, 64)) < 0.7).astype(np.uint8)
    problem = problem_of(class_map)
    configure(3, yield_every=11)
    assert_same(by_phases(kernels)(problem), cluster_native(problem))


def test_views(random_look, kernels, views_by_phases, configure):
    cut_views, place_pieces = views_by_phases(kernels)
    for seed in range(3):
        scene, count, side, parts_of = random_look(seed)
        side = min(side, 31)
        expected = cut_views_reference(scene, count, side)
        configure(seed)
        got = cut_views(scene, count, side)
        found = parts_of(expected)
        pieces = place_pieces(scene, expected, found, 2)
        for mine, theirs in ((got, expected), (pieces, place_pieces_reference(scene, expected, found, 2))):
            for name in theirs.__dataclass_fields__:
                assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


def test_a_captured_graph_gives_the_same_each_time(kernels):
    library = ctypes.CDLL(str(kernels))
    class_map = (np.random.default_rng(2).random((12, 14)) < 0.8).astype(np.uint8)
    problem = problem_of(class_map, max_instances=50)
    n, (h, w) = problem.batch, problem.out_hw
    out = {"label_map": np.zeros((n, h, w), np.int32), "count": np.zeros(n, np.int32)}
    out["table"] = np.zeros((n, problem.settings.max_instances, 10), np.float32)
    given = problem_struct(problem)
    result = ResultStruct(ctypes.sizeof(ResultStruct), **{name: a.ctypes.data for name, a in out.items()})
    median_us, grown_bytes = ctypes.c_double(), ctypes.c_int64()
    arguments = (
        ctypes.byref(given),
        ctypes.byref(result),
        10,
        ctypes.byref(median_us),
        ctypes.byref(grown_bytes),
    )
    assert library.replay_in_graph(*arguments) == 0
    assert grown_bytes.value == 0
    expected = cluster_native(problem)
    assert np.array_equal(out["label_map"], expected.label_map)
    assert np.array_equal(out["count"], expected.count)
