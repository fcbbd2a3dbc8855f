"""Test that the operator for aarch64 (Jetson), run by qemu-user, equals that for x86-64 bit for bit."""

import ctypes
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tfiseg.plugins.native import ProblemStruct, cluster_native, problem_struct
from tfiseg.plugins.problem import Clustering, Problem

HERE = Path(__file__).parent
PLUGINS = HERE.parent.parent / "plugins"
SYSROOT = Path("/usr/aarch64-linux-gnu")
ALIGNMENT = 16
PROBLEMS = 300


@dataclass(frozen=True)
class Jetson:
    """A folder with an installed prefix for aarch64, and a function that runs programs for aarch64."""

    prefix: Path
    run: Callable[..., str]


@pytest.fixture(scope="module")
def jetson(require_tools, run_tool, tmp_path_factory) -> Jetson:
    require_tools("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    work = tmp_path_factory.mktemp("aarch64")
    prefix = work / "prefix"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={PLUGINS / 'cmake' / 'aarch64.cmake'}"
    run_tool("cmake", "-S", PLUGINS, "-B", work / "build", toolchain, "-DTFISEG_CUDA=OFF")
    assert "warning" not in run_tool("cmake", "--build", work / "build", "--parallel", "2")
    run_tool("cmake", "--install", work / "build", "--prefix", prefix)

    def run(program: Path, *arguments: object) -> str:
        folder = next(prefix.glob("lib*/libtfiseg.so")).parent
        emulated = ["qemu-aarch64", "-L", SYSROOT, "-E", f"LD_LIBRARY_PATH={folder}:{SYSROOT / 'lib'}"]
        return run_tool(*emulated, program, *arguments)

    return Jetson(prefix, run)


def compiled(jetson: Jetson, run_tool: Callable[..., str], target: Path, source: Path) -> Path:
    library = next(jetson.prefix.glob("lib*/libtfiseg.so")).parent
    flags = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread")
    paths = ("-I", jetson.prefix / "include", "-L", library, "-ltfiseg")
    run_tool("aarch64-linux-gnu-g++", *flags, source, "-o", target, *paths)
    return target


def arrays_of(problem: Problem) -> dict[str, np.ndarray | None]:
    """Return the arrays that the C structure points into."""
    maps = ("class_map", "logits", "displacement", "boundary", "affinity", "scores")
    settings = problem.settings
    return {
        **{name: getattr(problem, name) for name in maps},
        "affinity_offsets_yx": settings.affinity_offsets,
        "things": settings.thing_flags,
        "split": settings.split_table,
        "evidence_rule": settings.merge_rule,
        "part_rule": settings.part_rule,
    }


def packed(problem: Problem) -> bytes:
    """Return the problem as run_problems.cpp reads it."""
    struct = problem_struct(problem)
    content, at = b"", -(-(8 + ctypes.sizeof(ProblemStruct)) // ALIGNMENT) * ALIGNMENT
    start = at
    for name, array in arrays_of(problem).items():
        setattr(struct, name, None if array is None else at)
        if array is not None:
            part = array.tobytes()
            part += bytes(-len(part) % ALIGNMENT)
            content, at = content + part, at + len(part)
    head = at.to_bytes(8, "little") + bytes(struct)
    return head + bytes(start - len(head)) + content


def unpacked(data: bytes, problems: Iterable[Problem]) -> list[Clustering]:
    """Return the results that run_problems.cpp wrote."""
    found, at = [], 0

    def take(kind: type, *shape: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
        at += values.nbytes
        return values

    for problem in problems:
        n, k = problem.batch, problem.settings.max_instances
        label_map, semantic_map = take(np.int32, n, *problem.out_hw), take(np.uint8, n, *problem.out_hw)
        count, regions, table = take(np.int32, n), take(np.int32, n), take(np.float32, n, k, 10)
        found.append(Clustering(label_map, semantic_map, count, table, regions))
    assert at == len(data)
    return found


def test_library_is_for_aarch64_and_exports_its_api_only(jetson, run_tool):
    library = next(jetson.prefix.glob("lib*/libtfiseg.so"))
    assert "AArch64" in run_tool("readelf", "-h", library)
    names = {line.split()[-1] for line in run_tool("nm", "-D", "--defined-only", library).splitlines()}
    assert names
    assert {name for name in names if not name.startswith("tfiseg_")} == set()


def test_cpp_test_passes(jetson, run_tool, tmp_path):
    sample = HERE.parent.parent / "samples" / "cpp" / "check_tfiseg.cpp"
    assert jetson.run(compiled(jetson, run_tool, tmp_path / "check", sample)) == "ok\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64")
@pytest.mark.parametrize("threads", [1, 3])
def test_problems_are_equal_to_x86_64_bit_for_bit(jetson, run_tool, random_problem, tmp_path, threads):
    program = compiled(jetson, run_tool, tmp_path / "run_problems", HERE / "run_problems.cpp")
    problems = [random_problem(seed) for seed in range(PROBLEMS)]
    (tmp_path / "problems").write_bytes(b"".join(map(packed, problems)))
    jetson.run(program, tmp_path / "problems", tmp_path / "results", threads)
    results = unpacked((tmp_path / "results").read_bytes(), problems)
    differing_scores = 0
    for got, problem in zip(results, problems, strict=True):
        expected = cluster_native(problem, threads=1)
        for name in ("label_map", "semantic_map", "count", "regions"):
            assert np.array_equal(getattr(got, name), getattr(expected, name)), name
        for k, n in enumerate(expected.count):
            got_row, expected_row = got.table[k, :n], expected.table[k, :n]
            assert np.array_equal(np.delete(got_row, 1, 1), np.delete(expected_row, 1, 1))
            differing_scores += int((got_row[:, 1] != expected_row[:, 1]).sum())
    assert differing_scores == 0


def test_gpu_phases_are_equal_on_aarch64(require_tools, run_tool, tmp_path):
    """Run all of fuzz.cpp: CPU operator against GPU phases, views, frames, invalid arguments."""
    require_tools("aarch64-linux-gnu-g++", "qemu-aarch64")
    csrc = PLUGINS / "csrc"
    sources = [csrc / f"{name}.cpp" for name in ("api", "cluster_cpu", "fit_cpu", "views_cpu")]
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-pthread", "-static")
    program = tmp_path / "fuzz"
    run_tool(
        "aarch64-linux-gnu-g++", *flags, HERE / "fuzz.cpp", HERE / "shuffled.cpp", *sources, "-o", program
    )
    done = subprocess.run(["qemu-aarch64", program, "60"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "60 cases, 0 failed\n"
