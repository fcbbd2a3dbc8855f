"""Preprocessing of a frame in GPU memory, by one kernel of libtfiseg_plugin.so.

The nodes in a model's graph (export/frame_graph.py) need several launches, and three float copies of the
frame.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import TfisegError
from .clusterer import cuda_library, enqueue
from .cuda import Cuda, pointer


@dataclass(frozen=True)
class DevicePreprocessing:
    """Preprocessing that a network leaves to its session."""

    input_name: str  # name of the network's input, float32 (1, 3, h, w), 0..255
    # returns the input's size (h, w) for a frame's (H, W), in pixels
    size_hw: Callable[[tuple[int, int]], tuple[int, int]]


class FittedFrame:
    """A frame at a network's size in GPU memory; a CUDA graph can capture ``enqueue``.

    Args:
        frame: address of the frame, uint8 (H, W, 3).
        frame_hw: its size in pixels.
        size_hw: the network's input size in pixels.
    """

    def __init__(self, cuda: Cuda, frame: int, frame_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
        self._library = cuda_library()
        self._frame, self._frame_hw, self._size_hw = frame, frame_hw, size_hw
        self.shape = (1, 3, *size_hw)
        self.memory = cuda.allocate_array(self.shape, np.float32)

    def enqueue(self, stream_handle: int) -> None:
        """Enqueue the kernel on a stream."""
        source = pointer(self._frame), *map(ctypes.c_int32, self._frame_hw)
        result = pointer(int(self.memory)), *map(ctypes.c_int32, self._size_hw)
        fit = self._library.tfiseg_fit_frame_cuda
        enqueue(self._library, fit, stream_handle, *source, *result, what="preprocessing")


def can_fit_frames() -> bool:
    """Return whether libtfiseg_plugin.so is built, and new enough to preprocess frames."""
    try:
        return hasattr(cuda_library(), "tfiseg_fit_frame_cuda")
    except (TfisegError, OSError):  # GpuSession logs the reason
        return False
