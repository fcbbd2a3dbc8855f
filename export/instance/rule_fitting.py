"""Fit the rules of the instance network on composites of held-out objects.

- "merge" (merge rule): are two touching regions of a component one object? Its features are the shape of the
  neck, the mean affinity and the mean boundary.
- "part" (second-pass rule): the same for regions of what a component has left between boundaries
  (plugins/csrc/parts.h).
- "join" (join rule): are two parts of different components one object behind an occluder
  (runtime/refine/join_rule.py)?

Each rule is a small network, the average of several fits. Rules belong to one set of weights and are stored
in its model file. No evaluation image is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError
from ...plugins.native import region_graph
from ...plugins.neck import EVIDENCE_FEATURES, evidence_features
from ...plugins.problem import BOUNDARY_THRESHOLD, Problem, problem_of
from ...plugins.settings import AFFINITY_OFFSETS
from ...runtime.networks.instance_session import InstanceMaps
from ...runtime.refine.join_candidates import JOIN_CELL_PX
from ...runtime.refine.join_rule import PairFeatures
from ...runtime.refine.refiner import split_components
from ..neck.rule import (
    HELD_OUT,
    Samples,
    concatenate_samples,
    cost_of_cut,
    cost_of_merge,
    fit_members,
    merge_samples,
)
from .bank import Bank, is_split, render_batches
from .composites import Composer, Composite
from .teacher import PHOTO_SINGLE_TO_GROUP_RATIO

HIDDEN, MEMBERS = 12, 4  # hidden units of each fit, number of averaged fits
# weights of single objects for "merge" and "part", relative to their share; they had the best PQ on other
# composites
_SINGLE_WEIGHTS = 2.0, 0.87
_EAGER_WEIGHTS = 3.0, 3.0  # absolute weights of single objects for eager rules
_OWN_SHARE = 0.2  # components of this area relative to the largest get a view of their own
_MIN_OWN_PX = 64
_BATCH = 32
_STEPS = 4000  # maximum steps of a fit
_MEAN_AFFINITY = EVIDENCE_FEATURES.index("mean affinity")

Rule = NDArray[np.float32]
ComponentSamples = tuple[Samples, bool]  # pairs of regions of a component, and whether it is one object
ViewInference = Callable[[NDArray[np.uint8], NDArray[np.uint8]], InstanceMaps]  # views, masks -> maps


@dataclass(frozen=True)
class Fit:
    """A rule as one float32 array, its weighted error on held-out pairs (0..1), and the number of pairs."""

    rule: Rule
    held_error: float
    pairs: int


def rules_report(fits: Mapping[str, Fit]) -> dict[str, dict[str, float]]:
    """Return the rounded held-out error and the number of pairs of each rule."""
    return {name: {"held_error": round(f.held_error, 4), "pairs": f.pairs} for name, f in fits.items()}


def fit_rules(
    held: Bank,
    composite_seed: int,
    infer: ViewInference,
    view_px: int,
    count: int,
    seed: int = 0,
    quiet: bool = False,
    single_to_group_ratio: float | None = None,
) -> dict[str, Fit]:
    """Fit the rules "merge", "part" and "join" of a network.

    Eager rules are fitted first, on a quarter of the composites. Objects that they split are left out: half
    of them are groups, from which the rules would learn not to split groups.

    Args:
        held: bank of held-out objects.
        composite_seed: seed of the composites.
        infer: the network, from views and masks to maps.
        view_px: side of its views.
        count: number of composites.
        seed: seed of the fits.
        quiet: show no progress bar.
        single_to_group_ratio: of the class maps, see ``teacher.py``; None: that of photos.

    Returns:
        Fits by rule name.
    """
    eager_rules = fit_eager_rules(held, composite_seed, infer, view_px, -(-count // 4), seed, quiet)
    single = Composer(remove_split_objects(held, infer, view_px, eager_rules), composite_seed, view_px)
    merges, parts, joins = _samples(single, infer, count, seed, quiet)
    ratio = PHOTO_SINGLE_TO_GROUP_RATIO if single_to_group_ratio is None else single_to_group_ratio
    merge_weight, part_weight = (
        c * ratio / count_ratio(components)
        for components, c in zip((merges, parts), _SINGLE_WEIGHTS, strict=True)
    )
    return _fits(merges, parts, joins, (merge_weight, part_weight), seed)


def fit_eager_rules(
    held: Bank,
    composite_seed: int,
    infer: ViewInference,
    view_px: int,
    count: int,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Rule]:
    """Fit rules that split too much rather than too little, to find groups among the bank's objects."""
    merges, parts, joins = _samples(Composer(held, composite_seed, view_px), infer, count, seed, quiet)
    fits = _fits(merges, parts, joins, _EAGER_WEIGHTS, seed)
    return {name: fit.rule for name, fit in fits.items()}


