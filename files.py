"""Files that are written whole or not at all, and folders that can be written to."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

_MAX_FOLDERS = 10_000


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
    except OSError as error:
        raise InputError(
            f"can't write to the output folder {printable(str(folder))} ({error.strerror}): name another one "
            "with --out"
        ) from error
    return folder


def new_folder(parent: str | Path, name: str) -> Path:
    """Create a folder ``parent/name`` that wasn't there; where it is, ``name-2``, ``name-3``, ...

    Raises:
        InputError: it can't be created.
    """
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
    raise InputError(f"{printable(str(parent))} holds {_MAX_FOLDERS} folders {name}-N: name another one")


class FolderLock:
    """Keeps other processes and objects from writing to a folder; ends with the process, whatever ends it.

    ``with`` blocks of one lock may be nested. File systems without locks are not protected.

    Args:
        folder: it must exist.
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
            except OSError:  # this file system has no locks
                pass
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            os.close(self._descriptor)


def overwrite(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; where there is no room for a second copy, over the first one."""
    try:
        write_whole(path, content)
    except OSError:
        if not path.is_file():
            raise
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


def printable(name: str | bytes) -> str:
    """A file's name as valid text: bytes that are no UTF-8 become ``\\xNN``."""
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape" if _is_from_bytes(name) else "backslashreplace")
    return name.decode("utf-8", "backslashreplace")


def _is_from_bytes(name: str) -> bool:
    return all(not 0xD800 <= ord(c) <= 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF for c in name)
