"""Start processes whose signals are handled as in a terminal."""

import signal
import subprocess
from collections.abc import Sequence

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def start_process(
    command: Sequence[object], ignored: Sequence[signal.Signals] = (), **options: object
) -> subprocess.Popen:
    """Start a process that ends at signals, except at ignored ones.

    Background jobs of a shell ignore Ctrl-C, and so would their children. ``preexec_fn`` is no way to change
    this: it runs Python in a fork, where a garbage collection waits forever for the threads of a network.
    """
    kept = {
        number: signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        for number in SIGNALS
    }
    try:
        return subprocess.Popen([str(word) for word in command], **options)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
