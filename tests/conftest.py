"""Fixtures of all tests: development data, tools, and an installed C++ library."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tfiseg  # noqa: F401  the installed package, before pytest imports a clone of that name

sys.path.append(str(Path(__file__).parent))  # for the helper modules in this folder

SHARED = Path(os.environ.get("TFISEG_SHARED") or Path(__file__).parent.parent.parent / "shared")


def pytest_configure() -> None:
    """Give each of several test processes its own cores: threads that wait for a core spin while they do."""
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
        cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        number = int(worker.removeprefix("gw"))
        share = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
        os.sched_setaffinity(0, share or cores)


@pytest.fixture(autouse=True)
def _same_scheduling_policy() -> Iterator[None]:
    """Fail a test that leaves this process with another scheduling policy, see ``clips.same_priority``."""
    policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    yield
    assert policy is None or os.sched_getscheduler(0) == policy


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of the development data, or skip the test."""
    if not (SHARED / "data" / "eval").is_dir():
        pytest.skip("there is no development data in ../shared")
    return SHARED


@pytest.fixture(scope="session")
def eval_sets(shared: Path) -> Path:
    return shared / "data" / "eval"


@pytest.fixture(scope="session")
def require_tools() -> Callable[..., None]:
    """Return a function that skips the test if a program is missing; with TFISEG_TEST_CPP, it fails."""

    def require(*names: str) -> None:
        if missing := [name for name in names if not shutil.which(name)]:
            message = f"{', '.join(missing)} not found (.ci/run lists the packages)"
            (pytest.fail if os.environ.get("TFISEG_TEST_CPP") else pytest.skip)(message)

    return require


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., str]:
    """Return a function that runs a command, which must succeed, and returns its output and stderr."""

    def run(*command: object, **options: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def cpp_prefix(
    require_tools: Callable[..., None], run_tool: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the prefix of an installed C++ library for the CPU, which was moved after the installation."""
    require_tools("cmake", "g++")
    work = tmp_path_factory.mktemp("tfiseg")
    build, installed, moved = work / "build", work / "installed", work / "moved" / "prefix"
    source = Path(__file__).parent.parent / "plugins"
    run_tool("cmake", "-S", source, "-B", build, "-DTFISEG_CUDA=OFF")
    built = run_tool("cmake", "--build", build, "--parallel", "2")
    assert "warning" not in built
    run_tool("cmake", "--install", build, "--prefix", installed)
    moved.parent.mkdir()
    installed.rename(moved)
    return moved
