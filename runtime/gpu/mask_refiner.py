"""Mask refinement on the GPU, in a CUDA graph of its own.

Between the graph of ``DeviceRefiner`` and this one, the host joins parts and chooses the instances to keep.
It sends their numbers, not their pixels.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...plugins.mask_refinement import MaskRefinementStruct, RefinedMasks
from ...plugins.mask_views import MaskViewsStruct, mask_views_workspace_bytes
from ...plugins.native import VALUE_TYPES, MapAddresses
from ...plugins.settings import ClusterSettings
from ...plugins.views import VIEW_COLUMNS
from .captured_steps import Step
from .clusterer import MAX_GPU_INSTANCES, DeviceClusterer, enqueue
from .cuda import Cuda
from .execution_context import FOREGROUND, Context, is_capturable, run_context, shape_tuple
from .view_refiner import DeviceRefiner, DeviceViews


class DeviceMaskNetwork:
    """The foreground head of the instance network for a fixed number of views.

    Its maps lie behind those of ``views`` in one buffer, as tfiseg_refine_masks_cuda takes them.

    Args:
        views: of the lane; their foreground maps move to the buffer.
        context: another execution context of the network.

    Raises:
        EngineError: the network doesn't support these views.
    """

    def __init__(
        self, cuda: Cuda, views: DeviceViews, context: Context, types: Mapping[str, np.dtype[Any]]
    ) -> None:
        self.views, self.context = views, context
        network, count = views.settings.network, views.settings.view_count
        self.side = side = network.outline_px
        inputs = {"views": (count, side, side, 3), "masks": (count, side, side)}
        for name, shape in inputs.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{network.path} doesn't support {count} views of {side} px per call")
        shapes = {name: shape_tuple(context.get_tensor_shape(name)) for name in types}
        known_shape, kind = views.shapes[FOREGROUND]
        if types[FOREGROUND] != kind or kind not in VALUE_TYPES:
            raise EngineError(
                f"{network.path}: foreground must be float32 or float16, got {kind} and {types[FOREGROUND]}"
            )
        self.value_type = VALUE_TYPES[kind]
        known_bytes = int(np.prod(known_shape)) * kind.itemsize
        self.foreground = cuda.allocate(known_bytes + int(np.prod(shapes[FOREGROUND])) * kind.itemsize)
        views.move_output(FOREGROUND, self.foreground)
        self.memory = {name: cuda.allocate_array(shape, np.uint8) for name, shape in inputs.items()}
        self.memory |= {
            name: cuda.allocate_array(shapes[name], types[name]) for name in types if name != FOREGROUND
        }
        for name, memory in self.memory.items():
            context.set_tensor_address(name, int(memory))
        context.set_tensor_address(FOREGROUND, int(self.foreground) + known_bytes)
        sides = [known_shape[2]] * known_shape[0] + [shapes[FOREGROUND][2]] * count
        self.map_sides = np.array(sides, np.int32)

    def infer(self, stream_handle: int) -> None:
        """Enqueue the network on the rendered views."""
        run_context(self.context, stream_handle, self.views.settings.network.path)


class DeviceMaskRefiner:
    """Refines the masks of instances that consist of a ``DeviceRefiner``'s parts.

    Args:
        frame: address of the frame uint8 (H, W, 3).

    Raises:
        EngineError: the library doesn't support this size of frame.
    """

    def __init__(
        self, cuda: Cuda, stream: Any, network: DeviceMaskNetwork, refiner: DeviceRefiner, frame: int
    ) -> None:
        self._cuda, self._stream, self._network, self._library = cuda, stream, network, refiner.library
        (_, height, width), _ = refiner.shapes["label_map"]
        (_, rows, _), _ = refiner.shapes["table"]
        self._frame_hw, self._parts = (height, width), int(refiner.memory["label_map"])
        self._given = {
            "numbers": cuda.allocate_pinned((rows + 1,), np.int32),
            "classes": cuda.allocate_pinned((rows + 1,), np.uint8),
            "count": cuda.allocate_pinned((1,), np.int32),
            "table": cuda.allocate_pinned((rows, 10), np.float32),
            "map_sides": cuda.allocate_pinned(network.map_sides.shape, np.int32),
        }
        self._given["map_sides"][:] = network.map_sides
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "label_map": ((height, width), np.int32),
            "class_map": ((height, width), np.uint8),
            "views": ((len(network.map_sides), len(VIEW_COLUMNS)), np.int32),
            "refined_map": ((height, width), np.int32),
            "refined_count": ((1,), np.int32),
            "refined_table": ((rows, 10), np.float32),
            "instance_of": ((rows,), np.int32),
        }
        self._memory = {
            name: cuda.allocate_array(array.shape, array.dtype) for name, array in self._given.items()
        }
        self._memory |= {name: cuda.allocate_array(shape, kind) for name, (shape, kind) in shapes.items()}
        outputs = ("refined_map", "refined_count", "refined_table", "instance_of")
        self._found = {name: cuda.allocate_pinned(*shapes[name]) for name in outputs}
        class_map = MapAddresses(
            batch=1, grid_hw=(height, width), out_hw=(height, width), class_map=self._address("class_map")
        )
        settings = ClusterSettings(split=0.0, min_area=0, max_instances=MAX_GPU_INSTANCES)
        self._components = DeviceClusterer(cuda, class_map, settings, {"class_map": (1, height, width)})
        self._views = self._views_struct(frame, refiner)
        self._refinement = self._refinement_struct(rows)

    def _address(self, name: str) -> int:
        return int(self._memory[name])

    def _views_struct(self, frame: int, refiner: DeviceRefiner) -> MaskViewsStruct:
        network, settings = self._network, self._network.views.settings
        struct = MaskViewsStruct(
            height=self._frame_hw[0],
            width=self._frame_hw[1],
            frame=frame,
            **{name: int(self._components.memory[name]) for name in ("label_map", "count", "table")},
            max_components=MAX_GPU_INSTANCES,
            known=int(refiner.memory["views"]),
            known_count=settings.view_count,
            known_side=settings.network.view_px,
            view_count=settings.view_count,
            view_side=network.side,
            threads=1,
            views=self._address("views"),
            images=int(network.memory["views"]),
            masks=int(network.memory["masks"]),
        )
        size = mask_views_workspace_bytes(struct, self._library)
        self._views_workspace = self._cuda.allocate(size)
        struct.workspace, struct.workspace_bytes = int(self._views_workspace), size
        return struct

    def _refinement_struct(self, rows: int) -> MaskRefinementStruct:
        network, components = self._network, self._components.memory
        struct = MaskRefinementStruct(
            height=self._frame_hw[0],
            width=self._frame_hw[1],
            **{name: self._address(name) for name in ("label_map", "count", "table", "views", "map_sides")},
            max_instances=rows,
            max_components=MAX_GPU_INSTANCES,
            component_map=int(components["label_map"]),
            component_count=int(components["count"]),
            component_table=int(components["table"]),
            foreground=int(network.foreground),
            view_count=len(network.map_sides),
            max_map_side=int(network.map_sides.max()),
            value_type=network.value_type,
            threads=1,
            **{name: self._address(name) for name in self._found},
        )
        size = int(self._library.tfiseg_refine_masks_workspace_size(ctypes.byref(struct)))
        if not size:
            raise EngineError(
                f"mask refinement doesn't support {len(network.map_sides)} views of a frame of "
                f"{self._frame_hw[1]}x{self._frame_hw[0]}: set a smaller max_views"
            )
        self._workspace = self._cuda.allocate(size)
        struct.workspace, struct.workspace_bytes = int(self._workspace), size
        return struct

    def give(self, numbers: NDArray[np.int32], table: NDArray[np.float32]) -> None:
        """Set the instances to refine.

        Args:
            numbers: number of the instance of each part, int32 (n + 1,), by the part's label; 0: none.
            table: of the instances, float32 (m, 10), columns ``TABLE_COLUMNS``.
        """
        given, n = self._given, len(numbers)
        given["numbers"][:n], given["numbers"][n:] = numbers, 0
        given["classes"][:n] = np.concatenate([[0], table[:, 0]])[numbers]
        given["count"][0] = len(table)
        given["table"][: len(table)] = table

    def steps(self) -> list[Step]:
        """Return the steps, in order, each with whether a graph can capture it."""
        stream = self._stream.handle
        return [
            (self._upload, True),
            (self._relabel, True),
            (functools.partial(self._components.enqueue, stream), True),
            (self._render_views, True),
            (functools.partial(self._network.infer, stream), is_capturable(self._network.context)),
            (self._refine, True),
            (self._download, True),
        ]

    def found(self) -> RefinedMasks:
        """Return a copy of the result, after the stream has been synchronized."""
        found = self._found
        n = int(found["refined_count"][0])
        return RefinedMasks(
            found["refined_map"].copy(), found["refined_table"][:n].copy(), found["instance_of"][:n].copy()
        )

    def _upload(self) -> None:
        for name, array in self._given.items():
            self._cuda.upload(self._address(name), array, self._stream)

    def _download(self) -> None:
        for name, array in self._found.items():
            self._cuda.download(array, self._address(name), self._stream)

    def _relabel(self) -> None:
        pointers = {name: ctypes.c_void_p(int(memory)) for name, memory in self._memory.items()}
        given = pointers["numbers"], pointers["classes"], len(self._given["numbers"])
        results = pointers["label_map"], pointers["class_map"]
        arguments = ctypes.c_void_p(self._parts), *self._frame_hw, *given, *results
        self._enqueue(self._library.tfiseg_relabel_cuda, *arguments, what="selecting instances")

    def _render_views(self) -> None:
        render = self._library.tfiseg_cut_mask_views_cuda
        self._enqueue(render, self._views, what="rendering views for mask refinement")

    def _refine(self) -> None:
        refine = self._library.tfiseg_refine_masks_cuda
        self._enqueue(refine, self._refinement, what="mask refinement")

    def _enqueue(self, function: Any, *arguments: Any, what: str) -> None:
        enqueue(self._library, function, self._stream.handle, *arguments, what=what)
