"""The CUDA kernels, compiled with g++ and run on a CPU (cuda_on_cpu), equal the reference bit for bit.

Every CUDA thread is a fiber; a seed decides which one continues at barriers and atomics.
"""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from field_equality import assert_fields_equal
from mask_view_phases import render_by_phases
from tfiseg import MissingDependencyError
from tfiseg.plugins.mask_refinement import MaskRefinementCall
from tfiseg.plugins.native import ResultStruct, cluster_native, fit_frame, problem_struct
from tfiseg.plugins.plugin_build import find_tensorrt_headers
from tfiseg.plugins.problem import problem_of
from tfiseg.plugins.reference_mask_refinement import refine_masks_reference
from tfiseg.plugins.reference_views import (
    place_instances_reference,
    render_mask_views_reference,
    render_views_reference,
)

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "plugins" / "csrc"


# lambdas of the phases must not be shared with the CPU's library, which calls real atomics in them
SHARED = ("-fPIC", "-shared", "-fvisibility-inlines-hidden")
EMULATED = (
    "-O1",
    "-fno-strict-aliasing",  # CUDA declares 64-bit atomics for unsigned long long
    "-DTFISEG_WITH_CUDA",
    "-DTFISEG_SMALL_PIXELS=1500",  # each branch is used by half of the random problems
    "-DTFISEG_SOLO_ITEMS=40",
    "-DTFISEG_THREADS=64",
    "-I" + str(HERE / "cuda_on_cpu" / "include"),
)


@pytest.fixture(scope="session")
def emulate(compile_cpp, operator_objects, tmp_path_factory) -> Callable[..., Path]:
    """emulate(name, *sources, flags=()): compile CUDA sources to a CPU library."""
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    flags = ("-O1", "-DTFISEG_WITH_CUDA", *SHARED)
    cpu = compile_cpp(folder / "cpu.so", CSRC / "api.cpp", flags=flags, libraries=map(str, operator_objects))

    def emulated(name: str, *sources: Path, flags: tuple[str, ...] = ()) -> Path:
        more = (*EMULATED, *SHARED, *flags, f"-Wl,-rpath,{folder}", "-xc++")
        emulation = (HERE / "cuda_on_cpu").glob("*.cpp")
        return compile_cpp(folder / name, *sources, *emulation, flags=more, libraries=(str(cpu),))

    return emulated


@pytest.fixture(scope="session")
def kernels(emulate) -> Path:
    """Return the library of cluster_cuda.cu and cuda_runner.cu for a CPU."""
    return emulate("kernels.so", HERE / "cuda_runner.cu")


@pytest.fixture
def configure(kernels) -> Callable[..., None]:
    """configure(seed, yield_every=0, converges=True, processors=132): set how the next kernels run."""
    library = ctypes.CDLL(str(kernels))

    def set_to(seed: int, yield_every: int = 0, converges: bool = True, processors: int = 132) -> None:
        library.cuda_on_cpu_configure(
            ctypes.c_uint(seed), ctypes.c_uint(yield_every), int(converges), processors
        )

    yield set_to
    set_to(1)


WAYS = [
    pytest.param({}, id="warps converge"),
    pytest.param({"converges": False}, id="warps diverge"),
    pytest.param({"yield_every": 7}, id="atomics interleave"),
    pytest.param({"yield_every": 3, "processors": 2}, id="few processors"),
]


@pytest.mark.parametrize("way", WAYS)
def test_random_problems(way, random_problem, kernels, by_phases, configure, assert_same):
    run = by_phases(kernels)
    first = 50 * [p.values[0] for p in WAYS].index(way)
    for seed in range(first, first + 50):
        problem = random_problem(seed)
        expected = cluster_native(problem)
        configure(seed, **way)
        assert_same(run(problem, seed=seed, half=seed % 2 == 1), expected)


def test_boundaries_out_of_range_terminate(random_problem, kernels, by_phases, configure, assert_same):
    """Spreading over negative costs does not terminate, for example with seeds 117 and 143."""
    run, count = by_phases(kernels), 0
    for seed in (117, 143, *range(160)):
        problem = random_problem(seed)
        if problem.boundary is None or (problem.settings.part_rule is None and count > 4):
            continue
        rng = np.random.default_rng(seed)
        problem.boundary[:] = rng.uniform(-3, 3, problem.boundary.shape)
        problem.boundary[rng.random(problem.boundary.shape) < 0.05] = np.nan
        configure(seed)
        assert_same(run(problem, seed=seed), cluster_native(problem))
        count += 1
    assert count > 8


