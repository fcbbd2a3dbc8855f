"""The GPU route of a ``Segmenter``: network, clustering and, with ``refine="components"``, refinement of each
region in one CUDA graph."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..instances import Instances, instances_from_table
from ..plugins.settings import MIN_AREA_PX, ClusterSettings, thing_flags
from .gpu.view_refiner import VIEWS, LookSettings
from .networks.gpu_session import GpuSession, enlarged
from .networks.multi_scale import MultiScaleSession
from .refine.mask_refinement import Foregrounds
from .refine.refiner import Refiner
from .sources.base import Frame, check_image

if TYPE_CHECKING:
    from .segmenter import Segmenter


class GpuRoute:
    """Finds instances of frames on the GPU.

    Args:
        segmenter: its session, refiner and settings are read at each frame.
        max_views: views per frame in the CUDA graph; default: 16.
    """

    def __init__(self, segmenter: Segmenter, max_views: int | None) -> None:
        self._segmenter = segmenter
        self._max_views = max_views or VIEWS
        self.reason_for_cpu = self._reason_for_cpu()

    def _reason_for_cpu(self) -> str | None:
        """Why a step that needs the frame runs on the CPU, without a full stop; None: no step does."""
        session, refiner = self._segmenter.session, self._segmenter.refiner
        if not isinstance(session, GpuSession):
            if isinstance(session, MultiScaleSession):
                return "several passes are averaged on the CPU"
            return f"{session.path} runs on the CPU"
        if not session.clusters:
            return "clustering runs on the CPU"
        if refiner is None:
            return None
        network, why = refiner.session, None
        if refiner.thorough:
            why = "exhaustive refinement is planned step by step"
        elif not network.on_gpu:
            why = f"{network.path} runs there; `tfiseg build` makes an engine of it, for instance_model"
        elif network.most_views is not None and network.most_views < self._max_views:
            why = (
                f"{network.path} takes {network.most_views} views at once, not {self._max_views}: build it "
                "without --batch, "
                "or set max_views"
            )
        return why and f"components are refined on the CPU ({why})"

    def segment(self, session: GpuSession, frame: Frame | NDArray[np.uint8]) -> tuple[Instances, Foregrounds]:
        """Return the instances of a frame, and the foreground maps that mask refinement can reuse.

        The frame may lie on the GPU already (``__cuda_array_interface__``).
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
        if label_map.shape != size_hw:  # the operator inside the engine works on a grid of its own
            label_map, semantic_map, table = enlarged(label_map, semantic_map, table, size_hw)
        instances = instances_from_table(label_map, semantic_map, table, class_names=segmenter.class_names)
        return segmenter.filter_instances(instances, size_hw), {}

    def _refine(
        self, session: GpuSession, refiner: Refiner, image: Any, size_hw: tuple[int, int]
    ) -> tuple[Instances, Foregrounds]:
        """Refine components in the graph; joins, which are few, and frames with a crowd on the CPU."""
        segmenter = self._segmenter
        outlines = segmenter.refines_masks
        views = self._view_settings(refiner)
        with session.looked(image, self._component_settings(size_hw), views) as looked:
            began = time.perf_counter()
            crowd = refiner.holds_crowd(looked, segmenter.things)
            fetched = looked.frame() if crowd else refiner.fetched(looked, outlines=outlines)
        if isinstance(fetched, np.ndarray):
            components = refiner.components_of(looked, segmenter.class_names)
            wanted = components.select(np.isin(components.class_id, segmenter.things))
            crowds_ms = {"crowds": (time.perf_counter() - began) * 1e3}
            found, known = refiner.looked(fetched, wanted, outlines=outlines)
            crowds_ms["crowds"] += found.stage_ms.get("crowds", 0.0)
            found = replace(found, stage_ms={**found.stage_ms, **crowds_ms})
        else:
            found, known = refiner.joined(looked, fetched, segmenter.class_names), fetched.known
            found = replace(found, stage_ms={"merge": (time.perf_counter() - began) * 1e3})
        excluded = looked.components[~np.isin(looked.components[:, 0], segmenter.things), 6]
        largest = int(excluded.max(initial=0))
        return segmenter.filter_instances(found, size_hw, largest_excluded_area_px=largest), known

    def _view_settings(self, refiner: Refiner) -> LookSettings:
        segmenter = self._segmenter
        return LookSettings(
            refiner.session, thing_flags(segmenter.things), self._max_views, segmenter.refines_masks
        )

    def _component_settings(self, size_hw: tuple[int, int]) -> ClusterSettings:
        """Settings of connected components, small ones included."""
        settings = self._segmenter.cluster_settings(size_hw)
        return settings.components(min(MIN_AREA_PX, settings.min_area))
