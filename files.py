"""Atomic writing of files, writable folders, and file URLs."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from .errors import InputError

_MAX_FOLDERS = 10_000


def path_of_file_url(url: str) -> str:
    """Return the path in file:///PATH, where characters may be escaped.

    Raises InputError if it names another machine, and ValueError if it is malformed.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise InputError(
            f"file://{parts.hostname}{parts.path} names the machine {parts.hostname}: a file URL must be "
            "file:///PATH on this machine"
        )
    return os.fsdecode(unquote_to_bytes(parts.path))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` atomically at the end of the block.

    Readers see the old content or the new content, never a part. If several processes or threads write the
    same file, the last one wins.

    Args:
        path: path of the file. Its folder must exist.

    Yields:
        Path: the temporary file. It is removed if the block raises an error.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, see ``whole_file``."""
    with whole_file(path) as part:
        part.write_bytes(content)


def writable_folder(path: str | Path) -> Path:
    """Create a folder if it is missing, and check that it is writable.

    Call this before long work, so that no work is lost.

    Raises:
        InputError: the folder is not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tfiseg-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"can't write to the output folder {printable(str(folder))} ({error.strerror}): name another one "
            "with --out"
        ) from error
    return folder


def new_folder(parent: str | Path, name: str) -> Path:
    """Create the new folder ``parent/name``, or ``name-2`` and so on if it exists; raises InputError."""
    parent = writable_folder(parent)
    for count in range(1, _MAX_FOLDERS):
        folder = parent / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"can't create the folder {printable(str(folder))} ({error.strerror}): name another one"
            ) from error
        return folder
    raise InputError(f"{printable(str(parent))} has {_MAX_FOLDERS} folders {name}-N: name another one")


class FolderLock:
    """A lock that prevents other runs from writing to a folder; it ends with the process.

    ``with`` blocks of one lock may be nested. On file systems without locks it has no effect.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._depth, self._descriptor = folder, 0, -1

    def __enter__(self) -> FolderLock:
        if not self._depth:
            self._descriptor = os.open(self._folder, os.O_RDONLY)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                raise InputError(
                    f"another run writes to {printable(str(self._folder))}: wait for its end, or name "
                    "another folder with --out"
                ) from None
            except OSError:  # the file system has no locks
                pass
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            os.close(self._descriptor)


def overwrite(path: Path, content: bytes) -> None:
    """Write a file atomically, or in place if the disk has no space for a second copy."""
    try:
        write_whole(path, content)
    except OSError:
        if not path.is_file():
            raise
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


def printable(name: str | bytes) -> str:
    """Return a file name as valid text: bytes that are not UTF-8 become ``\\xNN``."""
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape" if _is_from_bytes(name) else "backslashreplace")
    return name.decode("utf-8", "backslashreplace")


def _is_from_bytes(name: str) -> bool:
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in name)
