"""How the program ends: by Ctrl-C, SIGTERM or SIGHUP, or because standard output takes nothing.

Python runs the handler of a signal between two of its own steps. While a library opens a network disk or a
camera there is no such step, possibly for ever. So a thread waits for signals as well, and ends the process
if the main thread doesn't.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ..errors import TfisegError
from ..files import printable

INTERRUPTED = 130  # exit status, as of a shell's command after Ctrl-C
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 20.0  # for outputs to be completed
_SHORT_PATIENCE_S = 5.0  # after a second signal
_DISK_ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)


class Ending:
    """Signals of one run of the program.

    Until ``work_begins`` nothing can get lost, so a signal ends the process at once. Later, the first one
    raises KeyboardInterrupt in the main thread, so that outputs are completed: for 20 s at most.

    Args:
        verb: for messages.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._begun = self._raised = False
        self._until: float | None = None  # time.monotonic() at which the process ends, whatever it is at
        self._leaving = threading.Lock()
        self._over = threading.Event()

    def work_begins(self) -> None:
        """From now on there are outputs to complete."""
        self._begun = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handler of the signals, in the main thread: raises KeyboardInterrupt the first time."""
        if not self._begun:
            self._leave("interrupted")
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def wait_for_signals(self, reader: int) -> None:
        """Work of the thread: read numbers of signals, and end a process that doesn't end itself."""
        with contextlib.suppress(OSError):  # the pipe is closed: the program has ended
            for number in iter(lambda: os.read(reader, 1), b""):
                if number[0] not in _SIGNALS:
                    continue
                if not self._begun:
                    self._leave("interrupted")
                now = time.monotonic()
                if self._until is None:
                    self._until = now + _PATIENCE_S
                    threading.Thread(target=self._end_late, name="tfiseg-ending", daemon=True).start()
                else:
                    self._until = min(self._until, now + _SHORT_PATIENCE_S)

    def _end_late(self) -> None:
        while not self._over.wait(0.1):
            if self._until is not None and time.monotonic() > self._until:
                self._leave("interrupted; something didn't stop in time and was left to itself")

    def _leave(self, text: str) -> None:
        with self._leaving:  # held until the end: another thread that wants to leave, too, waits here
            say(f"tfiseg {self._verb}: {text}")
            os._exit(INTERRUPTED)

    def is_over(self) -> None:
        """The verb has returned."""
        self._over.set()


@contextlib.contextmanager
def ended_by_signals(verb: str, is_program: bool) -> Iterator[Ending]:
    """Handle signals while the block runs.

    Args:
        verb: for messages.
        is_program: whether the process ends after the block. Otherwise signals are left as they are.
    """
    ending = Ending(verb)
    if threading.current_thread() is not threading.main_thread() or not is_program:
        ending.work_begins()
        yield ending
        return
    handled = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(
        target=ending.wait_for_signals, args=(reader,), name="tfiseg-signals", daemon=True
    ).start()

    for one in handled:
        signal.signal(one, ending.handle)
    try:
        yield ending
    finally:
        for one in handled:
            signal.signal(one, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        ending.is_over()


def say(text: str) -> None:
    """Print a line on standard error; a full disk there changes nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Output(io.TextIOWrapper):
    """Standard output that remembers what went wrong with it: argparse passes over errors of writing."""

    failed: OSError | None = None

    def write(self, text: str) -> int:
        """Write text."""
        try:
            return super().write(text)
        except OSError as wrong:
            self.failed = wrong
            raise

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            super().flush()
        except OSError as wrong:
            self.failed = wrong
            raise


def open_output() -> None:
    """Make standard output an ``Output``; names of files that are no valid text are shown with escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding, buffered = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = Output(sys.stdout.detach(), encoding, "backslashreplace", line_buffering=buffered)


def finish_output(verb: str, status: int) -> int:
    """Flush standard output; returns the exit status: 1 where it takes nothing."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    wrong = getattr(sys.stdout, "failed", None)
    if wrong is None:
        return status
    if not isinstance(wrong, BrokenPipeError):  # `tfiseg ... | head`: nobody reads on
        say(f"tfiseg {verb}: can't write to standard output: {wrong.strerror or wrong}")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter's last flush finds an open file
    return status or 1


def sentence_of(wrong: BaseException) -> str | None:
    """What to say of an error that ends a verb; None: it is a fault of the program, and gets a traceback."""
    if isinstance(wrong, TfisegError):
        return str(wrong)
    if isinstance(wrong, MemoryError):
        return "there is not enough memory: use smaller frames, or fewer workers or threads"
    if isinstance(wrong, OSError):
        name: Any = wrong.filename
        what = wrong.strerror or str(wrong)
        if name is None:
            return f"can't write: {what}" if wrong.errno in _DISK_ERRORS else what
        return f"{printable(name) if isinstance(name, str | bytes) else name}: {what}"
    return None
