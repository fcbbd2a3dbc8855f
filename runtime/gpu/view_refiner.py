"""Components of a frame looked at on the GPU: views cut and zoomed, the instance network, the operator in the
views, and pieces carried back. Nothing is read back in between, so it is part of the same CUDA graph as the
semantic network."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.native import MapAddresses, ProblemStruct, ResultStruct, fill_struct
from ...plugins.settings import cut_settings
from ...plugins.views import (
    VIEW_COLUMNS,
    PiecesStruct,
    ViewsStruct,
    max_placed_instances,
    views_workspace_bytes,
)
from .clusterer import ON_CUDA, TYPES, DeviceClusterer, check_status
from .cuda import Cuda
from .execution_context import Context, is_capturable, sizes_of

VIEWS = 16  # a frame; 4 of 295 photos need more (docs/benchmarks/instance.md)
MAX_PARTS = 256  # of a component


class ViewNetwork(Protocol):
    """An instance network that runs on the GPU, as far as view refinement needs it."""

    path: Path
    view_px: int
    affinity_offsets: NDArray[np.int32]
    rules: dict[str, NDArray[np.float32]]

    def device_context(self, stream: Any, outlines: bool) -> tuple[Context, dict[str, np.dtype[Any]]]: ...

    def set_up(self) -> None: ...


@dataclass(frozen=True)
class LookSettings:
    """How to look at components. ``wanted``: uint8 (256,), 1 for the classes that are; ``view_count`` views
    at once; ``outlines``: for these as well."""

    network: ViewNetwork
    wanted: NDArray[np.uint8]
    view_count: int = VIEWS
    outlines: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        return *self.views_key, self.wanted.tobytes()

    @property
    def views_key(self) -> tuple[Any, ...]:
        return id(self.network), self.view_count, self.outlines


class DeviceViews:
    """The instance network for a fixed number of views, and the operator that cuts what each view is of: what
    doesn't depend on the frame.

    Args:
        cuda: the GPU. library: with the C API.
        context: of the network. types: of its outputs, by name; maps all of one type.
        settings: how.

    Raises:
        EngineError: the network doesn't take these views, or the operator its maps.
    """

    def __init__(
        self,
        cuda: Cuda,
        library: ctypes.CDLL,
        context: Context,
        types: Mapping[str, np.dtype[Any]],
        settings: LookSettings,
    ) -> None:
        self.settings, self._context, self._library = settings, context, library
        network, views, side = settings.network, settings.view_count, settings.network.view_px
        inputs = {"views": (views, side, side, 3), "masks": (views, side, side)}
        for name, shape in inputs.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{network.path} doesn't take {views} views of {side} px at once")
        self.shapes = {name: (shape, np.dtype(np.uint8)) for name, shape in inputs.items()}
        self.shapes |= {
            name: (sizes_of(context.get_tensor_shape(name)), kind) for name, kind in types.items()
        }
        if types["affinity"] not in TYPES or types["affinity"] != types["boundary"]:
            raise EngineError(
                f"{network.path}: its maps must be all float32 or all float16, got "
                f"{ {n: str(t) for n, t in types.items()} }"
            )
        self.memory = {name: cuda.room(shape, kind) for name, (shape, kind) in self.shapes.items()}
        for name, memory in self.memory.items():
            context.set_tensor_address(name, int(memory))
        self.own = cuda.room(inputs["masks"], np.uint8)
        parts: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": (inputs["masks"], np.int32),
            "count": ((views,), np.int32),
            "regions": ((views,), np.int32),
            "table": ((views, MAX_PARTS, 10), np.float32),
        }
        self.parts = {name: cuda.room(shape, kind) for name, (shape, kind) in parts.items()}
        self._problem = self._problem_of(network, TYPES[types["affinity"]])
        size = int(library.tfiseg_workspace_size(ctypes.byref(self._problem), ON_CUDA))
        if not size:
            raise EngineError(
                f"the operator doesn't take {views} views of {side} px with these maps on a GPU: "
                f"{self.shapes}"
            )
        self._workspace = cuda.allocate(size)
        self._result = ResultStruct(
            struct_size=ctypes.sizeof(ResultStruct),
            **{name: int(memory) for name, memory in self.parts.items()},
            workspace=int(self._workspace),
            workspace_bytes=size,
        )

    def _problem_of(self, network: ViewNetwork, value_type: int) -> ProblemStruct:
        """What each view is of, cut as ``refine.cut_components`` does it on the CPU."""
        (views, side, _), _ = self.shapes["masks"]
        self._settings = cut_settings(network.affinity_offsets, network.rules, MAX_PARTS)
        maps = MapAddresses(
            batch=views,
            grid_hw=(side, side),
            out_hw=(side, side),
            class_map=int(self.own),
            value_type=value_type,
            boundary=int(self.memory["boundary"]),
            boundary_stride=side // self.shapes["boundary"][0][2],
            affinity=int(self.memory["affinity"]),
            affinity_channels=self.shapes["affinity"][0][1],
            affinity_stride=side // self.shapes["affinity"][0][2],
        )
        return fill_struct(maps, self._settings)

    @property
    def is_capturable(self) -> bool:
        """Whether a CUDA graph may hold the network."""
        return is_capturable(self._context)

    def infer(self, stream_handle: int) -> None:
        """Enqueue the network on the rendered views."""
        if not self._context.execute_async_v3(stream_handle):
            raise EngineError(f"{self.settings.network.path}: it could not be run; the log says why")

    def cluster(self, stream_handle: int) -> None:
        """Enqueue the operator on the network's maps."""
        arguments = (ctypes.byref(self._problem), ctypes.byref(self._result), ctypes.c_void_p(stream_handle))
        check_status(self._library, self._library.tfiseg_cluster_cuda(*arguments), "looking")

    def address(self, name: str, k: int) -> int:
        """Where view k's part of what the network was shown ("views") or says lies."""
        shape, kind = self.shapes[name]
        return int(self.memory[name]) + k * int(np.prod(shape[1:])) * kind.itemsize


