"""Refinement of components on the GPU.

Views are rendered, the instance network and the operator run on them, and the parts are placed in the frame.
Nothing is copied to the host in between, so one CUDA graph holds these steps and the semantic network.
"""

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
from ...plugins.native import VALUE_TYPES, MapAddresses, ProblemStruct, ResultStruct, fill_struct
from ...plugins.settings import cut_settings
from ...plugins.views import (
    VIEW_COLUMNS,
    PiecesStruct,
    ViewsStruct,
    max_placed_instances,
    views_workspace_bytes,
)
from .captured_steps import Step
from .clusterer import ON_CUDA, DeviceClusterer, enqueue
from .cuda import Cuda
from .execution_context import Context, is_capturable, run_context, shape_tuple

DEFAULT_VIEWS = 16  # per frame; 4 of 295 photos need more (docs/reference/instance-network.md)
MAX_PARTS = 256  # per component


class ViewNetwork(Protocol):
    """What view refinement needs of an instance network on the GPU."""

    path: Path
    view_px: int
    outline_px: int
    affinity_offsets: NDArray[np.int32]
    rules: dict[str, NDArray[np.float32]]

    def device_context(
        self, stream: Any, outputs: tuple[str, ...]
    ) -> tuple[Context, dict[str, np.dtype[Any]]]: ...

    def set_up(self) -> None: ...


@dataclass(frozen=True)
class ViewSettings:
    """Settings of view refinement."""

    network: ViewNetwork
    thing_flags: NDArray[np.uint8]  # 1 for the classes to refine, uint8 (256,)
    view_count: int = DEFAULT_VIEWS  # views per frame
    outlines: bool = False  # also predict foreground maps, for mask refinement

    @property
    def key(self) -> tuple[Any, ...]:
        """Identify the settings."""
        return *self.views_key, self.thing_flags.tobytes()

    @property
    def views_key(self) -> tuple[Any, ...]:
        """Identify the settings on which ``DeviceViews`` depends."""
        return id(self.network), self.view_count, self.outlines


class DeviceViews:
    """The instance network and the operator for a fixed number of views.

    Args:
        types: output name -> dtype; all maps have one dtype.

    Raises:
        EngineError: the network doesn't support these views, or the operator its maps.
    """

    def __init__(
        self,
        cuda: Cuda,
        library: ctypes.CDLL,
        context: Context,
        types: Mapping[str, np.dtype[Any]],
        settings: ViewSettings,
    ) -> None:
        self.settings, self.context, self._library = settings, context, library
        network, views, side = settings.network, settings.view_count, settings.network.view_px
        inputs = {"views": (views, side, side, 3), "masks": (views, side, side)}
        for name, shape in inputs.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{network.path} doesn't support {views} views of {side} px per call")
        self.shapes = {name: (shape, np.dtype(np.uint8)) for name, shape in inputs.items()}
        self.shapes |= {
            name: (shape_tuple(context.get_tensor_shape(name)), kind) for name, kind in types.items()
        }
        if types["affinity"] not in VALUE_TYPES or types["affinity"] != types["boundary"]:
            raise EngineError(
                f"{network.path}: its maps must be all float32 or all float16, got "
                f"{ {n: str(t) for n, t in types.items()} }"
            )
        self.memory = {name: cuda.allocate_array(shape, kind) for name, (shape, kind) in self.shapes.items()}
        for name, memory in self.memory.items():
            context.set_tensor_address(name, int(memory))
        self.own = cuda.allocate_array(inputs["masks"], np.uint8)
        self.part_shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": (inputs["masks"], np.int32),
            "count": ((views,), np.int32),
            "regions": ((views,), np.int32),
            "table": ((views, MAX_PARTS, 10), np.float32),
        }
        self.parts = {
            name: cuda.allocate_array(shape, kind) for name, (shape, kind) in self.part_shapes.items()
        }
        self._problem = self._operator_problem(network, VALUE_TYPES[types["affinity"]])
        size = int(library.tfiseg_workspace_size(ctypes.byref(self._problem), ON_CUDA))
        if not size:
            raise EngineError(
                f"the operator doesn't support {views} views of {side} px with these maps on a GPU: "
                f"{self.shapes}"
            )
        self._workspace = cuda.allocate(size)
        addresses = {name: int(memory) for name, memory in self.parts.items()}
        self._result = ResultStruct(**addresses, workspace=int(self._workspace), workspace_bytes=size)

    def _operator_problem(self, network: ViewNetwork, value_type: int) -> ProblemStruct:
        """Return the arguments of the operator, as ``refine.refiner.split_components`` sets them."""
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

    def infer(self, stream_handle: int) -> None:
        """Enqueue the network on the rendered views."""
        run_context(self.context, stream_handle, self.settings.network.path)

    def cluster(self, stream_handle: int) -> None:
        """Enqueue the operator on the network's maps."""
        cluster = self._library.tfiseg_cluster_cuda
        enqueue(self._library, cluster, stream_handle, self._problem, self._result, what="clustering views")

    def move_output(self, name: str, memory: Any) -> None:
        """Let the network write an output to other device memory."""
        self.memory[name] = memory
        self.context.set_tensor_address(name, int(memory))

    def address(self, name: str, k: int) -> int:
        """Return the address of view k in an input or output of the network, such as "views"."""
        shape, kind = self.shapes[name]
        return int(self.memory[name]) + k * int(np.prod(shape[1:])) * kind.itemsize


