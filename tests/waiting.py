"""Functions that wait for a condition, for tests of threads and processes."""

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen


def wait_until(condition: Callable[[], object], seconds: float = 20, process: Popen | None = None) -> None:
    """Wait until ``condition()`` is true; fail after ``seconds``, or if the process ends earlier."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.02)


def count_lines(path: Path) -> int:
    """Return the number of complete lines in a file; 0 if it does not exist."""
    return path.read_text().count("\n") if path.exists() else 0
