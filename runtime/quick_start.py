"""``segment``: an image in, instances out, in one call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from .segmenter import Segmenter

_lock = threading.Lock()
_last: tuple[dict[str, Any], Segmenter] | None = None


def segment(picture: Any, *, color: str | None = None, **options: Any) -> Any:
    """Find the instances of an image.

    The network is loaded on the first call and kept for further calls with the same options. In a loop, and
    for videos, make a ``Segmenter``.

    Args:
        picture: a path, an http, https or file URL, or the bytes of an image file; a PIL image; a numpy array
            uint8 (H, W, 3) or grey (H, W); a torch tensor uint8 (H, W, C) or (C, H, W) on any device; or a
            list of these.
        color: order of channels of arrays and tensors, "rgb" or "bgr"; default: "bgr" for numpy, as OpenCV
            has it, and "rgb" for torch, as torchvision has it.
        **options: see ``Segmenter``, such as ``quality="best"`` or ``things=["person"]``.

    Returns:
        Instances, at the picture's size; a list of them for a list.

    Raises:
        InputError: the picture can't be read or used, or an option is out of range.

    Example:
        >>> instances = tfiseg.segment("street.jpg")
        >>> print(instances)
    """
    return _segmenter_for(options)(picture, color)


def _segmenter_for(options: dict[str, Any]) -> Segmenter:
    """The last segmenter, if it has these options; else a new one."""
    global _last
    options = {name: _own_copy(value) for name, value in options.items()}
    with _lock:
        if _last is None or _last[0] != options:
            _last = None  # frees the old network before the new one is loaded
            _last = options, Segmenter(**options)
        return _last[1]


def _own_copy(value: Any) -> Any:
    """Return a value that later changes by the caller do not reach, and that compares with one bool."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, str | os.PathLike):
        return tuple(value)
    return value