class DeviceRefiner:
    """Refines components that lie at fixed addresses on the GPU, in ``steps`` that a lane enqueues.

    Args:
        cuda: the GPU.
        views: what looks. wanted: as in its settings.
        frame: address of a frame uint8 (H, W, 3).
        components: what clusters that frame's components, at the frame's size.

    Raises:
        EngineError: a frame or views of a size that the library doesn't take.
    """

    def __init__(
        self,
        cuda: Cuda,
        views: DeviceViews,
        wanted: NDArray[np.uint8],
        frame: int,
        components: DeviceClusterer,
    ) -> None:
        self.views, self._wanted, self._library = views, wanted, components.library
        count, side = views.settings.view_count, views.settings.network.view_px
        (_, height, width), _ = components.shapes["label_map"]
        (_, most, _), _ = components.shapes["table"]
        rows = max_placed_instances(most, count, MAX_PARTS)
        self.shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": ((1, height, width), np.int32),
            "count": ((1,), np.int32),
            "table": ((1, rows, 10), np.float32),
            "component_of": ((rows,), np.int32),
            "views": ((count, len(VIEW_COLUMNS)), np.int32),
        }
        self.memory = {name: cuda.room(shape, kind) for name, (shape, kind) in self.shapes.items()}
        self.shapes["regions"], self.memory["regions"] = ((count,), np.int32), views.parts["regions"]
        self._cut = ViewsStruct(
            struct_size=ctypes.sizeof(ViewsStruct),
            height=height,
            width=width,
            frame=frame,
            label_map=int(components.memory["label_map"]),
            count=int(components.memory["count"]),
            table=int(components.memory["table"]),
            max_components=most,
            wanted=self._wanted.ctypes.data,
            view_count=count,
            view_side=side,
            threads=1,
            views=int(self.memory["views"]),
            images=int(views.memory["views"]),
            masks=int(views.memory["masks"]),
            own=int(views.own),
        )
        size = views_workspace_bytes(self._cut, MAX_PARTS, self._library)
        if not size:
            raise EngineError(
                f"{count} views of {side} px of a frame of {width}x{height}: more than the library takes"
            )
        self._workspace = cuda.allocate(size)
        self._cut.workspace, self._cut.workspace_bytes = int(self._workspace), size
        self._pieces = PiecesStruct(
            struct_size=ctypes.sizeof(PiecesStruct),
            max_parts=MAX_PARTS,
            least_regions=2,
            labels=int(views.parts["label_map"]),
            counts=int(views.parts["count"]),
            regions=int(views.parts["regions"]),
            tables=int(views.parts["table"]),
            **{name: int(self.memory[name]) for name in ("label_map", "count", "table", "component_of")},
        )

    def steps(self, stream_handle: int) -> list[tuple[Callable[[], None], bool]]:
        """What is enqueued after the components are clustered, in order, and whether a graph may hold it."""
        views = self.views
        steps: list[tuple[Callable[[int], None], bool]] = [
            (self._cut_views, True),
            (views.infer, views.is_capturable),
            (views.cluster, True),
            (self._place_pieces, True),
        ]
        return [(functools.partial(step, stream_handle), capturable) for step, capturable in steps]

    def _cut_views(self, stream_handle: int) -> None:
        stream = ctypes.c_void_p(stream_handle)
        status = self._library.tfiseg_cut_views_cuda(ctypes.byref(self._cut), stream)
        check_status(self._library, status, "rendering views")

    def _place_pieces(self, stream_handle: int) -> None:
        arguments = (ctypes.byref(self._cut), ctypes.byref(self._pieces), ctypes.c_void_p(stream_handle))
        check_status(self._library, self._library.tfiseg_place_pieces_cuda(*arguments), "placing parts")
