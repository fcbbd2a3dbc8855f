import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for plain_model

SHARED = Path(os.environ.get("TFISEG_SHARED") or Path(__file__).parent.parent.parent / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the repository; tests that need it are skipped where it isn't."""
    if not (SHARED / "data" / "eval").is_dir():
        pytest.skip("../shared (development data) is not here")
    return SHARED


@pytest.fixture(scope="session")
def eval_sets(shared: Path) -> Path:
    return shared / "data" / "eval"
