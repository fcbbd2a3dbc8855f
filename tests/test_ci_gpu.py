"""`.ci/gpu` with stubs of CUDA's programs: every step runs, also after failures, and is in the results."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUBS = {
    "nvidia-smi": "echo 'An RTX GPU, 580.1'",
    "nvcc": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2" && chmod +x "$2"; shift; done; echo V13.0.88',
    "g++": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && touch "$2" && chmod +x "$2"; shift; done',
    "compute-sanitizer": "echo 'ERROR SUMMARY: 0 errors'",
    "python-stub": (
        'case "$*" in *gpu.py*) echo "AssertionError: a count"; exit 1;; *find_tensorrt*|*pycuda*) exit 1;; '
        '*"-"*results.md*) exec python3 "$@";; *) echo "ok";; esac'
    ),
}


@pytest.fixture
def repository(tmp_path) -> Path:
    """A copy of the files that the script reads, and stubs of CUDA's programs."""
    root = tmp_path / "repository"
    (root / "docs" / "benchmarks").mkdir(parents=True)
    (root / "plugins").mkdir()
    shutil.copytree(ROOT / ".ci", root / ".ci")
    shutil.copytree(ROOT / "plugins" / "csrc", root / "plugins" / "csrc")
    (root / "tests" / "plugins").mkdir(parents=True)
    for path in (ROOT / "tests" / "plugins").glob("*.c*"):
        shutil.copy(path, root / "tests" / "plugins")
    page = "# GPU\n\n<!-- results of .ci/gpu -->\nnot yet run\n<!-- end of results -->\n\nmore\n"
    (root / "docs" / "benchmarks" / "gpu.md").write_text(page)
    (tmp_path / "bin").mkdir()
    for name, script in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return root


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess:
    folder = repository.parent
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "PYTHON": str(folder / "bin" / "python-stub"),
        "TFISEG_GPU_WORK": str(folder / "work"),
    }
    command = [repository / ".ci" / "gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60)


def test_failed_step_does_not_stop_others(repository):
    done = run(repository, "all", str(repository / "out"))
    assert done.returncode == 1
    page = (repository / "docs" / "benchmarks" / "gpu.md").read_text()
    for step in ("build", "parity", "memcheck", "synccheck", "racecheck", "initcheck"):
        assert f"| {step} | passed |" in page, done.stdout + done.stderr
    assert "| times | **failed (1)** |" in page
    assert "AssertionError: a count" in page
    assert page.endswith("<!-- end of results -->\n\nmore\n")
    assert page.index("| parity |") < page.index("| times |") < page.index("| racecheck |")


def test_separate_parts_build_once(repository):
    for part in ("correctness", "times", "profile"):
        run(repository, part, str(repository / "out"))
    page = (repository / "docs" / "benchmarks" / "gpu.md").read_text()
    assert page.count("| build |") == 1
    assert "| initcheck | passed |" in page
    assert "An RTX GPU, 580.1, CUDA V13.0.88" in page


def test_time_limits_fit_nine_minutes():
    """The limits of a part's steps and of the build add up to at most nine minutes."""
    script = (ROOT / ".ci" / "gpu").read_text()
    for part in ("correctness", "times", "profile"):
        body = script.split(f"\n{part}() {{")[1].split("\n}")[0]
        words = [line.split() for line in body.splitlines() if line.split()[:1] in (["step"], ["sanitize"])]
        assert 180 + sum(int(line[2]) for line in words) <= 9 * 60


def test_unknown_part_fails(repository):
    done = run(repository, "everything")
    assert done.returncode == 2
    assert "correctness|times|profile" in done.stderr