def test_fuzz(kernels, compile_cpp, tmp_path):
    """Run the problems, views and frames of fuzz.cpp with the kernels."""
    libraries = (str(kernels), str(kernels.parent / "cpu.so"), f"-Wl,-rpath,{kernels.parent}")
    program = compile_cpp(tmp_path / "fuzz", HERE / "fuzz.cpp", libraries=libraries)
    done = subprocess.run([program, "30"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(40))
def test_one_problem_in_many_interleavings(seed, random_problem, kernels, by_phases, configure, assert_same):
    problem = random_problem(13)  # logits, affinities, a boundary, a second pass
    configure(seed, yield_every=2 + seed % 9, converges=bool(seed % 2), processors=1 + seed % 5)
    assert_same(by_phases(kernels)(problem, seed=seed), cluster_native(problem))


def launches_of(kernels: Path, work: Callable[[], object]) -> int:
    library = ctypes.CDLL(str(kernels))
    library.cuda_on_cpu_launches.restype = ctypes.c_int64
    before = library.cuda_on_cpu_launches()
    work()
    return library.cuda_on_cpu_launches() - before


def test_launches(random_problem, kernels, by_phases, configure):
    """Launches do not depend on the size, beyond the limit for small grids (1,500 pixels in these tests)."""
    run = by_phases(kernels)
    configure(0)
    for side, most in ((30, 3), (64, 5)):
        rng = np.random.default_rng(side)
        plain = problem_of((rng.random((side, side)) < 0.8).astype(np.uint8))
        assert launches_of(kernels, lambda p=plain: run(p)) <= most
    longest = 0
    for seed in range(40):
        problem = random_problem(seed)
        longest = max(longest, launches_of(kernels, lambda p=problem: run(p)))
    assert longest <= 13  # boundary enlarged, cuts moved, second pass


def test_launches_of_views(random_views_case, kernels, views_by_phases, configure):
    render_views, place_instances = views_by_phases(kernels)
    scene, count, side, parts_of = random_views_case(0)
    configure(0)
    expected = render_views_reference(scene, count, min(side, 31))
    found = parts_of(expected)
    assert launches_of(kernels, lambda: render_views(scene, count, min(side, 31))) == 2
    assert launches_of(kernels, lambda: place_instances(scene, expected, found, 2)) == 1


def test_several_blocks_synchronize_at_grid_barriers(kernels, by_phases, configure, assert_same):
    class_map = (np.random.default_rng(0).random((64, 64)) < 0.7).astype(np.uint8)
    problem = problem_of(class_map)
    configure(3, yield_every=11)
    assert_same(by_phases(kernels)(problem), cluster_native(problem))


def test_views(random_views_case, kernels, views_by_phases, configure):
    render_views, place_instances = views_by_phases(kernels)
    for seed in range(3):
        scene, count, side, parts_of = random_views_case(seed)
        side = min(side, 31)
        expected = render_views_reference(scene, count, side)
        configure(seed)
        got = render_views(scene, count, side)
        found = parts_of(expected)
        placed = place_instances(scene, expected, found, 2)
        assert_fields_equal(got, expected)
        assert_fields_equal(placed, place_instances_reference(scene, expected, found, 2))


def mask_views_case(random_views_case, seed: int) -> tuple:
    """Return arguments of ``render_mask_views``, small because the emulation is slow."""
    scene, count, side, _ = random_views_case(seed)
    known = render_views_reference(scene, count, 31).views
    return scene, known, 31, count, min(side, 31)


def test_mask_views(random_views_case, kernels, configure):
    for seed in range(4):
        arguments = mask_views_case(random_views_case, seed)
        configure(seed)
        assert_fields_equal(render_by_phases(kernels, *arguments), render_mask_views_reference(*arguments))


def relabel(kernels: Path, label_map: np.ndarray, numbers: np.ndarray, classes: np.ndarray) -> list:
    found, class_map = np.full(label_map.shape, -1, np.int32), np.full(label_map.shape, 99, np.uint8)
    places = [ctypes.c_void_p(a.ctypes.data) for a in (label_map, numbers, classes, found, class_map)]
    library = ctypes.CDLL(str(kernels))
    assert (
        library.relabel_by_phases(places[0], *label_map.shape, *places[1:3], len(numbers), *places[3:]) == 0
    )
    return [found, class_map]


def test_replaced_labels(kernels, configure):
    configure(0)
    rng = np.random.default_rng(0)
    label_map = rng.integers(-1, 8, (37, 41)).astype(np.int32)
    numbers = np.array([5, 1, 0, 2, 2, 3], np.int32)
    classes = np.array([9, 4, 5, 6, 6, 7], np.uint8)
    given = np.where((label_map > 0) & (label_map < 6), label_map, 0)
    expected = np.where(given, numbers[given], 0)
    found, class_map = relabel(kernels, label_map, numbers, classes)
    assert np.array_equal(found, expected)
    assert np.array_equal(class_map, np.where(expected, classes[given], 0))


def test_launches_before_mask_refinement(random_views_case, kernels, configure):
    """With the components (at most 5) and mask refinement (1), the second graph has at most 9."""
    configure(0)
    arguments = mask_views_case(random_views_case, 1)
    one = np.ones(2, np.int32)
    assert launches_of(kernels, lambda: render_by_phases(kernels, *arguments)) == 2
    assert launches_of(kernels, lambda: relabel(kernels, one[:1, None], one, one.astype(np.uint8))) == 1


def fit_on_device(kernels: Path, frame: np.ndarray, size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Fit a frame; the last two bits of the seed are the bytes between a multiple of 256 and the frame."""
    fitted = np.full((3, *size_hw), -1, np.float32)
    places = ctypes.c_void_p(frame.ctypes.data), ctypes.c_void_p(fitted.ctypes.data)
    library = ctypes.CDLL(str(kernels))
    assert (
        library.fit_by_phases(places[0], *frame.shape[:2], places[1], *size_hw, ctypes.c_uint(seed), 1) == 0
    )
    return fitted


FIT_SIZES = [
    pytest.param((1, 1), (1, 1), id="one pixel"),
    pytest.param((1, 1), (3, 40), id="one pixel enlarged"),
    pytest.param((5, 7), (1, 1), id="to one pixel"),
    pytest.param((9, 16), (9, 16), id="same size"),
    pytest.param((6, 8), (13, 300), id="enlarged, several tiles in a row"),
    pytest.param((12, 960), (4, 320), id="a third, several tiles in a row"),
    pytest.param((12, 1024), (6, 256), id="a quarter"),
    pytest.param((3, 2304), (2, 300), id="tiles of fewer columns"),
    pytest.param((2, 32767), (2, 33), id="too wide for shared memory"),
    pytest.param((1, 32767), (1, 1), id="the widest row to one pixel"),
    pytest.param((2000, 1), (37, 1), id="one column"),
]


@pytest.mark.parametrize(("frame_hw", "size_hw"), FIT_SIZES)
def test_fitted_frames(frame_hw, size_hw, kernels, configure):
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), np.uint8)
    expected = fit_frame(frame, size_hw)
    for seed in range(4):
        configure(seed)
        assert np.array_equal(fit_on_device(kernels, frame, size_hw, seed), expected)


def test_fitted_frames_of_random_sizes(kernels, configure):
    rng = np.random.default_rng(1)
    for seed in range(100):
        h, w, rows, columns = map(int, rng.integers(1, 50, 4))
        frame = rng.integers(0, 256, (h, w, 3), np.uint8)
        configure(seed)
        assert np.array_equal(
            fit_on_device(kernels, frame, (rows, columns), seed), fit_frame(frame, (rows, columns))
        )


def test_fitting_a_frame_is_one_launch(kernels, configure):
    configure(0)
    frame = np.zeros((48, 64, 3), np.uint8)
    assert launches_of(kernels, lambda: fit_on_device(kernels, frame, (24, 32))) == 1


def test_fitting_in_a_captured_graph(kernels, configure):
    configure(0)
    frame = np.random.default_rng(2).integers(0, 256, (30, 44, 3), np.uint8)
    fitted, median_us = np.zeros((3, 8, 12), np.float32), ctypes.c_double()
    places = ctypes.c_void_p(frame.ctypes.data), ctypes.c_void_p(fitted.ctypes.data)
    library = ctypes.CDLL(str(kernels))
    assert library.replay_fit_in_graph(places[0], 30, 44, places[1], 8, 12, 10, ctypes.byref(median_us)) == 0
    assert np.array_equal(fitted, fit_frame(frame, (8, 12)))


@pytest.mark.parametrize(
    ("sides", "missing", "status"),
    [
        ((0, 4, 2, 2), None, 2),
        ((4, -1, 2, 2), None, 2),
        ((4, 4, 0, 2), None, 2),
        ((4, 4, 2, 32768), None, 2),
        ((32768, 4, 2, 2), None, 2),
        ((4, 4, 2, 2), 0, 3),
        ((4, 4, 2, 2), 1, 3),
    ],
)
def test_fit_arguments_out_of_range_are_refused(sides, missing, status, kernels):
    given, out = np.full(48, 7, np.uint8), np.full(12, -1, np.float32)
    places = [None if k == missing else ctypes.c_void_p(a.ctypes.data) for k, a in enumerate((given, out))]
    library = ctypes.CDLL(str(kernels))

    def fit() -> None:
        found = library.tfiseg_fit_frame_cuda(places[0], *sides[:2], places[1], *sides[2:], None)
        assert found == status

    assert launches_of(kernels, fit) == 0
    assert (out == -1).all()


@pytest.mark.parametrize("way", WAYS)
def test_mask_refinement(way, random_predicted_masks, kernels, refinement_by_phases, configure):
    refine = refinement_by_phases(kernels)
    first = 6 * [p.values[0] for p in WAYS].index(way)
    for seed in range(first, first + 6):
        predicted = random_predicted_masks(seed, half=seed % 2 == 1)
        configure(seed, **way)
        assert_fields_equal(refine(predicted, seed=seed), refine_masks_reference(predicted))


def test_mask_refinement_is_one_launch(random_predicted_masks, kernels, refinement_by_phases, configure):
    refine = refinement_by_phases(kernels)
    configure(0)
    for seed in (1, 5):
        predicted = random_predicted_masks(seed)
        assert launches_of(kernels, lambda p=predicted: refine(p)) == 1


def test_captured_mask_refinement_is_deterministic(kernels, random_predicted_masks):
    library, predicted = ctypes.CDLL(str(kernels)), random_predicted_masks(2)
    call = MaskRefinementCall(predicted)
    median_us, grown_bytes = ctypes.c_double(), ctypes.c_int64()
    arguments = (ctypes.byref(call.struct), 10, ctypes.byref(median_us), ctypes.byref(grown_bytes))
    assert library.replay_refinement_in_graph(*arguments) == 0
    assert grown_bytes.value == 0
    expected = refine_masks_reference(predicted)
    assert np.array_equal(call.refined.label_map, expected.label_map)
    assert np.array_equal(call.refined.table, expected.table)


def test_captured_graph_is_deterministic(kernels):
    library = ctypes.CDLL(str(kernels))
    class_map = (np.random.default_rng(2).random((12, 14)) < 0.8).astype(np.uint8)
    problem = problem_of(class_map, max_instances=50)
    n, (h, w) = problem.batch, problem.out_hw
    out = {"label_map": np.zeros((n, h, w), np.int32), "count": np.zeros(n, np.int32)}
    out["table"] = np.zeros((n, problem.settings.max_instances, 10), np.float32)
    given = problem_struct(problem)
    result = ResultStruct(**{name: a.ctypes.data for name, a in out.items()})
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


def test_plugin_enqueue(emulate, compile_cpp, tmp_path):
    """The plugin on the emulated device: its interface, and enqueue in a graph (plugin_interface.cpp)."""
    try:
        headers = find_tensorrt_headers()
    except MissingDependencyError as missing:
        pytest.skip(str(missing))
    include = ("-isystem", str(headers))
    library = emulate("plugin.so", CSRC / "tensorrt_plugin.cpp", CSRC / "cluster_cuda.cu", flags=include)
    flags = (*EMULATED, *include)
    rest = (str(library), "-ldl", f"-Wl,-rpath,{library.parent}")
    source = HERE / "plugin_interface.cpp"
    program = compile_cpp(tmp_path / "plugin_interface", source, flags=flags, libraries=rest)
    done = subprocess.run([program, library, "--gpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("checks passed\n")
