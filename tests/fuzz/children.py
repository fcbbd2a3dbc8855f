"""Try inputs in child processes, and measure results, time and memory."""

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

SECONDS = 20  # limit for one input
ADDRESS_SPACE_BYTES = 8 << 30
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Outcome:
    """The result of one input.

    Args:
        kind: "read", "refused" (an error of tfiseg's family), "traceback" (any other error), "crash" or
            "hang".
        text: the error or the signal.
        peak_mb: maximum resident memory of the process.
        seconds: time until the end of the input.
    """

    kind: str
    text: str
    peak_mb: float
    seconds: float


def try_inputs(actions: Sequence[Callable[[], object]], seconds: int = SECONDS) -> list[Outcome]:
    """Run actions one after another in a forked process, with limits on time and address space.

    The calling process must not have started threads, because a fork copies locks but not the threads that
    hold them.

    Returns:
        One outcome per input. If an input kills or blocks the process, its outcome is the last one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(actions, writer, seconds)
    os.close(writer)
    outcomes: list[Outcome] = []
    with os.fdopen(reader, "rb") as results:
        while len(outcomes) < len(actions):
            began = time.monotonic()
            ready = select.select([results], [], [], seconds + GRACE_SECONDS)[0]
            line = results.readline() if ready else b""
            elapsed_s = time.monotonic() - began
            if not line.endswith(b"\n"):
                outcomes.append(_end_of(child, elapsed_s, seconds, is_silent=not ready))
                return outcomes
            outcomes.append(Outcome(*json.loads(line), elapsed_s))
    os.waitpid(child, 0)
    return outcomes


def _end_of(child: int, elapsed_s: float, seconds: int, is_silent: bool) -> Outcome:
    """Return the outcome of an input that ended its process."""
    if is_silent:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if is_silent or number == signal.SIGALRM:
        return Outcome("hang", f"more than {seconds} s", 0.0, elapsed_s)
    return Outcome("crash", f"signal {number}" if number else f"status {status}", 0.0, elapsed_s)


def _run(actions: Sequence[Callable[[], object]], writer: int, seconds: int) -> None:
    """Run the actions in the child process; never returns."""
    try:
        output = os.memfd_create("output")
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        read = 0
        for action in actions:
            signal.alarm(seconds)
            kind, text = _kind_of(action)
            size = os.fstat(output).st_size
            printed = os.pread(output, min(size - read, 1 << 16), read).decode(errors="replace")
            read = size
            if "Traceback" in printed:
                kind, text = "traceback", printed[-300:]  # in another thread
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
    except BaseException as wrong:  # any other error is a bug
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
    failures: list[str] = field(default_factory=list)  # the first of each reason, with its seed
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, seed: int | str, outcome: Outcome, inputs: int = 1) -> None:
        """Count one outcome."""
        self.inputs += inputs
        self.peak_mb = max(self.peak_mb, round(outcome.peak_mb, 1))
        self.slowest_s = max(self.slowest_s, round(outcome.seconds, 2))
        if outcome.kind in ("read", "refused"):
            setattr(self, outcome.kind, getattr(self, outcome.kind) + inputs)
            return
        name = {"traceback": "tracebacks", "crash": "crashes", "hang": "hangs"}[outcome.kind]
        setattr(self, name, getattr(self, name) + 1)
        reason = re.sub(r"0x[0-9a-f]+|\d+|/tmp/\S+", "N", outcome.text)[:120]
        self.reasons[reason] += 1
        if self.reasons[reason] == 1:
            self.failures.append(f"{seed}: {outcome.kind}: {outcome.text}")

    def report(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "reasons"}