def remove_split_objects(bank: Bank, infer: ViewInference, view_px: int, rules: dict[str, Rule]) -> Bank:
    """Return the bank without objects that these rules split; unchanged if no whole object would remain."""
    single = bank.without(find_split_objects(bank, infer, view_px, rules))
    return single if any(o.whole for o in single.objects) else bank


def find_split_objects(bank: Bank, infer: ViewInference, view_px: int, rules: dict[str, Rule]) -> set[int]:
    """Return the indices of the objects that the network splits by these rules, see ``is_split``."""
    split = set()
    for start, views, masks in render_batches(bank, view_px, _BATCH):
        for k, labels in enumerate(
            split_components(masks, infer(views, masks), np.asarray(AFFINITY_OFFSETS, np.int32), rules)
        ):
            if is_split(np.bincount(labels.ravel())[1:]):
                split.add(start + k)
    return split


def _samples(
    composer: Composer, infer: ViewInference, count: int, seed: int, quiet: bool
) -> tuple[list[ComponentSamples], list[ComponentSamples], list[Samples]]:
    """Return samples for "merge", "part" and "join"; those for "join" by composite."""
    rng = np.random.default_rng(seed)
    merges: list[ComponentSamples] = []
    parts: list[ComponentSamples] = []
    joins: list[Samples] = []
    for start in tqdm(range(0, count, _BATCH), desc="composites for the rules", disable=quiet):
        batch = [composer(start + k) for k in range(min(_BATCH, count - start))]
        maps = infer(np.stack([c.image for c in batch]), np.stack([c.mask for c in batch]))
        for k, composite in enumerate(batch):
            for samples, problem in ((merges, view_problem), (parts, _second_pass_problem)):
                samples += collect_component_samples(
                    composite.mask, composite.owner, partial(problem, maps=maps, k=k), rng
                )
            joins += _join_samples(composite, maps, k)
    return merges, parts, joins


def count_ratio(components: list[ComponentSamples]) -> float:
    """Return the smoothed ratio of single objects to groups among components."""
    single = sum(is_single for _, is_single in components)
    return (single + 1) / (len(components) - single + 1)


def weight_samples(components: list[ComponentSamples], single_weight: float) -> list[Samples]:
    """Return the samples of components, with single objects weighted by ``single_weight``."""
    return [
        (x, same, weight * (single_weight if is_single else 1.0))
        for (x, same, weight), is_single in components
    ]


def _fits(
    merges: list[ComponentSamples],
    parts: list[ComponentSamples],
    joins: list[Samples],
    single_weights: tuple[float, float],
    seed: int,
) -> dict[str, Fit]:
    samples = {
        "merge": weight_samples(merges, single_weights[0]),
        "part": weight_samples(parts, single_weights[1]),
        "join": joins,
    }
    return {name: fit_rule(pairs, seed) for name, pairs in samples.items()}


def collect_component_samples(
    mask: NDArray[np.uint8],
    owner: NDArray[np.int32],
    problem: Callable[[NDArray[np.uint8]], Problem],
    rng: np.random.Generator,
    min_area_px: int = _MIN_OWN_PX,
    min_share: float = _OWN_SHARE,
) -> list[ComponentSamples]:
    """Return the samples of each component of a mask that has pairs of regions.

    Args:
        mask: uint8 (h, w) 0/1, of one class.
        owner: int32 (h, w), the object of each pixel, 0 and below = none.
        problem: function from a component's mask to the operator's problem.
        rng: random numbers.
        min_area_px, min_share: minimum area of a component in pixels, and relative to the largest one.
    """
    found = []
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    for component in np.flatnonzero(area >= max(min_area_px, min_share * area.max(initial=0))) + 1:
        own = (labels == component).astype(np.uint8)
        truth = np.where(own > 0, owner, 0)
        features, same, weight = merge_samples(
            region_graph(problem(own)), truth, evidence_features, _MEAN_AFFINITY, rng
        )
        if len(same):
            found.append(((features, same, weight), len(np.unique(truth[truth > 0])) < 2))
    return found


