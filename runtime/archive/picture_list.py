"""The pictures of an archive: a folder, a glob pattern, or Parquet files with a column of paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, MissingDependencyError, SourceError
from ...files import printable
from ...images import IMAGE_SUFFIXES, image_paths

PATH_COLUMN = "path"


@dataclass(frozen=True)
class Picture:
    """A picture file."""

    path: str  # absolute path, which each machine of the cluster must be able to read
    file_name: str  # name in records: relative to the given folder, or the path as given


def list_pictures(source: str) -> list[Picture]:
    """Return the pictures of an archive, each once, in a fixed order.

    Args:
        source: a folder of pictures, including its subfolders; a picture; a glob pattern; or a Parquet file,
            or a folder of them, with a column "path".

    Raises:
        SourceError: there are no pictures.
        InputError: a Parquet file has no column "path".
    """
    folder = Path(source)
    tables = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    if folder.suffix == ".parquet" and folder.is_file():
        tables = [folder]
    if tables:
        found = _unique((path, path) for table in tables for path in _paths_of(table))
    elif folder.is_dir():
        found = _unique((str(path), str(path.relative_to(folder))) for path in _pictures_below(folder))
    else:
        matches = [source] if folder.is_file() else sorted(glob.glob(source, recursive=True))
        found = _unique((path, path) for path in matches if Path(path).suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise SourceError(
            f"there are no images in {printable(source)}: with --ray, a source is a folder, a glob "
            f'pattern, or Parquet files with a column "{PATH_COLUMN}"'
        )
    return found


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Yield the pictures of a folder and its subfolders, except hidden ones."""
    for below, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from image_paths(Path(below))


def _unique(found: Iterable[tuple[str, str]]) -> list[Picture]:
    pictures = {str(Path(path).absolute()): name for path, name in found}
    return [Picture(path, name) for path, name in pictures.items()]


def _paths_of(table: Path) -> list[str]:
    parquet = pyarrow_parquet()
    try:
        columns = parquet.read_schema(table).names
        if PATH_COLUMN not in columns:
            raise InputError(
                f'{printable(str(table))} has the columns {", ".join(columns)} and no column "{PATH_COLUMN}"'
            )
        paths = parquet.read_table(table, columns=[PATH_COLUMN])[PATH_COLUMN].to_pylist()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise SourceError(f"can't read {printable(str(table))}: {error}") from error
    return [str(path) for path in paths if path is not None]


def pyarrow_parquet() -> Any:
    """Return the module ``pyarrow.parquet``, or raise MissingDependencyError."""
    try:
        import pyarrow.parquet
    except ImportError as missing:
        raise MissingDependencyError(
            'archives need pyarrow: pip install ".[ray]" in the repository'
        ) from missing
    return pyarrow.parquet
