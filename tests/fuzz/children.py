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
from collections.abc import Callable
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


def try_input(action: Callable[[], object], seconds: int = SECONDS) -> Outcome:
    """Run ``action`` in a forked process with limits on time and address space.

    This process must have started no threads: a fork takes none of them along, but the locks that they hold.
    """
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(action, writer, seconds)
    os.close(writer)
    answer = _answer_of(reader, began + seconds + GRACE_SECONDS)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    took = time.monotonic() - began
    if answer:
        kind, text, peak_mb = json.loads(answer)
        return Outcome(kind, text, peak_mb, took)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if answer is None or number == signal.SIGALRM:
        return Outcome("hang", f"more than {seconds} s", 0.0, took)
    return Outcome("crash", f"signal {number}" if number else f"status {status}", 0.0, took)


def _run(action: Callable[[], object], writer: int, seconds: int) -> None:
    """The child: never returns."""
    try:
        said = os.memfd_create("said")
        os.dup2(said, 1)
        os.dup2(said, 2)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        kind, text = _kind_of(action)
        if "Traceback" in (printed := os.pread(said, 1 << 16, 0).decode(errors="replace")):
            kind, text = "traceback", printed[-300:]  # of another thread
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        os.write(writer, json.dumps((kind, text[:300], peak_mb)).encode())
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


def _answer_of(reader: int, until: float) -> bytes | None:
    """What the child wrote; b"" where it died before, None where it is silent for too long."""
    content = b""
    try:
        while True:
            if not select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            piece = os.read(reader, 1 << 16)
            if not piece:
                return content
            content += piece
    finally:
        os.close(reader)


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