def view_problem(own: NDArray[np.uint8], maps: InstanceMaps, k: int) -> Problem:
    """Return the operator's problem for a component's mask and the maps of view ``k``."""
    return problem_of(
        own,
        boundary=_boundary(maps, k)[None],
        affinity=np.ascontiguousarray(maps.affinity[k : k + 1]),
        affinity_offsets=np.ascontiguousarray(AFFINITY_OFFSETS, np.int32),
        affinity_stride=own.shape[0] // maps.affinity.shape[-1],
    )


def _boundary(maps: InstanceMaps, k: int) -> NDArray[np.float32]:
    """Return the boundary map of view ``k``, (S, S)."""
    return np.ascontiguousarray(maps.boundary[k, 0].repeat(2, 0).repeat(2, 1))


def _second_pass_problem(own: NDArray[np.uint8], maps: InstanceMaps, k: int) -> Problem:
    """Return the operator's problem for what boundaries leave of a component."""
    return view_problem(remove_boundaries(own, _boundary(maps, k)), maps, k)


def remove_boundaries(own: NDArray[np.uint8], boundary: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a mask (h, w) 0/1 without the pixels on a boundary (h, w): the input of the second pass."""
    return own & (boundary <= BOUNDARY_THRESHOLD).astype(np.uint8)


def _join_samples(composite: Composite, maps: InstanceMaps, k: int) -> list[Samples]:
    """Return pairs of parts in different components; a part is one object's share of one component."""
    step = JOIN_CELL_PX
    _, labels = cv2.connectedComponents(composite.mask, connectivity=8)
    owner, component = composite.owner[::step, ::step], labels[::step, ::step]
    parts = np.zeros(owner.shape, np.int32)
    pairs = sorted({(int(o), int(c)) for o, c in zip(owner[owner > 0], component[owner > 0], strict=True)})
    for number, (o, c) in enumerate(pairs, 1):
        parts[(owner == o) & (component == c)] = number
    owners, components = np.array([o for o, _ in pairs]), np.array([c for _, c in pairs])
    i, j = np.nonzero(np.triu(components[:, None] != components[None], 1))
    if not len(i):
        return []
    pair_features = PairFeatures(
        parts,
        composite.other[::step, ::step] > 0,
        composite.image,
        maps.displacement[k],
        maps.affinity[k],
        np.asarray(AFFINITY_OFFSETS, np.int32),
    )
    same = owners[i] == owners[j]
    area = pair_features.regions[:, 0]
    whole = np.bincount(owners, area)
    small_owner = np.where(area[i] <= area[j], owners[i], owners[j])
    share = np.minimum(1.0, np.minimum(area[i], area[j]) / whole[small_owner])
    weight = np.where(same, cost_of_cut(share), cost_of_merge(share))
    return [(pair_features.features(i, j), same.astype(float), weight / len(same) ** 0.5)]


def average_rules(rules: list[Rule]) -> Rule:
    """Return one rule with the hidden units of all rules, whose output is the mean of their outputs."""
    features = len(EVIDENCE_FEATURES)
    hidden = [len(rule) // (features + 2) for rule in rules]
    ends = [np.cumsum([n * features, n, n]) for n in hidden]
    weights, biases, outs, bias = zip(
        *(np.split(rule, end) for rule, end in zip(rules, ends, strict=True)), strict=True
    )
    scaled = [part / len(rules) for part in (*outs, np.sum(bias, axis=0))]
    return np.concatenate([*weights, *biases, *scaled]).astype(np.float32)


def fit_rule(parts: list[Samples], seed: int, members: int = MEMBERS) -> Fit:
    """Fit a rule on all samples but the first tenth, which is held out.

    Raises:
        InputError: there are no samples.
    """
    if not parts:
        raise InputError(
            "the composites have no pair of regions to fit a rule on: use more images or more composites"
        )
    features, same, weight = samples = concatenate_samples(parts)
    net, _ = fit_members(samples, HIDDEN, members, seed, min(_STEPS, 100 + len(same) // 4))
    held = max(1, int(len(same) * HELD_OUT))  # as in fit_members
    with torch.no_grad():
        predicted = net(torch.from_numpy(features[:held]).float())[:, 0].numpy() > 0
    error = float(np.average(predicted != (same[:held] > 0.5), weights=weight[:held] + 1e-9))
    rule = (
        torch.cat([p.detach().ravel() for p in (net[0].weight, net[0].bias, net[2].weight, net[2].bias)])
        .numpy()
        .astype(np.float32)
    )
    return Fit(rule, error, len(same))
