"""Refiner: from components of a class map to instances, with the instance network.

Views of components go through the instance network, the operator splits each component in its own view, and
parts that an occluder separated are joined again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...instances import Instances, instances_from_table
from ...plugins.native import region_counts
from ...plugins.operator import cluster_batch
from ...plugins.settings import MIN_AREA_PX, cut_settings
from ...plugins.views import check_max_views
from ..networks.instance_session import DEFAULT_INSTANCE_MODEL, InstanceMaps, InstanceSession, is_for_groups
from ..networks.open_session import open_instance_session
from ..networks.session import DEFAULT_PROVIDERS
from .crowds import MIN_REGIONS, crowd_diameter, split_crowds
from .join_candidates import JoinCandidates, find_join_candidates, join_parts
from .mask_refinement import Foregrounds, refine_masks
from .partition import Label, Partition, PartitionSnapshot, instances_from_labels
from .view import View
from .view_planning import (
    MAX_VIEWS,
    PlannedView,
    plan_closer_views,
    plan_informative_views,
    render_components,
    render_views,
)

if TYPE_CHECKING:
    from ..gpu.refined_frame import RefinedFrame


# longer side of a component, relative to a view's side, above which a view may show too few of its regions
_COARSE = 1.5

# of a view: image uint8 (S, S, 3), displacement, affinity
JoinInputs = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class HostFrame:
    """Host copy of what joins and mask refinement need of a frame that was refined on the GPU.

    Attributes:
        parts: of the frame.
        candidates: for each view with candidates, these and the inputs of the join rule.
        foregrounds: maps for mask refinement; empty if they were not requested.
    """

    parts: PartitionSnapshot
    candidates: list[tuple[JoinCandidates, JoinInputs]]
    foregrounds: Foregrounds


class Refiner:
    """Find instances with the instance network, in the connected components of a class map.

    The instance network knows no classes, so the class map may come from any network. ``min_area`` is the
    area in pixels of the smallest objects that the network was trained for, by default 25.

    Args:
        model: path of an instance network; default: the one that comes with tfiseg.
        max_views: maximum number of views per frame (default: 64). Components come first, largest first, then
            views for joins. Closer views, mask refinement and crowds may use as many views again.
        thorough: exhaustive refinement: also render components without a neck, and parts again, closer,
            until nothing changes. It takes about twice the time. Default: only for networks whose training
            class maps have more groups than single objects (cell nuclei, not photos).
        threads: CPU threads; 0 = all that the process may use.
        providers: ONNX Runtime execution providers.

    Raises:
        ModelError: the model can't be used. InputError: image and components differ in size.

    Example:
        >>> components = tfiseg.cluster(class_map, split=0)
        >>> instances = tfiseg.Refiner()(image, components)
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        max_views: int | None = None,
        thorough: bool | None = None,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        check_max_views(max_views)
        path = DEFAULT_INSTANCE_MODEL if model is None else model
        self.session = open_instance_session(path, threads, providers)
        self.min_area = MIN_AREA_PX if self.session.min_area is None else self.session.min_area
        self.thorough = is_for_groups(self.session.lone_odds) if thorough is None else thorough
        self.max_views = MAX_VIEWS if max_views is None else max_views
        self.threads = threads or None

    def __call__(self, image: NDArray[np.uint8], components: Instances) -> Instances:
        """Find the instances of an image.

        Args:
            image: uint8 (H, W, 3) BGR.
            components: of its class map, as ``cluster(class_map, split=0)`` returns them.
        """
        return self.refine(image, components, outlines=False)[0]

    def refine(
        self, image: NDArray[np.uint8], components: Instances, outlines: bool
    ) -> tuple[Instances, Foregrounds]:
        """Find the instances of an image, and foreground maps of its views for ``outlined``.

        Args:
            image: uint8 (H, W, 3) BGR.
            components: of its class map.
            outlines: predict foreground maps; else none are returned.
        """
        _check_sizes(image, components)
        began = time.perf_counter()
        planned, own = plan_informative_views(components, self.session.view_px)
        regions = self._count_regions(planned, own)
        origins, crowds_ms = None, {}
        without_crowds = self._split_crowds(image, components, planned, regions)
        if without_crowds is not None:
            components, origins = without_crowds
            planned, own = plan_informative_views(components, self.session.view_px)
            regions = self._count_regions(planned, own)
            crowds_ms = {"crowds": (time.perf_counter() - began) * 1e3}
            began = time.perf_counter()
        if not planned:
            if crowds_ms:
                components = replace(components, stage_ms={**components.stage_ms, **crowds_ms})
            return components, {}
        views = _FrameViews(self.session, image, components)
        views.add(planned, own)
        views.ms["views"] += (time.perf_counter() - began) * 1e3
        partition = Partition(components, origins)
        selected = self._select_splittable(planned, regions)[: self.max_views]
        split_in = self._split(partition, views, selected, outlines)
        remaining = self.max_views - len(views.join_inputs)
        if self.thorough:
            self._split_closer(partition, views, split_in)
        log_odds, parts = [], partition.snapshot()
        join_rule = self.session.rules.get("join")
        if join_rule is not None:
            candidates = find_join_candidates(parts, planned, self.session.view_px)
            views.infer([k for k in candidates if k not in views.join_inputs][:remaining], outlines)
            for k, pairs in candidates.items():  # views of components come first: they are closer
                if k in views.join_inputs:
                    log_odds += pairs.log_odds(
                        *views.join_inputs[k], self.session.affinity_offsets, join_rule
                    )
        refined = instances_from_labels(join_parts(parts, log_odds), components)
        merge = (time.perf_counter() - began) * 1e3 - sum(views.ms.values())
        stages = {**components.stage_ms, **crowds_ms, **views.ms, "merge": merge}
        return replace(refined, stage_ms=stages), views.foregrounds

    def holds_crowd(self, frame: RefinedFrame, things: Sequence[int]) -> bool:
        """Return whether a frame that was refined on the GPU has a crowd of these classes.

        Only the CPU splits crowds, so such a frame must be refined again there.
        """
        many = {
            label
            for label, count in zip(frame.views[:, 4].tolist(), frame.regions.tolist(), strict=True)
            if count >= MIN_REGIONS
        }
        boxes = frame.components[:, 2:6].astype(int)
        if frame.frame_regions >= MIN_REGIONS:
            many |= set((np.flatnonzero(self._are_coarse(boxes)) + 1).tolist())
        label_map = frame.parts.label_map[0]
        size_hw = label_map.shape[0], label_map.shape[1]
        countable = set((np.flatnonzero(np.isin(frame.components[:, 0], things)) + 1).tolist())
        for label in many & countable:
            x0, y0, x1, y1 = boxes[label - 1].tolist()
            own = frame.component_by_label[label_map[y0:y1, x0:x1]] == label
            if crowd_diameter(own, (x0, y0, x1, y1), size_hw, self.session.view_px, self.threads):
                return True
        return False

    def components_of(self, frame: RefinedFrame, class_names: Sequence[str]) -> Instances:
        """Return the connected components of a frame that was refined on the GPU."""
        label_map = frame.component_by_label[frame.parts.label_map[0]]
        return instances_from_table(
            label_map, frame.parts.semantic_map[0], frame.components, class_names=tuple(class_names)
        )

    def fetch(self, frame: RefinedFrame, outlines: bool) -> HostFrame:
        """Copy what ``join`` needs to the host, and with ``outlines`` what ``outlined`` needs.

        The frame's memory must not be reused before this returns.
        """
        planned = [
            PlannedView(View(x, y, side), class_id, component)
            for x, y, side, class_id, component in frame.views.tolist()
            if class_id
        ]
        foregrounds = (
            {(p.view, p.class_id): frame.foreground(k) for k, p in enumerate(planned)} if outlines else {}
        )
        component_of = frame.component_by_label.astype(np.int64)
        areas = np.concatenate([[0], frame.parts.table[0, :, 6]]).astype(np.int64)
        class_of = np.concatenate([[0], frame.parts.table[0, :, 0]]).astype(np.int32)
        parts = PartitionSnapshot(frame.parts.label_map[0], areas, component_of, component_of, class_of)
        candidates = (
            find_join_candidates(parts, planned, self.session.view_px) if "join" in self.session.rules else {}
        )
        return HostFrame(
            parts, [(pairs, frame.join_inputs(k)) for k, pairs in candidates.items()], foregrounds
        )

    def join(self, frame: RefinedFrame, fetched: HostFrame, class_names: Sequence[str]) -> Instances:
        """Join the parts of a frame that was refined on the GPU; return its instances."""
        parts, semantic_map, log_odds = fetched.parts, frame.parts.semantic_map[0], []
        for pairs, inputs in fetched.candidates:
            log_odds += pairs.log_odds(*inputs, self.session.affinity_offsets, self.session.rules["join"])
        if not any(value > 0 for _, value in log_odds):
            return instances_from_table(
                parts.label_map, semantic_map, frame.parts.table[0], class_names=tuple(class_names)
            )
        return instances_from_labels(join_parts(parts, log_odds), self.components_of(frame, class_names))

    def outlined(
        self, image: NDArray[np.uint8], instances: Instances, known: Foregrounds | None = None
    ) -> Instances:
        """Refine the masks of instances, however they were found.

        Use it for class maps that a network predicted; true ones need no refinement. ``semantic_map`` follows
        the masks; classes and scores are not changed.

        Args:
            image: uint8 (H, W, 3) BGR.
            instances: of the image.
            known: foreground maps from ``refine``, which are not predicted again.

        Raises:
            ModelError: the network cannot refine masks. InputError: image and instances differ in size.
        """
        _check_sizes(image, instances)
        return refine_masks(self.session, image, instances, known or {}, self.max_views, self.threads)

    def close(self) -> None:
        """Free the memory of the network."""
        self.session.close()

    def _split_closer(
        self, partition: Partition, views: _FrameViews, split_in: dict[int, PlannedView]
    ) -> None:
        """Split parts in closer views until nothing changes."""
        remaining = self.max_views
        while split_in and remaining:
            began = time.perf_counter()
            planned = plan_closer_views(partition.label_map, split_in, self.session.view_px)
            closer = views.add(*planned)[:remaining]
            views.ms["views"] += (time.perf_counter() - began) * 1e3
            remaining -= len(closer)
            split_in = self._split(partition, views, closer, outlines=False)  # masks have views of their own

    def _split(
        self, partition: Partition, views: _FrameViews, selected: Sequence[int], outlines: bool
    ) -> dict[int, PlannedView]:
        """Split components in their views; return each part with its view."""
        if not selected:
            return {}
        maps = views.infer(selected, outlines)
        own = np.stack([views.own[k] for k in selected])
        labels = self._split_components(own, maps)
        split_in: dict[int, PlannedView] = {}
        for k, view_labels in zip(selected, labels, strict=True):
            split_in |= dict.fromkeys(partition.split(views.planned[k], view_labels), views.planned[k])
        return split_in

    def _split_components(self, own: NDArray[np.uint8], maps: InstanceMaps) -> list[Label]:
        return split_components(own, maps, self.session.affinity_offsets, self.session.rules, self.threads)

    def _split_crowds(
        self,
        image: NDArray[np.uint8],
        components: Instances,
        planned: Sequence[PlannedView],
        regions: Sequence[int],
    ) -> tuple[Instances, NDArray[np.int64]] | None:
        """Split crowds, if there are any; see ``split_crowds``."""
        region_count = {p.component: count for p, count in zip(planned, regions, strict=True)}
        coarse = self._are_coarse(components.box_xyxy)
        suspects = [
            k for k in range(1, len(components) + 1) if coarse[k - 1] or region_count.get(k, 0) >= MIN_REGIONS
        ]
        if not suspects:
            return None

        def cluster_windows(parts: Instances, windows: Sequence[PlannedView]) -> list[Label]:
            own = render_components(parts.label_map, windows, self.session.view_px)
            maps = self.session.infer(*render_views(image, parts, windows, self.session.view_px))
            return self._split_components(own, maps)

        return split_crowds(
            components, suspects, self.session.view_px, self.max_views, cluster_windows, self.threads
        )

    def _are_coarse(self, boxes_xyxy: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for which components a view may be too coarse to show all their regions."""
        longer_sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(1, initial=0)
        return np.asarray(longer_sides > _COARSE * self.session.view_px)

    def _count_regions(self, planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
        """Count the regions by shape of each view's component; 0 for views of a class."""
        of_components = [k for k, p in enumerate(planned) if p.component]
        regions = [0] * len(planned)
        if of_components:
            counts = region_counts(own[of_components], self.threads).tolist()
            for k, count in zip(of_components, counts, strict=True):
                regions[k] = count
        return regions

    def _select_splittable(self, planned: Sequence[PlannedView], regions: Sequence[int]) -> list[int]:
        """Return the views whose component may be split, most promising first."""
        of_components = [k for k, p in enumerate(planned) if p.component]
        with_neck = [k for k in of_components if regions[k] > 1]
        return with_neck + [k for k in of_components if regions[k] <= 1] if self.thorough else with_neck


def _check_sizes(image: NDArray[np.uint8], found: Instances) -> None:
    if image.shape[:2] != found.label_map.shape:
        raise InputError(
            f"the image is {image.shape[:2]} and its instances are of {found.label_map.shape}: they must be "
            "of one size"
        )


def split_components(
    own: NDArray[np.uint8],
    maps: InstanceMaps,
    offsets: NDArray[np.int32],
    rules: Mapping[str, NDArray[np.float32]],
    threads: int | None = None,
) -> list[Label]:
    """Split components in their views with the operator, by the maps of the instance network.

    Args:
        own: component of each of the K views, uint8 (K, S, S), 0 or 1.
        maps: of these views.
        offsets: of the affinities, int32 (A, 2).
        rules: "merge" and "part" of the network; without "part" there is no second pass.
        threads: CPU threads; default: all that the process may use.

    Returns:
        K label maps int32 (S, S).
    """
    settings = cut_settings(offsets, rules)
    found = cluster_batch(own, None, maps.boundary[:, 0], maps.affinity, settings=settings, threads=threads)
    return [instances.label_map for instances in found]


class _FrameViews:
    """The planned views of one frame, and the network's maps of those that were rendered."""

    def __init__(self, session: InstanceSession, image: NDArray[np.uint8], components: Instances) -> None:
        self._session, self._image, self._components = session, image, components
        self.planned: list[PlannedView] = []
        self.own: list[NDArray[np.uint8]] = []
        self.foregrounds: Foregrounds = {}
        self.join_inputs: dict[int, JoinInputs] = {}
        self.ms = {"views": 0.0, "instance network": 0.0}

    def add(self, planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
        """Append views and the masks of their components; return their indices."""
        first = len(self.planned)
        self.planned += planned
        self.own += list(own)
        return list(range(first, len(self.planned)))

    def infer(self, selected: Sequence[int], outlines: bool) -> InstanceMaps:
        """Render views and run the network on them, with ``outlines`` also its foreground head."""
        began = time.perf_counter()
        planned = [self.planned[k] for k in selected]
        images, masks = render_views(self._image, self._components, planned, self._session.view_px)
        rendered = time.perf_counter()
        maps = self._session.infer(images, masks, outlines)
        self.ms["views"] += (rendered - began) * 1e3
        self.ms["instance network"] += (time.perf_counter() - rendered) * 1e3
        inputs = zip(images, maps.displacement, maps.affinity, strict=True)
        self.join_inputs |= dict(zip(selected, inputs, strict=True))
        if maps.foreground is not None:
            keys = ((p.view, p.class_id) for p in planned)
            self.foregrounds |= dict(zip(keys, maps.foreground, strict=True))
        return maps
