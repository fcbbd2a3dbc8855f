"""Shut down the program: by Ctrl-C, SIGTERM or SIGHUP, or if standard output fails.

Python runs a signal handler between two steps of the interpreter. While a library opens a network disk or a
camera, there is no such step, possibly without end. Therefore a thread waits for signals too, and ends the
process if the main thread does not.
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

INTERRUPTED = 130  # exit status, as shells use it after Ctrl-C
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TIMEOUT_S = 20.0  # for completing outputs
_SHORT_TIMEOUT_S = 5.0  # after a second signal
_DISK_ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT)


class Shutdown:
    """Signal handling of one run of the program.

    Before ``start_work``, there is nothing to lose, so a signal ends the process at once. Later, the first
    signal raises KeyboardInterrupt in the main thread, which has 20 s to complete outputs.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._started = self.was_interrupted = False
        self._deadline: float | None = None  # time.monotonic() at which the process ends
        self._exit_lock = threading.Lock()
        self._finished = threading.Event()

    def start_work(self) -> None:
        """State that there are outputs to complete from now on."""
        self._started = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread; the first one raises KeyboardInterrupt."""
        if not self._started:
            self._exit("interrupted")
        if not self.was_interrupted:
            self.was_interrupted = True
            raise KeyboardInterrupt

    def wait_for_signals(self, reader: int) -> None:
        """Read signal numbers from a pipe in a thread, and end the process if it does not end in time."""
        with contextlib.suppress(OSError):  # the pipe is closed: the program has ended
            for number in iter(lambda: os.read(reader, 1), b""):
                if number[0] not in _SIGNALS:
                    continue
                if not self._started:
                    self._exit("interrupted")
                now = time.monotonic()
                if self._deadline is None:
                    self._deadline = now + _TIMEOUT_S
                    threading.Thread(target=self._exit_late, name="tfiseg-shutdown", daemon=True).start()
                else:
                    self._deadline = min(self._deadline, now + _SHORT_TIMEOUT_S)

    def _exit_late(self) -> None:
        while not self._finished.wait(0.1):
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._exit("interrupted; an operation did not stop in time and was abandoned")

    def _exit(self, text: str) -> None:
        with self._exit_lock:  # never released, so other threads wait here
            print_error(f"tfiseg {self._verb}: {text}")
            os._exit(INTERRUPTED)

    def finish(self) -> None:
        """State that the verb has returned."""
        self._finished.set()


@contextlib.contextmanager
def handle_signals(verb: str, is_program: bool) -> Iterator[Shutdown]:
    """Handle signals while the block runs; not if ``is_program`` is false, as the process goes on."""
    shutdown = Shutdown(verb)
    if threading.current_thread() is not threading.main_thread() or not is_program:
        shutdown.start_work()
        yield shutdown
        return
    handled = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(
        target=shutdown.wait_for_signals, args=(reader,), name="tfiseg-signals", daemon=True
    ).start()

    for one in handled:
        signal.signal(one, shutdown.handle)
    try:
        yield shutdown
    finally:
        # after a signal, the process ends, and a second one must not change its exit status; the thread
        # that waits for signals still ends the process if it does not end in time
        for one in handled:
            signal.signal(one, signal.SIG_IGN if shutdown.was_interrupted else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        if not shutdown.was_interrupted:
            shutdown.finish()


def print_error(text: str) -> None:
    """Print a line on standard error; errors of printing are ignored."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Output(io.TextIOWrapper):
    """Standard output that stores its last error, because argparse ignores errors of writing."""

    failed: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as wrong:
            self.failed = wrong
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as wrong:
            self.failed = wrong
            raise


class ErrorOutput(io.TextIOWrapper):
    """Standard error that loses what can't be written, because no progress bar is worth a run."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def open_missing_streams() -> None:
    """Open closed standard streams as the null device, as a service manager may start a program without them.

    Otherwise the next file that is opened gets their number, and libraries would write messages into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115 - open until the program ends
        try:
            os.fstat(number)
        except OSError:
            os.dup2(stream.fileno(), number)
        setattr(sys, name, stream)


def open_output() -> None:
    """Replace the standard streams by ``Output``, which escapes invalid file names, and ``ErrorOutput``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding, buffered = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = Output(sys.stdout.detach(), encoding, "backslashreplace", line_buffering=buffered)
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        sys.stderr = ErrorOutput(sys.stderr.detach(), encoding, "backslashreplace", line_buffering=True)


def finish_output(verb: str, status: int) -> int:
    """Flush standard output; returns the exit status, 1 if writing failed."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    wrong = getattr(sys.stdout, "failed", None)
    if wrong is None:
        return status
    if not isinstance(wrong, BrokenPipeError):  # e.g. `tfiseg ... | head`
        print_error(f"tfiseg {verb}: can't write to standard output: {wrong.strerror or wrong}")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's last flush
    return status or 1


def error_message(wrong: BaseException) -> str | None:
    """Return the message for an error that ends a verb; None for a bug, which needs a traceback."""
    if isinstance(wrong, TfisegError):
        return str(wrong)
    if isinstance(wrong, MemoryError):
        return "there is not enough memory: use smaller frames, or fewer workers or threads"
    if isinstance(wrong, OSError):
        name: Any = wrong.filename
        reason = wrong.strerror or str(wrong)
        if name is None:
            return f"can't write: {reason}" if wrong.errno in _DISK_ERRORS else reason
        return f"{printable(name) if isinstance(name, str | bytes) else name}: {reason}"
    return None
