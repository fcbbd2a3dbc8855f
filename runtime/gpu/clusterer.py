"""The clustering operator on device memory, through the C API of libtfiseg_plugin.so."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import EngineError
from ...plugins.native import VALUE_TYPES, MapAddresses, ResultStruct, fill_struct, load_library
from ...plugins.plugin_library import plugin_path
from ...plugins.problem import map_strides
from ...plugins.settings import ClusterSettings
from .cuda import Cuda

ON_CUDA = 1
MAX_GPU_INSTANCES = 1024  # per frame; the whole table is copied back


@functools.cache
def cuda_library() -> ctypes.CDLL:
    """Load libtfiseg_plugin.so. Raises TfisegError if it can't be used."""
    return load_library(plugin_path(), "`tfiseg plugin build --force`")


class DeviceClusterer:
    """Clusters maps at fixed addresses on the GPU; a CUDA graph can capture ``enqueue``.

    Args:
        settings: of the operator. Rules for missing maps are ignored, and ``max_instances`` is limited to
            ``MAX_GPU_INSTANCES``.

    Raises:
        EngineError: the operator doesn't support these maps.
    """

    def __init__(
        self,
        cuda: Cuda,
        addresses: MapAddresses,
        settings: ClusterSettings,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._cuda, self.library = cuda, cuda_library()
        settings = settings.for_maps(addresses.affinity is not None, addresses.boundary is not None)
        self._settings = replace(settings, max_instances=min(settings.max_instances, MAX_GPU_INSTANCES))
        self._problem = fill_struct(addresses, self._settings)
        self._allocate(addresses.batch, addresses.out_hw, shapes)

    @classmethod
    def of_maps(
        cls,
        cuda: Cuda,
        maps: Mapping[str, tuple[int, tuple[int, ...], np.dtype[Any]]],
        settings: ClusterSettings,
        out_hw: tuple[int, int],
    ) -> DeviceClusterer:
        """Cluster the maps of a network.

        Args:
            cuda, settings: see the class.
            maps: name -> (address, shape (1, channels, h, w), float32 or float16), all of one type.
            out_hw: size of the label map in pixels.
        """
        address, (n, classes, h, w), dtype = maps["logits"]
        affinity = maps.get("affinity")
        boundary = maps.get("boundary")
        strides = map_strides({name: m[1] for name, m in maps.items()}, len(settings.affinity_offsets))
        addresses = MapAddresses(
            batch=n,
            grid_hw=(h, w),
            out_hw=out_hw,
            logits=address,
            classes=classes,
            value_type=VALUE_TYPES[dtype],
            displacement=maps["displacement"][0] if "displacement" in maps else None,
            boundary=boundary[0] if boundary else None,
            boundary_stride=strides.get("boundary", 1),
            affinity=affinity[0] if affinity else None,
            affinity_channels=affinity[1][1] if affinity else 0,
            affinity_stride=strides.get("affinity", 1),
        )
        return cls(cuda, addresses, settings, {name: shape for name, (_, shape, _) in maps.items()})

    def _allocate(self, n: int, out_hw: tuple[int, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate the results and the workspace."""
        size = int(self.library.tfiseg_workspace_size(ctypes.byref(self._problem), ON_CUDA))
        if not size:
            raise EngineError(f"the operator doesn't support these maps on a GPU: {dict(shapes)}")
        self.shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": ((n, *out_hw), np.int32),
            "semantic_map": ((n, *out_hw), np.uint8),
            "count": ((n,), np.int32),
            "regions": ((n,), np.int32),
            "table": ((n, self._settings.max_instances, 10), np.float32),
        }
        self.memory = {
            name: self._cuda.allocate_array(shape, kind) for name, (shape, kind) in self.shapes.items()
        }
        self._workspace = self._cuda.allocate(size)
        addresses = {name: int(memory) for name, memory in self.memory.items()}
        self._result = ResultStruct(**addresses, workspace=int(self._workspace), workspace_bytes=size)

    def enqueue(self, stream_handle: int) -> None:
        """Enqueue the operator on a stream; nothing is copied to the host."""
        cluster = self.library.tfiseg_cluster_cuda
        enqueue(self.library, cluster, stream_handle, self._problem, self._result, what="clustering")


def enqueue(library: ctypes.CDLL, function: Any, stream_handle: int, *arguments: Any, what: str) -> None:
    """Call a function of the C API on a stream; raises EngineError, with ``what`` as the failed step.

    Structures are passed by reference.
    """
    given = (ctypes.byref(one) if isinstance(one, ctypes.Structure) else one for one in arguments)
    status = function(*given, ctypes.c_void_p(stream_handle))
    if status:
        raise EngineError(
            f"{what} on the GPU failed: {library.tfiseg_status_string(status).decode()} (status {status})"
        )
