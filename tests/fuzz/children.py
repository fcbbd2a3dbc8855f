"""Inputs tried in child processes: what the library does with each of them, and how much time and memory it
takes."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SECONDS = 20  # for one input; more is a hang
ADDRESS_SPACE_BYTES = 8 << 30
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Args:
        kind: "read", "refused" (an error of tfiseg's family), "traceback" (any other error), "crash" or
            "hang".
        text: the error, or the signal.
        peak_mb: largest resident memory of the process.
        seconds: until it ended.
    """

    kind: str
    text: str
    peak_mb: float
    seconds: float


def try_inputs(actions: Sequence[Callable[[], object]], seconds: int = SECONDS) -> list[Outcome]:
    """Run actions one after another in a forked process, with limits on time and address space.

    This process must have started no threads: a fork takes none of them along, but the locks that they hold.

    Returns:
        An outcome of each; fewer where one of them killed or stopped the process: the last one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(actions, writer, seconds)
    os.close(writer)
    outcomes: list[Outcome] = []
    with os.fdopen(reader, "rb") as answers:
        while len(outcomes) < len(actions):
            began = time.monotonic()
            ready = select.select([answers], [], [], seconds + GRACE_SECONDS)[0]
            line = answers.readline() if ready else b""
            took = time.monotonic() - began
            if not line.endswith(b"\n"):
                outcomes.append(_end_of(child, took, seconds, is_silent=not ready))
                return outcomes
            outcomes.append(Outcome(*json.loads(line), took))
    os.waitpid(child, 0)
    return outcomes


def _end_of(child: int, took: float, seconds: int, is_silent: bool) -> Outcome:
    """The outcome of an input that its process did not survive."""
    if is_silent:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if is_silent or number == signal.SIGALRM:
        return Outcome("hang", f"more than {seconds} s", 0.0, took)
    return Outcome("crash", f"signal {number}" if number else f"status {status}", 0.0, took)


def _run(actions: Sequence[Callable[[], object]], writer: int, seconds: int) -> None:
    """The child: never returns."""
    try:
        said = os.memfd_create("said")
        os.dup2(said, 1)
        os.dup2(said, 2)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        read = 0
        for action in actions:
            signal.alarm(seconds)
            kind, text = _kind_of(action)
            size = os.fstat(said).st_size
            printed = os.pread(said, min(size - read, 1 << 16), read).decode(errors="replace")
            read = size
            if "Traceback" in printed:
                kind, text = "traceback", printed[-300:]  # of another thread
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            os.write(writer, json.dumps((kind, text[:300], peak_mb)).encode() + b"\n")
    finally:
        os._exit(0)


def _kind_of(action: Callable[[], object]) -> tuple[str, str]:
    from tfiseg.errors import TfisegError

    try:
        return "read", str(action())
    except TfisegError as wrong:
        return "refused", str(wrong)
    except BaseException as wrong:  # whatever it is, it is found here
        frames = [f for f in traceback.extract_tb(wrong.__traceback__) if "/fuzz/" not in f.filename]
        where = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "the harness"
        return "traceback", f"{type(wrong).__name__}: {str(wrong)[:200]} at {where}"


@dataclass
class Tally:
    """Outcomes of one kind of input."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    tracebacks: int = 0
    crashes: int = 0
    hangs: int = 0
    peak_mb: float = 0.0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)  # the first of each sort, with its seed
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, seed: int | str, outcome: Outcome, inputs: int = 1) -> None:
        """Count one outcome."""
        self.inputs += inputs
        self.peak_mb = max(self.peak_mb, round(outcome.peak_mb, 1))
        self.slowest_s = max(self.slowest_s, round(outcome.seconds, 2))
        count = {"read": "read", "refused": "refused"}.get(outcome.kind)
        if count is not None:
            setattr(self, count, getattr(self, count) + inputs)
            return
        name = {"traceback": "tracebacks", "crash": "crashes", "hang": "hangs"}[outcome.kind]
        setattr(self, name, getattr(self, name) + 1)
        sort = re.sub(r"0x[0-9a-f]+|\d+|/tmp/\S+", "N", outcome.text)[:120]
        self.reasons[sort] += 1
        if self.reasons[sort] == 1:
            self.failures.append(f"{seed}: {outcome.kind}: {outcome.text}")

    def report(self) -> dict[str, Any]:
        """Plain values."""
        return {name: value for name, value in asdict(self).items() if name != "reasons"}
