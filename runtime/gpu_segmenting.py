"""A segmenter's path on the GPU: network, clustering and refinement in one CUDA graph."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..instances import Instances, instances_from_table
from ..plugins.operator import warn_if_merging_stopped
from ..plugins.settings import MIN_AREA_PX, ClusterSettings, thing_flags
from .gpu.refined_frame import RefinedFrame
from .gpu.view_refiner import DEFAULT_VIEWS, ViewSettings
from .networks.gpu_session import GpuSession, upsample_clustering
from .networks.multi_scale import MultiScaleSession
from .refine.mask_refinement import Foregrounds, instance_table, part_numbers, with_refined_masks
from .refine.refiner import Refiner
from .sources.base import Frame, check_image

if TYPE_CHECKING:
    from .segmenter import Segmenter


class GpuRoute:
    """Finds the instances of frames on the GPU.

    Args:
        segmenter: whose session, refiner and settings are read at each frame.
        max_views: views per frame in the CUDA graph; default: 16.
    """

    def __init__(self, segmenter: Segmenter, max_views: int | None) -> None:
        self._segmenter = segmenter
        self._max_views = max_views or DEFAULT_VIEWS
        self.reason_for_cpu = self._reason_for_cpu()
        # without components, masks have no views in the graph
        self.refines_masks = (
            self.reason_for_cpu is None and segmenter.refiner is not None and segmenter.refines_masks
        )

    def _reason_for_cpu(self) -> str | None:
        """Return why a step that needs the frame runs on the CPU; None if no step does."""
        session, refiner = self._segmenter.session, self._segmenter.refiner
        if not isinstance(session, GpuSession):
            if isinstance(session, MultiScaleSession):
                return "several passes are averaged on the CPU"
            return f"{session.path} runs on the CPU"
        if not session.clusters:
            return "clustering runs on the CPU"
        if refiner is None:
            return None
        network, reason = refiner.session, None
        if refiner.thorough:
            reason = "exhaustive refinement is planned step by step"
        elif not network.on_gpu:
            reason = f"{network.path} runs there; `tfiseg build` makes an engine of it, for instance_model"
        elif network.max_batch is not None and network.max_batch < self._max_views:
            reason = (
                f"{network.path} takes {network.max_batch} views at once, not {self._max_views}: build it "
                "without --batch, or set max_views"
            )
        return reason and f"components are refined on the CPU ({reason})"

    def segment(self, session: GpuSession, frame: Frame | NDArray[np.uint8]) -> Instances:
        """Return the instances of a frame; with ``refines_masks``, their masks are refined.

        The frame may already be on the GPU (``__cuda_array_interface__``).
        """
        image = frame.image if isinstance(frame, Frame) else frame
        if not hasattr(image, "__cuda_array_interface__"):
            image = check_image(image)
        size_hw = (int(image.shape[0]), int(image.shape[1]))
        segmenter = self._segmenter
        if segmenter.refiner is not None:
            return self._refine(session, segmenter.refiner, image, size_hw)
        found = session.cluster(image, segmenter.cluster_settings(size_hw))
        label_map, semantic_map, table = found.label_map[0], found.semantic_map[0], found.table[0]
        if label_map.shape != size_hw:  # an operator inside the engine has a grid of its own
            label_map, semantic_map, table = upsample_clustering(label_map, semantic_map, table, size_hw)
        warn_if_merging_stopped(found.table[0])
        instances = instances_from_table(label_map, semantic_map, table, class_names=segmenter.class_names)
        return segmenter.filter_instances(instances, size_hw)

    def _refine(
        self, session: GpuSession, refiner: Refiner, image: Any, size_hw: tuple[int, int]
    ) -> Instances:
        """Refine components and masks in graphs; joins, and frames with a crowd, on the CPU."""
        segmenter = self._segmenter
        host_image: Any = image
        known: Foregrounds = {}
        with session.refine(
            image, self._component_settings(size_hw), self._view_settings(refiner)
        ) as refined:
            began = time.perf_counter()
            excluded = refined.components[~np.isin(refined.components[:, 0], segmenter.things), 6]
            largest = int(excluded.max(initial=0))
            crowd = refiner.holds_crowd(refined, segmenter.things)
            on_cpu = self.refines_masks and (crowd or refined.refine_masks is None)
            if crowd or (on_cpu and hasattr(image, "__cuda_array_interface__")):
                host_image = refined.frame()
            if not crowd:
                fetched = refiner.fetch(refined, outlines=on_cpu)
                found, known = refiner.join(refined, fetched, segmenter.class_names), fetched.foregrounds
                found = replace(found, stage_ms={"merge": (time.perf_counter() - began) * 1e3})
                found = segmenter.filter_instances(found, size_hw, largest_excluded_area_px=largest)
                if self.refines_masks and not on_cpu:
                    return _refine_masks(refined, found)
        if crowd:
            found, known = self._split_crowds(refiner, refined, host_image, began)
            found = segmenter.filter_instances(found, size_hw, largest_excluded_area_px=largest)
        return refiner.outlined(host_image, found, known) if on_cpu else found

    def _split_crowds(
        self, refiner: Refiner, refined: RefinedFrame, image: NDArray[np.uint8], began: float
    ) -> tuple[Instances, Foregrounds]:
        """Refine a frame with a crowd again, on the CPU."""
        components = refiner.components_of(refined, self._segmenter.class_names)
        components = components.select(np.isin(components.class_id, self._segmenter.things))
        crowds_ms = (time.perf_counter() - began) * 1e3
        found, known = refiner.refine(image, components, outlines=self.refines_masks)
        crowds_ms += found.stage_ms.get("crowds", 0.0)
        return replace(found, stage_ms={**found.stage_ms, "crowds": crowds_ms}), known

    def _view_settings(self, refiner: Refiner) -> ViewSettings:
        segmenter = self._segmenter
        return ViewSettings(
            refiner.session, thing_flags(segmenter.things), self._max_views, segmenter.refines_masks
        )

    def _component_settings(self, size_hw: tuple[int, int]) -> ClusterSettings:
        """Return settings that find all connected components, also small ones."""
        settings = self._segmenter.cluster_settings(size_hw)
        return settings.components(min(MIN_AREA_PX, settings.min_area))


def _refine_masks(refined: RefinedFrame, instances: Instances) -> Instances:
    """Refine masks in the second graph of a frame."""
    if not len(instances) or refined.refine_masks is None:
        return instances
    began = time.perf_counter()
    numbers = part_numbers(refined.parts, instances)
    found = with_refined_masks(instances, refined.refine_masks(numbers, instance_table(instances)))
    outlines_ms = (time.perf_counter() - began) * 1e3
    return replace(found, stage_ms={**instances.stage_ms, "outlines": outlines_ms})
