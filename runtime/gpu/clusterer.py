"""The clustering operator on the GPU, right behind the network, through the C API of libtfiseg_plugin.so."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.native import ProblemStruct, ResultStruct, hidden_units, load_library
from ...plugins.plugin_library import plugin_path
from ...plugins.problem import CENTRE_RADIUS, MERGE_AFFINITY
from .cuda import Cuda

ON_CUDA = 1
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}  # tfiseg_value_type
MOST_INSTANCES = 1024  # a frame; the table is copied back whole


@dataclass(frozen=True)
class Asked:
    """How to cluster one frame's maps: see ``plugins/problem.py``. ``key`` tells two of them apart."""

    out_hw: tuple[int, int]
    things: NDArray[np.uint8]
    split: NDArray[np.float64]
    min_area: int
    max_instances: int
    affinity_offsets: NDArray[np.int32]
    merge_rule: NDArray[np.float32] | None
    part_rule: NDArray[np.float32] | None = None
    sharpen: int = 0

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        rules = (b"" if rule is None else rule.tobytes() for rule in (self.merge_rule, self.part_rule))
        arrays = (self.things.tobytes(), self.split.tobytes(), self.affinity_offsets.tobytes(), *rules)
        return (self.out_hw, self.min_area, self.max_instances, self.sharpen, *arrays)


@functools.cache
def cuda_library() -> ctypes.CDLL:
    """libtfiseg_plugin.so; raises TfisegError where it isn't built, or is another version's."""
    return load_library(plugin_path(), "`tfiseg plugin build --force`")


class DeviceClusterer:
    """Clusters maps that lie at fixed addresses on the GPU; ``enqueue`` may be captured in a CUDA graph.

    Args:
        cuda: the GPU.
        maps: name -> (address, shape (1, channels, h, w), float32 or float16), all of one type.
        asked: how.

    Raises:
        EngineError: maps that the operator doesn't take.
    """

    def __init__(
        self, cuda: Cuda, maps: Mapping[str, tuple[int, tuple[int, ...], np.dtype[Any]]], asked: Asked
    ) -> None:
        self._asked, self.library = asked, cuda_library()
        address, (n, classes, h, w), dtype = maps["logits"]
        affinity = maps.get("affinity")
        boundary = maps.get("boundary")
        boundary_stride = -(-h // boundary[1][2]) if boundary else 1
        if boundary and boundary[1][-2:] != (-(-h // boundary_stride), -(-w // boundary_stride)):
            raise EngineError(
                f"a boundary of {boundary[1][-2:]} beside logits of {(h, w)}: it must be an integer factor smaller"
            )
        out_h, out_w = asked.out_hw
        merge_rule, part_rule = (
            asked.merge_rule if affinity else None,
            asked.part_rule if affinity and boundary else None,
        )
        self._problem = ProblemStruct(
            struct_size=ctypes.sizeof(ProblemStruct),
            batch=n,
            height=h,
            width=w,
            out_height=out_h,
            out_width=out_w,
            logits=address,
            classes=classes,
            value_type=TYPES[dtype],
            displacement=maps["displacement"][0] if "displacement" in maps else None,
            boundary=boundary[0] if boundary else None,
            affinity=affinity[0] if affinity else None,
            affinity_offsets_yx=asked.affinity_offsets.ctypes.data,
            affinity_channels=affinity[1][1] if affinity else 0,
            affinity_stride=-(-h // affinity[1][2]) if affinity else 1,
            boundary_stride=boundary_stride,
            things=asked.things.ctypes.data,
            split=asked.split.ctypes.data,
            merge_affinity=MERGE_AFFINITY,
            centre_radius=CENTRE_RADIUS,
            min_area=asked.min_area,
            max_instances=asked.max_instances,
            threads=1,
            evidence_hidden=hidden_units(merge_rule),
            evidence_rule=None if merge_rule is None else merge_rule.ctypes.data,
            sharpen=asked.sharpen if boundary else 0,
            part_hidden=hidden_units(part_rule),
            part_rule=None if part_rule is None else part_rule.ctypes.data,
        )
        size = int(self.library.tfiseg_workspace_size(ctypes.byref(self._problem), ON_CUDA))
        if not size:
            raise EngineError(
                f"the operator doesn't take these maps on a GPU: { ({k: v[1] for k, v in maps.items()}) }"
            )
        self.shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": ((n, out_h, out_w), np.int32),
            "semantic_map": ((n, out_h, out_w), np.uint8),
            "count": ((n,), np.int32),
            "regions": ((n,), np.int32),
            "table": ((n, asked.max_instances, 10), np.float32),
        }
        self.memory = {name: cuda.room(shape, kind) for name, (shape, kind) in self.shapes.items()}
        self._workspace = cuda.allocate(size)
        self._result = ResultStruct(
            struct_size=ctypes.sizeof(ResultStruct),
            **{name: int(memory) for name, memory in self.memory.items()},
            workspace=int(self._workspace),
            workspace_bytes=size,
        )

    def enqueue(self, stream_handle: int) -> None:
        """Cluster on this stream; nothing is read back."""
        status = self.library.tfiseg_cluster_cuda(
            ctypes.byref(self._problem), ctypes.byref(self._result), ctypes.c_void_p(stream_handle)
        )
        check_status(self.library, status, "clustering")


def check_status(library: ctypes.CDLL, status: int, what: str) -> None:
    """Raises EngineError where the C API says that something went wrong."""
    if status:
        raise EngineError(
            f"{what} on the GPU failed: {library.tfiseg_status_string(status).decode()} (status {status})"
        )
