"""Files that are written whole or not at all, and folders that can be written to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Hand out a temporary file beside ``path`` that becomes ``path`` if the block raises nothing.

    Processes and threads that write the same file at the same time don't disturb each other: the last one
    wins. Readers see the old content or the new one, never a part.

    Args:
        path: the file to write. Its folder must exist.

    Yields:
        Path: the file to write into. It is removed if the block raises.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, see ``whole_file``."""
    with whole_file(path) as part:
        part.write_bytes(content)


def writable_folder(path: str | Path) -> Path:
    """Create a folder if it is missing and test that it can be written to.

    Raises:
        InputError: it can't be. Call this before long work, so that no work is lost.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tfiseg-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as wrong:
        raise InputError(
            f"can't write to the output folder {printable(str(folder))} ({wrong.strerror}): name another one "
            "with --out"
        ) from wrong
    return folder


def printable(name: str | bytes) -> str:
    """A file's name as valid text: bytes that are no UTF-8 become ``\\xNN``."""
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape" if _is_from_bytes(name) else "backslashreplace")
    return name.decode("utf-8", "backslashreplace")


def _is_from_bytes(name: str) -> bool:
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in name)