class DeviceRefiner:
    """Refines components at fixed addresses on the GPU, in ``steps`` that a lane enqueues.

    Args:
        thing_flags: 1 for the classes to refine, uint8 (256,).
        frame: address of a frame uint8 (H, W, 3).
        components: the operator that finds the components, at the frame's size.

    Raises:
        EngineError: the library doesn't support this size of frame or views.
    """

    def __init__(
        self,
        cuda: Cuda,
        views: DeviceViews,
        thing_flags: NDArray[np.uint8],
        frame: int,
        components: DeviceClusterer,
    ) -> None:
        self.views, self._thing_flags, self.library = views, thing_flags, components.library
        count, side = views.settings.view_count, views.settings.network.view_px
        (_, height, width), _ = components.shapes["label_map"]
        (_, max_components, _), _ = components.shapes["table"]
        rows = max_placed_instances(max_components, count, MAX_PARTS)
        self.shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": ((1, height, width), np.int32),
            "count": ((1,), np.int32),
            "table": ((1, rows, 10), np.float32),
            "component_of": ((rows,), np.int32),
            "views": ((count, len(VIEW_COLUMNS)), np.int32),
        }
        self.memory = {name: cuda.allocate_array(shape, kind) for name, (shape, kind) in self.shapes.items()}
        for name, part in {"regions": "regions", "view_counts": "count", "view_tables": "table"}.items():
            self.shapes[name], self.memory[name] = views.part_shapes[part], views.parts[part]
        self._view_problem = ViewsStruct(
            height=height,
            width=width,
            frame=frame,
            label_map=int(components.memory["label_map"]),
            count=int(components.memory["count"]),
            table=int(components.memory["table"]),
            max_components=max_components,
            wanted=self._thing_flags.ctypes.data,
            view_count=count,
            view_side=side,
            threads=1,
            views=int(self.memory["views"]),
            images=int(views.memory["views"]),
            masks=int(views.memory["masks"]),
            own=int(views.own),
        )
        size = views_workspace_bytes(self._view_problem, MAX_PARTS, self.library)
        if not size:
            raise EngineError(
                f"{count} views of {side} px of a frame of {width}x{height} are more than the library "
                "supports: set a smaller max_views"
            )
        self._workspace = cuda.allocate(size)
        self._view_problem.workspace, self._view_problem.workspace_bytes = int(self._workspace), size
        self._parts_problem = PiecesStruct(
            max_parts=MAX_PARTS,
            least_regions=2,
            labels=int(views.parts["label_map"]),
            counts=int(views.parts["count"]),
            regions=int(views.parts["regions"]),
            tables=int(views.parts["table"]),
            **{name: int(self.memory[name]) for name in ("label_map", "count", "table", "component_of")},
        )

    def steps(self, stream_handle: int) -> list[Step]:
        """Return the steps after clustering, in order, each with whether a graph can capture it."""
        views = self.views
        steps: list[tuple[Callable[[int], None], bool]] = [
            (self._render_views, True),
            (views.infer, is_capturable(views.context)),
            (views.cluster, True),
            (self._place_parts, True),
        ]
        return [(functools.partial(step, stream_handle), capturable) for step, capturable in steps]

    def _render_views(self, stream_handle: int) -> None:
        render = self.library.tfiseg_cut_views_cuda
        enqueue(self.library, render, stream_handle, self._view_problem, what="rendering views")

    def _place_parts(self, stream_handle: int) -> None:
        place, problems = self.library.tfiseg_place_pieces_cuda, (self._view_problem, self._parts_problem)
        enqueue(self.library, place, stream_handle, *problems, what="placing parts")
