"""From components of a class map to instances, by looking at them: views of components go through the
instance network, the operator cuts each component in its own view, and pieces that an occluder parted are
joined again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...instances import Instances, instances_from_table
from ...plugins.native import region_counts
from ...plugins.operator import cluster_batch
from ...plugins.settings import MIN_AREA_PX, cut_settings
from ..networks.instance_session import DEFAULT_INSTANCE_MODEL, InstanceMaps, InstanceSession, of_groups
from ..networks.open_session import open_instance_session
from ..networks.session import DEFAULT_PROVIDERS
from .crowds import MANY, crowds_parted, size_if_crowd
from .join_candidates import Candidates, candidates_in, united
from .mask_refinement import Foregrounds, outlined
from .partition import Label, Parted, Placed, instances_of
from .view import View
from .view_planning import MAX_VIEWS, PlannedView, closer_looks, own_masks, shown, worth_a_look

if TYPE_CHECKING:
    from ..gpu.refined_frame import RefinedFrame


# pixels of a component, for each of the view's, from which on its view may not show what it is made of
_COARSE = 1.5

Shown = tuple[
    NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]
]  # of a view: picture, displacement, affinity


@dataclass(frozen=True)
class HostFrame:
    """Pieces of a frame that was looked at on the GPU, the views that can tell of joins, and what was said of
    outlines."""

    placed: Placed
    candidates: list[tuple[Candidates, Shown]]
    known: Foregrounds


class Refiner:
    """Instances from a frame and the connected components of its class map, by the instance network. It knows
    no classes, so the class map may come from any network. ``min_area``: pixels of the smallest objects that
    the network is for; 25 where it doesn't say.

    Args:
        model: path of an instance network; default: the one that comes with tfiseg.
        max_views: at most this many views a frame (default: 64): of components with a neck, the largest
            first, then those for joins; what gets none stays as it is. Closer looks take as many more, and
            outlines, and crowds (see ``crowds.py``) as well.
        thorough: look at components without a neck as well, which a boundary alone could part, and at the
            pieces of what was parted again, closer, until there is nothing more to part; about twice the
            time. Default: where most of what could be parted is groups in the class maps that the network was
            trained for (cell nuclei, not photos).
        threads: CPU threads; 0 = all that the process may use.
        providers: ONNX Runtime execution providers.

    Raises:
        ModelError: the model can't be used. InputError: picture and components differ in size.

    Example:
        >>> components = tfiseg.cluster(class_map, split=0)
        >>> instances = tfiseg.Refiner()(picture, components)
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
        if max_views is not None and max_views < 1:
            raise InputError(f"max_views must be at least 1, got {max_views}")
        self.session = open_instance_session(model or DEFAULT_INSTANCE_MODEL, threads, providers)
        self.min_area = MIN_AREA_PX if self.session.min_area is None else self.session.min_area
        self.thorough = of_groups(self.session.lone_odds) if thorough is None else thorough
        self.max_views = MAX_VIEWS if max_views is None else max_views
        self.threads = threads or None

    def __call__(self, image: NDArray[np.uint8], components: Instances) -> Instances:
        """Instances of one picture uint8 (H, W, 3) BGR from the components of its class map, as
        ``cluster(..., split=0)`` gives them."""
        return self.looked(image, components, outlines=False)[0]

    def looked(
        self, image: NDArray[np.uint8], components: Instances, outlines: bool
    ) -> tuple[Instances, Foregrounds]:
        """The same, and with ``outlines`` what its views told of them: ``outlined`` need not look again."""
        _check_sizes(image, components)
        began = time.perf_counter()
        planned, own = worth_a_look(components, self.session.view_px)
        regions = self._regions(planned, own)
        families, crowds_ms = None, {}
        apart = self._crowds_parted(image, components, planned, regions)
        if apart is not None:
            components, families = apart
            planned, own = worth_a_look(components, self.session.view_px)
            regions = self._regions(planned, own)
            crowds_ms = {"crowds": (time.perf_counter() - began) * 1e3}
            began = time.perf_counter()
        if not planned:
            return replace(
                components, stage_ms={**components.stage_ms, **crowds_ms}
            ) if crowds_ms else components, {}
        views = _Views(self.session, image, components)
        views.plan(planned, own)
        views.ms["views"] += (time.perf_counter() - began) * 1e3
        parted = Parted(components, families)
        cut_in = self._cut(
            parted, views, self._that_could_be_cut(planned, regions)[: self.max_views], outlines
        )
        left = self.max_views - len(views.shown)
        if self.thorough:
            self._cut_closer(parted, views, cut_in)
        judged, placed = [], parted.placed()
        join_rule = self.session.rules.get("join")
        if join_rule is not None:
            candidates = candidates_in(placed, planned, self.session.view_px)
            views.look([k for k in candidates if k not in views.shown][:left], outlines)
            for k, its in candidates.items():  # a component's own view comes first: it is closer
                if k in views.shown:
                    judged += its.judged(*views.shown[k], self.session.affinity_offsets, join_rule)
        refined = instances_of(united(placed, judged), components)
        merge = (time.perf_counter() - began) * 1e3 - sum(views.ms.values())
        return replace(
            refined, stage_ms={**components.stage_ms, **crowds_ms, **views.ms, "merge": merge}
        ), views.foreground

    def holds_crowd(self, found: RefinedFrame, things: Sequence[int]) -> bool:
        """Whether a frame that was looked at on the GPU is to be looked at again on the CPU, which parts
        crowds (see ``crowds_parted``) of these classes."""
        many = {
            number
            for number, count in zip(found.views[:, 4].tolist(), found.regions.tolist(), strict=True)
            if count >= MANY
        }
        boxes = found.components[:, 2:6].astype(int)
        if found.frame_regions >= MANY:
            coarse = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) > _COARSE * self.session.view_px
            many |= set((np.flatnonzero(coarse) + 1).tolist())
        label_map = found.pieces.label_map[0]
        wanted = set((np.flatnonzero(np.isin(found.components[:, 0], things)) + 1).tolist())
        for number in many & wanted:
            x0, y0, x1, y1 = boxes[number - 1].tolist()
            own = found.component_at[label_map[y0:y1, x0:x1]] == number
            size_hw = label_map.shape[0], label_map.shape[1]
            if size_if_crowd(own, (x0, y0, x1, y1), size_hw, self.session.view_px, self.threads):
                return True
        return False

    def components_of(self, found: RefinedFrame, class_names: Sequence[str]) -> Instances:
        """The components of a frame that was looked at on the GPU."""
        label_map = found.component_at[found.pieces.label_map[0]]
        return instances_from_table(
            label_map, found.pieces.semantic_map[0], found.components, class_names=tuple(class_names)
        )

    def fetched(self, found: RefinedFrame, outlines: bool) -> HostFrame:
        """What ``joined`` needs of what was looked at on the GPU, and with ``outlines`` what ``outlined``
        does: while the frame is held."""
        planned = [
            PlannedView(View(x, y, side), of_class, its)
            for x, y, side, of_class, its in found.views.tolist()
            if of_class
        ]
        known = {(p.view, p.class_id): found.foreground(k) for k, p in enumerate(planned)} if outlines else {}
        component_of = found.component_at.astype(np.int64)
        areas = np.concatenate([[0], found.pieces.table[0, :, 6]]).astype(np.int64)
        class_of = np.concatenate([[0], found.pieces.table[0, :, 0]]).astype(np.int32)
        placed = Placed(found.pieces.label_map[0], areas, component_of, component_of, class_of)
        candidates = (
            candidates_in(placed, planned, self.session.view_px) if "join" in self.session.rules else {}
        )
        return HostFrame(placed, [(its, found.shown(k)) for k, its in candidates.items()], known)

    def joined(self, found: RefinedFrame, fetched: HostFrame, class_names: Sequence[str]) -> Instances:
        """Instances of what was looked at on the GPU: pieces, joined where they are one object."""
        placed, semantic_map, judged = fetched.placed, found.pieces.semantic_map[0], []
        for its, shown_of_it in fetched.candidates:
            judged += its.judged(*shown_of_it, self.session.affinity_offsets, self.session.rules["join"])
        if not any(value > 0 for _, value in judged):
            return instances_from_table(
                placed.label_map, semantic_map, found.pieces.table[0], class_names=tuple(class_names)
            )
        return instances_of(united(placed, judged), self.components_of(found, class_names))

    def outlined(
        self, image: NDArray[np.uint8], instances: Instances, known: Foregrounds | None = None
    ) -> Instances:
        """Instances of one picture uint8 (H, W, 3) BGR, however they were found, with outlines as the network
        sees them (mask refinement): what a coarse class map draws roughly follows the object. For class maps
        that a network predicted: true ones have nothing to mend. Classes, scores and ``semantic_map`` stay.
        ``known``: see ``looked``. Raises ModelError where the model draws none."""
        _check_sizes(image, instances)
        return outlined(self.session, image, instances, known or {}, self.max_views, self.threads)

    def close(self) -> None:
        """Free the memory that an engine works in."""
        self.session.close()

    def _cut_closer(self, parted: Parted, views: _Views, cut_in: dict[int, PlannedView]) -> None:
        """Look closer at pieces, each by its number with the view that it was cut in, at the pieces of these,
        and so on."""
        left = self.max_views
        while cut_in and left:
            began = time.perf_counter()
            closer = views.plan(*closer_looks(parted.label_map, cut_in, self.session.view_px))[:left]
            views.ms["views"] += (time.perf_counter() - began) * 1e3
            left -= len(closer)
            cut_in = self._cut(parted, views, closer, outlines=False)  # outlines are looked at in other views

    def _cut(
        self, parted: Parted, views: _Views, wanted: Sequence[int], outlines: bool
    ) -> dict[int, PlannedView]:
        """Look at these views, and part what each was made for as the operator cuts it there; returns the
        pieces of what was parted, by number, with the view that each was cut in."""
        if not wanted:
            return {}
        maps = views.look(wanted, outlines)
        own = np.stack([views.own[k] for k in wanted])
        found = cut_components(own, maps, self.session.affinity_offsets, self.session.rules, self.threads)
        cut_in: dict[int, PlannedView] = {}
        for k, labels in zip(wanted, found, strict=True):
            cut_in |= dict.fromkeys(parted.cut(views.planned[k], labels), views.planned[k])
        return cut_in

    def _crowds_parted(
        self,
        image: NDArray[np.uint8],
        components: Instances,
        planned: Sequence[PlannedView],
        regions: Sequence[int],
    ) -> tuple[Instances, NDArray[np.int64]] | None:
        """See ``crowds_parted``; windows come beside ``max_views``, as many. Crowds have many regions in
        their view, unless that is too coarse."""
        seen = {p.component: count for p, count in zip(planned, regions, strict=True)}
        coarse = (components.box_xyxy[:, 2:] - components.box_xyxy[:, :2]).max(
            1, initial=0
        ) > _COARSE * self.session.view_px
        suspects = [k for k in range(1, len(components) + 1) if coarse[k - 1] or seen.get(k, 0) >= MANY]
        if not suspects:
            return None

        def look(pieces: Instances, windows: Sequence[PlannedView]) -> list[Label]:
            own = own_masks(pieces.label_map, windows, self.session.view_px)
            maps = self.session.infer(*shown(image, pieces, windows, self.session.view_px))
            return cut_components(own, maps, self.session.affinity_offsets, self.session.rules, self.threads)

        return crowds_parted(components, suspects, self.session.view_px, self.max_views, look, self.threads)

    def _regions(self, planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
        """How many regions by shape each view's component has; 0: the view is of all of a class."""
        of_component = [k for k, p in enumerate(planned) if p.component]
        regions = [0] * len(planned)
        if of_component:
            for k, count in zip(
                of_component, region_counts(own[of_component], self.threads).tolist(), strict=True
            ):
                regions[k] = count
        return regions

    def _that_could_be_cut(self, planned: Sequence[PlannedView], regions: Sequence[int]) -> list[int]:
        """Which views are of a component that could be parted: those with a neck, of several regions, before
        others."""
        of_component = [k for k, p in enumerate(planned) if p.component]
        with_neck = [k for k in of_component if regions[k] > 1]
        return with_neck + [k for k in of_component if regions[k] <= 1] if self.thorough else with_neck


def _check_sizes(image: NDArray[np.uint8], found: Instances) -> None:
    if image.shape[:2] != found.label_map.shape:
        raise InputError(
            f"the picture is {image.shape[:2]}, what was found in it is of {found.label_map.shape}: they "
            "must be of one size"
        )


def cut_components(
    own: NDArray[np.uint8],
    maps: InstanceMaps,
    offsets: NDArray[np.int32],
    rules: Mapping[str, NDArray[np.float32]],
    threads: int | None = None,
) -> list[Label]:
    """What the operator makes of components in their views by what the network says of these: label maps
    int32 (S, S).

    Args:
        own: uint8 (K, S, S) 0/1, the component of each view.
        maps: what the network says of these views.
        offsets: of the affinities.
        rules: "merge" and "part", of the network; without "part" there is no second look.
        threads: CPU threads; default: all that the process may use.
    """
    settings = cut_settings(offsets, rules)
    found = cluster_batch(own, None, maps.boundary[:, 0], maps.affinity, settings=settings, threads=threads)
    return [its.label_map for its in found]


class _Views:
    """The views of one frame: ``planned``, by number, with ``own``, what each was made for. ``shown``, of
    those that were looked at, what a join rule is told: picture, displacement, affinity; ``foreground``,
    where outlines were wanted; ``ms``, what it took."""

    def __init__(self, session: InstanceSession, image: NDArray[np.uint8], components: Instances) -> None:
        self._session, self._image, self._components = session, image, components
        self.planned: list[PlannedView] = []
        self.own: list[NDArray[np.uint8]] = []
        self.foreground: Foregrounds = {}
        self.shown: dict[int, Shown] = {}
        self.ms = {"views": 0.0, "instance network": 0.0}

    def plan(self, planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
        """Further views and what each was made for; returns their numbers."""
        first = len(self.planned)
        self.planned += planned
        self.own += list(own)
        return list(range(first, len(self.planned)))

    def look(self, wanted: Sequence[int], outlines: bool) -> InstanceMaps:
        """Look at these views, for ``outlines`` as well; returns what the network says of them."""
        began = time.perf_counter()
        images, masks = shown(
            self._image, self._components, [self.planned[k] for k in wanted], self._session.view_px
        )
        looked = time.perf_counter()
        maps = self._session.infer(images, masks, outlines)
        self.ms["views"] += (looked - began) * 1e3
        self.ms["instance network"] += (time.perf_counter() - looked) * 1e3
        self.shown |= dict(
            zip(wanted, zip(images, maps.displacement, maps.affinity, strict=True), strict=True)
        )
        if maps.foreground is not None:
            of_views = ((self.planned[k].view, self.planned[k].class_id) for k in wanted)
            self.foreground |= dict(zip(of_views, maps.foreground, strict=True))
        return maps
