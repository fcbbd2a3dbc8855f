"""From components of a class map to instances, by looking at them: views of components go through the instance network, the operator
cuts each component in its own view, and pieces that an occluder parted are joined again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..instances import Instances
from ..plugins.operator import MIN_AREA_PX, SHARPEN, cluster
from .instance_session import DEFAULT_INSTANCE_MODEL, InstanceMaps, InstanceSession
from .joining import candidates_in, united
from .looks import MAX_VIEWS, PlannedView, look, worth_a_look
from .outlines import Foregrounds, outlined
from .pieces import Label, Parted, instances_of
from .sessions import DEFAULT_PROVIDERS


class Refiner:
    """Instances from a frame and the connected components of its class map, by the instance network. It knows no classes, so the class
    map may come from any network. ``min_area``: pixels of the smallest objects that the network is for; 25 where it doesn't say.

    Args:
        model: path of an instance network; default: the one that comes with tfiseg.
        max_views: at most this many views a frame: of components with a neck, the largest first, then those for joins; what gets none stays
            as it is. Outlines take as many more.
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
        max_views: int = MAX_VIEWS,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        if max_views < 1:
            raise InputError(f"max_views must be at least 1, got {max_views}")
        self.session = InstanceSession(model or DEFAULT_INSTANCE_MODEL, threads, providers)
        self.min_area = MIN_AREA_PX if self.session.min_area is None else self.session.min_area
        self.max_views = max_views
        self.threads = threads or None

    def __call__(self, image: NDArray[np.uint8], components: Instances) -> Instances:
        """Instances of one picture uint8 (H, W, 3) BGR from the components of its class map, as ``cluster(..., split=0)`` gives them."""
        return self.looked(image, components, outlines=False)[0]

    def looked(self, image: NDArray[np.uint8], components: Instances, outlines: bool) -> tuple[Instances, Foregrounds]:
        """The same, and with ``outlines`` what its views told of them: ``outlined`` need not look again."""
        _check_sizes(image, components)
        began = time.perf_counter()
        planned, own = worth_a_look(components, self.session.view_px)
        planning = (time.perf_counter() - began) * 1e3
        if not planned:
            return components, {}
        parted = Parted(components)
        views = _Views(self.session, image, components, planned, own, self.max_views, outlines)
        maps = views.look(self._with_necks(planned, own))
        found = cut_views(own[views.seen], maps, self.session.affinity_offsets, self.session.rules, self.threads)
        for k, labels in zip(views.seen, found, strict=True):
            parted.cut(planned[k], labels)
        judged = []
        join_rule = self.session.rules.get("join")
        if join_rule is not None:
            candidates = candidates_in(parted, planned, self.session.view_px)
            views.look([*candidates])
            for k, its in candidates.items():  # a component's own view comes first: it is closer
                if k in views.shown:
                    judged += its.judged(*views.shown[k], self.session.affinity_offsets, join_rule)
        refined = instances_of(united(parted, judged), components)
        views.ms["views"] += planning
        merge = (time.perf_counter() - began) * 1e3 - sum(views.ms.values())
        return replace(refined, stage_ms={**components.stage_ms, **views.ms, "merge": merge}), views.foreground

    def outlined(self, image: NDArray[np.uint8], instances: Instances, known: Foregrounds | None = None) -> Instances:
        """Instances of one picture uint8 (H, W, 3) BGR, however they were found, with outlines as the network sees them (mask refinement):
        what a coarse class map draws roughly follows the object. For class maps that a network predicted: true ones have nothing to mend.
        Classes, scores and ``semantic_map`` stay. ``known``: see ``looked``. Raises ModelError where the model draws none."""
        _check_sizes(image, instances)
        return outlined(self.session, image, instances, known or {}, self.max_views, self.threads)

    def _with_necks(self, planned: Sequence[PlannedView], own: NDArray[np.uint8]) -> list[int]:
        """Which views are of a component that could be cut: of a single region there is nothing to part."""
        of_component = [k for k, p in enumerate(planned) if p.component]
        regions = cluster(own[of_component], split=1.0, min_area=0, threads=self.threads)
        return [k for k, found in zip(of_component, regions, strict=True) if len(found) > 1]


def _check_sizes(image: NDArray[np.uint8], found: Instances) -> None:
    if image.shape[:2] != found.label_map.shape:
        raise InputError(f"the picture is {image.shape[:2]}, what was found in it is of {found.label_map.shape}: they must be of one size")


def cut_views(
    own: NDArray[np.uint8],
    maps: InstanceMaps,
    offsets: NDArray[np.int32],
    rules: Mapping[str, NDArray[np.float32]],
    threads: int | None = None,
) -> list[Label]:
    """What the operator makes of components in their views by what the network says of these: label maps int32 (S, S).

    Args:
        own: uint8 (K, S, S) 0/1, the component of each view.
        maps: what the network says of these views.
        offsets: of the affinities.
        rules: "merge" and "part", of the network; without "part" there is no second look.
        threads: CPU threads; default: all that the process may use.
    """
    found = cluster(
        own,
        affinity=maps.affinity,
        boundary=maps.boundary[:, 0],
        affinity_offsets=offsets,
        merge_rule=rules.get("merge"),
        part_rule=rules.get("part"),
        sharpen=SHARPEN,
        min_area=0,
        threads=threads,
    )
    return [its.label_map for its in found]


class _Views:
    """The views of one frame that were looked at, at most so many: ``seen``, their numbers; ``shown``, what a join rule is told of
    each: picture, displacement, affinity; ``foreground``, where ``outlines`` are wanted; ``ms``, what it took."""

    def __init__(
        self,
        session: InstanceSession,
        image: NDArray[np.uint8],
        components: Instances,
        planned: Sequence[PlannedView],
        own: NDArray[np.uint8],
        most: int,
        outlines: bool,
    ) -> None:
        self._session, self._image, self._components, self._planned, self._own = session, image, components, planned, own
        self._most, self._outlines = most, outlines
        self.foreground: Foregrounds = {}
        self.seen: list[int] = []
        self.shown: dict[int, tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]] = {}
        self.ms = {"views": 0.0, "instance network": 0.0}

    def look(self, wanted: Sequence[int]) -> InstanceMaps:
        """Look at these views, but those seen already; returns what the network says of the new ones."""
        new = [k for k in wanted if k not in self.shown][: self._most - len(self.seen)]
        began = time.perf_counter()
        looks = look(self._image, self._components, [self._planned[k] for k in new], self._own[new])
        looked = time.perf_counter()
        maps = self._session.infer(looks.images, looks.masks, self._outlines)
        self.ms["views"] += (looked - began) * 1e3
        self.ms["instance network"] += (time.perf_counter() - looked) * 1e3
        self.shown |= dict(zip(new, zip(looks.images, maps.displacement, maps.affinity, strict=True), strict=True))
        if maps.foreground is not None:
            of_views = ((self._planned[k].view, self._planned[k].class_id) for k in new)
            self.foreground |= dict(zip(of_views, maps.foreground, strict=True))
        self.seen += new
        return maps
