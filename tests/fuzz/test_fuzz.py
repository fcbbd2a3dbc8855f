"""Test randomly changed files and requests with fixed seeds, for 60 seconds in total. See fuzz.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = {
    "models": 13,
    "metadata": 11,
    "records": 7,
    "caches": 5,
    "checkpoints": 4,
    "pictures": 7,
    "videos": 8,
    "requests": 5,
}
MIN_INPUTS = 5  # also on a busy machine
PACKAGE = {"checkpoints": "torch", "requests": "aiohttp"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits for children need Linux")
@pytest.mark.parametrize("kind", SECONDS)
def test_changed_inputs_cause_no_crash_hang_or_traceback(kind):
    if kind in PACKAGE:
        pytest.importorskip(PACKAGE[kind])
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), kind, "--inputs", "100000"]
    done = subprocess.run(
        [*command, "--seconds", str(SECONDS[kind])], capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)[kind]
    assert report["failures"] == []
    assert report["tracebacks"] == report["crashes"] == report["hangs"] == 0
    assert report["peak_mb"] < 2048
    assert report["inputs"] >= MIN_INPUTS
    assert done.returncode == 0
