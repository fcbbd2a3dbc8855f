"""Read calibration caches; names, types, shapes and sizes are checked before an array is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..schema import MAX_TEXT, map_of, parse, text

MAX_BYTES = 1 << 30  # of all arrays in memory
_MAX_ARRAYS = 100_000
_MAX_KEY_CHARACTERS = 1 << 16
_KEY = "key"
_KEY_FORMAT = map_of(text(MAX_TEXT), text(200), 32)
# kind of array -> type, number of axes
_KINDS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "peak": ("<f4", (1,)),
    "range": ("<f8", (1,)),
    "q": ("|i1", (2, 3, 4)),
    "scale": ("<f4", (1,)),
    "bias": ("<f4", (1,)),
}


def read_cache(path: Path) -> tuple[dict[str, str], dict[str, dict[str, NDArray[Any]]]]:
    """Read a calibration cache (numpy's .npz). Nothing in it is unpickled.

    Returns:
        Its key, and arrays by kind ("peak", "range", "q", "scale", "bias") and name.

    Raises:
        FormatError: it is not a cache, or larger than ``MAX_BYTES`` when unpacked.
    """
    try:
        if not path.is_file():
            raise FormatError("it is not a file")
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except FormatError:
        raise
    except Exception as wrong:  # zipfile and numpy raise errors of any class on damaged files
        reason = str(wrong) or type(wrong).__name__
        raise FormatError(reason) from wrong


def _read(archive: zipfile.ZipFile) -> tuple[dict[str, str], dict[str, dict[str, NDArray[Any]]]]:
    parts = archive.infolist()
    if len(parts) > _MAX_ARRAYS or sum(part.file_size for part in parts) > MAX_BYTES:
        raise FormatError(f"it unpacks to more than {MAX_BYTES} bytes or {_MAX_ARRAYS} arrays")
    key: dict[str, str] | None = None
    arrays: dict[str, dict[str, NDArray[Any]]] = {kind: {} for kind in _KINDS}
    for part in parts:
        name = part.filename.removesuffix(".npy")
        kind, slash, tensor = name.partition("/")
        with archive.open(part) as file:
            if name == _KEY:
                key = _read_key(file, part.file_size)
            elif slash and kind in _KINDS and tensor not in arrays[kind]:
                arrays[kind][tensor] = _read_array(file, part.file_size, name, *_KINDS[kind])
            else:
                raise FormatError(f"it has {name!a}, expected key and {', '.join(_KINDS)}")
    if key is None:
        raise FormatError("it has no key")
    _check(arrays)
    return key, arrays


def _header(file: Any, size: int, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's header: shape, whether it is stored by columns, and type; raises FormatError."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise FormatError(f"{name} has numpy's format {version}, expected (1, 0)")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or not all(side >= 0 for side in shape):
        raise FormatError(f"{name} is not a plain array")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.itemsize > size:
        raise FormatError(f"{name} claims the shape {shape}, its part has {size} bytes")
    return shape, is_fortran, dtype


def _read_key(file: Any, size: int) -> dict[str, str]:
    shape, _, dtype = _header(file, size, _KEY)
    if shape != () or dtype.kind != "U" or dtype.itemsize > 4 * _MAX_KEY_CHARACTERS:
        raise FormatError(f"its key is {dtype} {shape}, expected a short text")
    content = str(np.frombuffer(_read_exactly(file, dtype.itemsize), dtype)[0])
    found: dict[str, str] = parse(content, _KEY_FORMAT)
    return found


def _read_array(file: Any, size: int, name: str, expected: str, axes: tuple[int, ...]) -> NDArray[Any]:
    shape, is_fortran, dtype = _header(file, size, name)
    if dtype != np.dtype(expected) or len(shape) not in axes:
        raise FormatError(f"{name} is {dtype} {shape}, expected {np.dtype(expected)}")
    count = int(np.prod(shape, dtype=np.int64))
    content = np.frombuffer(_read_exactly(file, count * dtype.itemsize), dtype)
    return content.reshape(shape[::-1]).T if is_fortran else content.reshape(shape)


def _read_exactly(file: BinaryIO, count: int) -> bytearray:
    content = bytearray(count)
    view, at = memoryview(content), 0
    while at < count:
        chunk = file.read(min(count - at, 1 << 20))
        if not chunk:
            raise FormatError("an array is truncated")
        view[at : at + len(chunk)] = chunk
        at += len(chunk)
    if file.read(1):
        raise FormatError("an array is followed by something else")
    return content


def _check(arrays: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Raise FormatError if a value is not finite, a range is not ordered, or a layer is incomplete."""
    for kind, named in arrays.items():
        for name, values in named.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise FormatError(f"{kind}/{name} contains NaN or infinity")
    for name, span in arrays["range"].items():
        if span.shape != (2,) or span[0] > span[1]:
            raise FormatError(f"range/{name} must be two numbers in order")
    layers = {kind: set(arrays[kind]) for kind in ("q", "scale", "bias")}
    if not layers["q"] == layers["scale"] == layers["bias"]:
        raise FormatError("a layer needs all of q, scale and bias")
