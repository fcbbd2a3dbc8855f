"""Components of a frame looked at on the GPU: views cut and zoomed, the instance network, the operator in the views, and pieces carried
back. Nothing is read back in between, so it is part of the same CUDA graph as the semantic network."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..plugins.native import ProblemStruct, ResultStruct, hidden_units
from ..plugins.operator import SHARPEN, split_table, thing_flags
from ..plugins.problem import CENTRE_RADIUS, MERGE_AFFINITY
from ..plugins.views import VIEW_COLUMNS, PiecesStruct, ViewsStruct, pieces_room, views_workspace_bytes
from .cuda import Cuda
from .device_cluster import ON_CUDA, TYPES, DeviceClusterer

if TYPE_CHECKING:
    from .instance_session import InstanceSession

VIEWS = 16  # a frame; 4 of 295 photos need more (docs/benchmarks/instance.md)
_MAX_PARTS = 64  # of a component


@dataclass(frozen=True)
class Looks:
    """How to look at components. ``wanted``: uint8 (256,), 1 for the classes that are; ``view_count`` views at once; ``outlines``: for
    these as well."""

    network: InstanceSession
    wanted: NDArray[np.uint8]
    view_count: int = VIEWS
    outlines: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        return id(self.network), self.wanted.tobytes(), self.view_count, self.outlines


class DeviceRefiner:
    """Looks at components that lie at fixed addresses on the GPU; ``enqueue`` may be captured in a CUDA graph.

    Args:
        cuda: the GPU.
        context: of the instance network. types: of its outputs, by name; maps all of one type.
        frame: address of a frame uint8 (H, W, 3).
        components: what clusters that frame's components, at the frame's size.
        looks: how.

    Raises:
        EngineError: the network doesn't take these views, or the operator its maps.
    """

    def __init__(
        self, cuda: Cuda, context: Any, types: Mapping[str, np.dtype[Any]], frame: int, components: DeviceClusterer, looks: Looks
    ) -> None:
        self._context, self._library, self._looks = context, components.library, looks
        network, views, side = looks.network, looks.view_count, looks.network.view_px
        self._inputs = {"views": (views, side, side, 3), "masks": (views, side, side)}
        self._set_shapes()
        shapes = {name: tuple(int(s) for s in context.get_tensor_shape(name)) for name in types}
        self.shown_shapes = {"views": (self._inputs["views"], np.dtype(np.uint8)), **{n: (shapes[n], types[n]) for n in types}}

        def room(shape: Sequence[int], kind: Any) -> Any:
            return cuda.allocate(int(np.prod(shape)) * np.dtype(kind).itemsize)

        self._network_memory = {name: room(shape, np.uint8) for name, shape in self._inputs.items()}
        self._network_memory |= {name: room(shapes[name], types[name]) for name in types}
        (_, height, width), _ = components.shapes["label_map"]
        (_, most, _), _ = components.shapes["table"]
        rows = pieces_room(most, views, _MAX_PARTS)
        self.shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": ((1, height, width), np.int32),
            "count": ((1,), np.int32),
            "table": ((1, rows, 10), np.float32),
            "component_of": ((rows,), np.int32),
            "views": ((views, len(VIEW_COLUMNS)), np.int32),
        }
        self.memory = {name: room(shape, kind) for name, (shape, kind) in self.shapes.items()}
        self._own = room(self._inputs["masks"], np.uint8)
        parts_shapes = {"label_map": (self._inputs["masks"], 4), "count": ((views,), 4), "regions": ((views,), 4)}
        parts_shapes["table"] = ((views, _MAX_PARTS, 10), 4)
        self._parts = {name: cuda.allocate(int(np.prod(shape)) * size) for name, (shape, size) in parts_shapes.items()}
        self._views = ViewsStruct(
            struct_size=ctypes.sizeof(ViewsStruct),
            height=height,
            width=width,
            frame=frame,
            label_map=int(components.memory["label_map"]),
            count=int(components.memory["count"]),
            table=int(components.memory["table"]),
            max_components=most,
            wanted=looks.wanted.ctypes.data,
            view_count=views,
            view_side=side,
            threads=1,
            views=int(self.memory["views"]),
            images=int(self._network_memory["views"]),
            masks=int(self._network_memory["masks"]),
            own=int(self._own),
        )
        self._problem = self._problem_of(network, shapes, types)
        sizes = (
            views_workspace_bytes(self._views, _MAX_PARTS, self._library),
            int(self._library.tfiseg_workspace_size(ctypes.byref(self._problem), ON_CUDA)),
        )
        if not all(sizes):
            raise EngineError(f"the operator doesn't take {views} views of {side} px with these maps on a GPU: {shapes}")
        self._workspace = cuda.allocate(max(sizes))  # one after the other on one stream
        self._views.workspace, self._views.workspace_bytes = int(self._workspace), max(sizes)
        self._result = ResultStruct(
            struct_size=ctypes.sizeof(ResultStruct),
            **{name: int(memory) for name, memory in self._parts.items()},
            workspace=int(self._workspace),
            workspace_bytes=max(sizes),
        )
        self._pieces = PiecesStruct(
            struct_size=ctypes.sizeof(PiecesStruct),
            max_parts=_MAX_PARTS,
            least_regions=2,
            labels=int(self._parts["label_map"]),
            counts=int(self._parts["count"]),
            regions=int(self._parts["regions"]),
            tables=int(self._parts["table"]),
            **{name: int(self.memory[name]) for name in ("label_map", "count", "table", "component_of")},
        )

    def _problem_of(
        self, network: InstanceSession, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, np.dtype[Any]]
    ) -> ProblemStruct:
        """What each view is of, cut as ``refine.cut_views`` does it on the CPU."""
        views, side, _ = self._inputs["masks"]
        self._things, self._split = thing_flags(None), split_table("auto")  # the structure points to them
        merge_rule, part_rule = network.rules.get("merge"), network.rules.get("part")
        return ProblemStruct(
            struct_size=ctypes.sizeof(ProblemStruct),
            batch=views,
            height=side,
            width=side,
            out_height=side,
            out_width=side,
            class_map=int(self._own),
            value_type=TYPES[types["affinity"]],
            boundary=int(self._network_memory["boundary"]),
            boundary_stride=side // shapes["boundary"][2],
            affinity=int(self._network_memory["affinity"]),
            affinity_offsets_yx=network.affinity_offsets.ctypes.data,
            affinity_channels=shapes["affinity"][1],
            affinity_stride=side // shapes["affinity"][2],
            things=self._things.ctypes.data,
            split=self._split.ctypes.data,
            merge_affinity=MERGE_AFFINITY,
            centre_radius=CENTRE_RADIUS,
            min_area=0,
            max_instances=_MAX_PARTS,
            threads=1,
            evidence_hidden=hidden_units(merge_rule),
            evidence_rule=None if merge_rule is None else merge_rule.ctypes.data,
            sharpen=SHARPEN,
            part_hidden=hidden_units(part_rule),
            part_rule=None if part_rule is None else part_rule.ctypes.data,
        )

    def _set_shapes(self) -> None:
        for name, shape in self._inputs.items():
            if not self._context.set_input_shape(name, shape):
                raise EngineError(f"{self._looks.network.path} doesn't take {shape[0]} views of {shape[1]} px at once")

    def bind(self) -> None:
        """Let the network's context work on this memory."""
        self._set_shapes()
        for name, memory in self._network_memory.items():
            self._context.set_tensor_address(name, int(memory))

    def enqueue(self, stream_handle: int) -> None:
        """Look, behind what clusters the components, on this stream; nothing is read back."""
        stream = ctypes.c_void_p(stream_handle)
        self._check(self._library.tfiseg_cut_views_cuda(ctypes.byref(self._views), stream))
        if not self._context.execute_async_v3(stream_handle):
            raise EngineError(f"{self._looks.network.path}: it could not be run; the log says why")
        self._check(self._library.tfiseg_cluster_cuda(ctypes.byref(self._problem), ctypes.byref(self._result), stream))
        self._check(self._library.tfiseg_place_pieces_cuda(ctypes.byref(self._views), ctypes.byref(self._pieces), stream))

    def _check(self, status: int) -> None:
        if status:
            raise EngineError(f"looking on the GPU failed: {self._library.tfiseg_status_string(status).decode()} (status {status})")

    def address(self, name: str, k: int) -> int:
        """Where view k's part of what the network was shown ("views") or says lies."""
        shape, kind = self.shown_shapes[name]
        return int(self._network_memory[name]) + k * int(np.prod(shape[1:])) * kind.itemsize
