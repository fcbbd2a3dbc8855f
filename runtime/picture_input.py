"""What users hand to a ``Segmenter``, as frames: files, URLs, PIL images, arrays, tensors."""

from __future__ import annotations

import sys
from typing import Any

from ..arrays import is_tensor
from ..errors import InputError
from ..images import check_color, tensor_to_bgr, to_bgr
from .sources.base import Frame


def as_frame(picture: Any, color: str | None, stays_on_gpu: bool) -> Any:
    """Return a ``Frame`` as it is, and any other picture as uint8 (H, W, 3) BGR.

    Args:
        picture: see ``tfiseg.segment``, or a ``Frame``.
        color: "rgb", "bgr" or None, see ``images.to_bgr``.
        stays_on_gpu: a tensor on the GPU is converted there; otherwise it is copied to host memory.

    Raises:
        InputError: the picture can't be read or used.
    """
    check_color(color)
    if is_tensor(picture):
        if not (picture.is_cuda and stays_on_gpu):
            return to_bgr(picture, color)
        pixels = tensor_to_bgr(picture, color)
        # the array interface names no stream: who reads the pixels can't wait for torch's
        sys.modules["torch"].cuda.current_stream(pixels.device).synchronize()
        return pixels
    if isinstance(picture, Frame) or hasattr(picture, "__cuda_array_interface__"):
        if color == "rgb":
            raise InputError('frames and arrays on the GPU must be BGR: color="rgb" is for other images')
        return picture
    return to_bgr(picture, color)
