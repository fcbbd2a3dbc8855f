import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tfiseg  # noqa: F401  the installed package, before pytest imports a clone of this name

sys.path.append(str(Path(__file__).parent))  # for plain_model

SHARED = Path(os.environ.get("TFISEG_SHARED") or Path(__file__).parent.parent.parent / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data next to the repository; tests that need it are skipped without it."""
    if not (SHARED / "data" / "eval").is_dir():
        pytest.skip("../shared (development data) is not here")
    return SHARED


@pytest.fixture(scope="session")
def eval_sets(shared: Path) -> Path:
    return shared / "data" / "eval"


@pytest.fixture(scope="session")
def require_tools() -> Callable[..., None]:
    """require_tools("cmake", ...): skip if a program is missing, or fail if TFISEG_TEST_CPP is set."""

    def require(*names: str) -> None:
        if missing := [name for name in names if not shutil.which(name)]:
            said = f"{', '.join(missing)} not found (.ci/run installs what these tests need)"
            (pytest.fail if os.environ.get("TFISEG_TEST_CPP") else pytest.skip)(said)

    return require


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., str]:
    """run_tool("cmake", ...): run a command that must succeed; returns its output, including stderr."""

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
    """The C++ library for the CPU, installed by `cmake --install` in a prefix that was then moved."""
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
