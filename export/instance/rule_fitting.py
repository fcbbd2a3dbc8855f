"""Fit the rules that turn the network's maps into instances, on composites of objects that training kept
apart.

- *merge*: whether two touching regions of a component are one object: shape of the neck, mean affinity, mean
  boundary;
- *part*: the same of what boundaries leave of it, for the operator's second look (plugins/csrc/parts.h);
- *join*: whether two pieces of different components are one object behind something
(runtime/refine/join_rule.py).

They are small networks, averaged over several fits; they belong to one set of weights and travel in its model
file. Nothing here sees an evaluation picture.
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
from ...plugins.problem import CALM, Problem, problem_of
from ...plugins.settings import AFFINITY_OFFSETS
from ...runtime.networks.instance_session import InstanceMaps
from ...runtime.refine.join_candidates import JOIN_CELL_PX
from ...runtime.refine.join_rule import PairFeatures
from ...runtime.refine.refiner import split_components
from ..neck.rule import HELD_OUT, Samples, cost_of_cut, cost_of_merge, fit_members, merge_samples
from .bank import Bank, is_split, object_view
from .composites import Composer, Composite
from .teacher import PHOTOS_LONE_ODDS

HIDDEN, MEMBERS = 12, 4  # units of each fit, fits averaged
# lone components weigh so much more than their share: for photos 15 and 7.5, which had the best PQ on other
# composites (docs/benchmarks)
_CAUTION = 2.0, 0.87  # of "merge", "part"
_BOLD_WEIGHTS = 3.0, 3.0  # lone components', in rules that rather cut
_OWN_SHARE = 0.2  # components this large beside the largest get a view of their own
_MIN_OWN_PX = 64
_BATCH = 32
_STEPS = 4000  # of a fit; fewer where there is little to fit
_MEAN_AFFINITY = EVIDENCE_FEATURES.index("mean affinity")

Rule = NDArray[np.float32]
OfComponent = tuple[Samples, bool]  # pairs of its regions, and whether it is one object
Look = Callable[[NDArray[np.uint8], NDArray[np.uint8]], InstanceMaps]


@dataclass(frozen=True)
class Fit:
    """A rule as one float32 array, the share of (weighted) held-out pairs that it tells wrong, and how many
    it was fitted on."""

    rule: Rule
    held_error: float
    pairs: int


def rules_report(fits: Mapping[str, Fit]) -> dict[str, dict[str, float]]:
    """Rounded held-out error and number of pairs of each rule, by name."""
    return {name: {"held_error": round(f.held_error, 4), "pairs": f.pairs} for name, f in fits.items()}


def fit_rules(
    held: Bank,
    composite_seed: int,
    infer: Look,
    view_px: int,
    count: int,
    seed: int = 0,
    quiet: bool = False,
    lone_odds: float | None = None,
) -> dict[str, Fit]:
    """Fit "merge", "part" and "join" on ``count`` composites of objects kept apart, as the network ``infer``
    (views of ``view_px``, masks -> maps) sees them, for class maps of such ``lone_odds`` (``teacher.py``;
    None: photos'). Bold rules first, on a quarter: objects that they split, half of which are groups, would
    teach to leave groups whole."""
    bold = bold_rules(held, composite_seed, infer, view_px, -(-count // 4), seed, quiet)
    single = Composer(without_split(held, infer, view_px, bold), composite_seed, view_px)
    merges, parts, joins = _samples(single, infer, count, seed, quiet)
    odds = PHOTOS_LONE_ODDS if lone_odds is None else lone_odds
    merge_weight, part_weight = (
        c * odds / lone_odds_of(its) for its, c in zip((merges, parts), _CAUTION, strict=True)
    )
    return _fits(merges, parts, joins, (merge_weight, part_weight), seed)


def bold_rules(
    held: Bank, composite_seed: int, infer: Look, view_px: int, count: int, seed: int = 0, quiet: bool = False
) -> dict[str, Rule]:
    """Rules that rather cut, by name: what they split of the objects that a bank takes for single is looked
    at as groups."""
    merges, parts, joins = _samples(Composer(held, composite_seed, view_px), infer, count, seed, quiet)
    fits = _fits(merges, parts, joins, _BOLD_WEIGHTS, seed)
    return {name: fit.rule for name, fit in fits.items()}


def without_split(bank: Bank, infer: Look, view_px: int, rules: dict[str, Rule]) -> Bank:
    """The bank without the objects that the network splits by these rules; as it is if no whole object were
    left."""
    single = bank.without(split_objects(bank, infer, view_px, rules))
    return single if any(o.whole for o in single.objects) else bank


def split_objects(bank: Bank, infer: Look, view_px: int, rules: dict[str, Rule]) -> set[int]:
    """Indices of the objects that the network splits by these rules: their second largest piece is more than
    12 % of them."""
    split = set()
    for start in range(0, len(bank.objects), _BATCH):
        seen = [object_view(bank, o, view_px) for o in bank.objects[start : start + _BATCH]]
        views, masks = (np.stack(arrays) for arrays in zip(*seen, strict=True))
        for k, labels in enumerate(
            split_components(masks, infer(views, masks), np.asarray(AFFINITY_OFFSETS, np.int32), rules)
        ):
            if is_split(np.bincount(labels.ravel())[1:]):
                split.add(start + k)
    return split


def _samples(
    composer: Composer, infer: Look, count: int, seed: int, quiet: bool
) -> tuple[list[OfComponent], list[OfComponent], list[Samples]]:
    """Of "merge", "part" and "join"; joins a composite's together."""
    rng = np.random.default_rng(seed)
    merges: list[OfComponent] = []
    parts: list[OfComponent] = []
    joins: list[Samples] = []
    for start in tqdm(range(0, count, _BATCH), desc="composites for the rules", disable=quiet):
        batch = [composer(start + k) for k in range(min(_BATCH, count - start))]
        maps = infer(np.stack([c.image for c in batch]), np.stack([c.mask for c in batch]))
        for k, composite in enumerate(batch):
            whole, parted = (partial(problem, maps=maps, k=k) for problem in (view_problem, _parted_problem))
            merges += merges_of(composite.mask, composite.owner, whole, rng)
            parts += merges_of(composite.mask, composite.owner, parted, rng)
            joins += _joins_of(composite, maps, k)
    return merges, parts, joins


def lone_odds_of(components: list[OfComponent]) -> float:
    """How many components are one object, for each that is several."""
    lone = sum(is_lone for _, is_lone in components)
    return (lone + 1) / (len(components) - lone + 1)


def weighed(components: list[OfComponent], lone_weight: float) -> list[Samples]:
    """The samples of components, those of lone ones so much heavier."""
    return [
        (x, same, weight * (lone_weight if is_lone else 1.0)) for (x, same, weight), is_lone in components
    ]


def _fits(
    merges: list[OfComponent],
    parts: list[OfComponent],
    joins: list[Samples],
    lone_weights: tuple[float, float],
    seed: int,
) -> dict[str, Fit]:
    samples = {
        "merge": weighed(merges, lone_weights[0]),
        "part": weighed(parts, lone_weights[1]),
        "join": joins,
    }
    return {name: fit_rule(its, seed) for name, its in samples.items()}


def merges_of(
    mask: NDArray[np.uint8],
    owner: NDArray[np.int32],
    problem: Callable[[NDArray[np.uint8]], Problem],
    rng: np.random.Generator,
    least: int = _MIN_OWN_PX,
    least_share: float = _OWN_SHARE,
) -> list[OfComponent]:
    """Region pairs of each component of a mask, as ``problem`` (of the component alone) shows them.

    Args:
        mask: uint8 (h, w) 0/1, of one class.
        owner: int32 (h, w), the object of each pixel, 0 and below = none.
        problem: a component's mask -> the operator's problem.
        least, least_share: smaller components, in pixels and beside the largest, are left out.
    """
    found = []
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    for component in np.flatnonzero(area >= max(least, least_share * area.max(initial=0))) + 1:
        own = (labels == component).astype(np.uint8)
        truth = np.where(own > 0, owner, 0)
        features, same, weight = merge_samples(
            region_graph(problem(own)), truth, evidence_features, _MEAN_AFFINITY, rng
        )
        if len(same):
            found.append(((features, same, weight), len(np.unique(truth[truth > 0])) < 2))
    return found


def view_problem(own: NDArray[np.uint8], maps: InstanceMaps, k: int) -> Problem:
    """The operator's problem of one view: the component's mask, and the evidence on it."""
    return problem_of(
        own,
        boundary=_boundary(maps, k)[None],
        affinity=np.ascontiguousarray(maps.affinity[k : k + 1]),
        affinity_offsets=np.ascontiguousarray(AFFINITY_OFFSETS, np.int32),
        affinity_stride=own.shape[0] // maps.affinity.shape[-1],
    )


def _boundary(maps: InstanceMaps, k: int) -> NDArray[np.float32]:
    """Of view ``k``, (S, S)."""
    return np.ascontiguousarray(maps.boundary[k, 0].repeat(2, 0).repeat(2, 1))


def _parted_problem(own: NDArray[np.uint8], maps: InstanceMaps, k: int) -> Problem:
    """The same of what boundaries leave of the component."""
    return view_problem(calm(own, _boundary(maps, k)), maps, k)


def calm(own: NDArray[np.uint8], boundary: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A mask (h, w) 0/1 without what lies on a boundary (h, w): what the operator's second look is at."""
    return own & (boundary <= CALM).astype(np.uint8)


def _joins_of(composite: Composite, maps: InstanceMaps, k: int) -> list[Samples]:
    """Pairs of pieces (one object's share of one component) in different components."""
    step = JOIN_CELL_PX
    _, labels = cv2.connectedComponents(composite.mask, connectivity=8)
    owner, component = composite.owner[::step, ::step], labels[::step, ::step]
    pieces = np.zeros(owner.shape, np.int32)
    known = sorted({(int(o), int(c)) for o, c in zip(owner[owner > 0], component[owner > 0], strict=True)})
    for number, (o, c) in enumerate(known, 1):
        pieces[(owner == o) & (component == c)] = number
    owners, components = np.array([o for o, _ in known]), np.array([c for _, c in known])
    i, j = (
        np.nonzero(np.triu(components[:, None] != components[None], 1))
        if len(known) > 1
        else (np.zeros(0, int), np.zeros(0, int))
    )
    if not len(i):
        return []
    other = composite.other[::step, ::step] > 0
    pairs = PairFeatures(
        pieces,
        other,
        composite.image,
        maps.displacement[k],
        maps.affinity[k],
        np.asarray(AFFINITY_OFFSETS, np.int32),
    )
    same = owners[i] == owners[j]
    area = pairs.regions[:, 0]
    whole = np.bincount(owners, area)
    small_owner = np.where(area[i] <= area[j], owners[i], owners[j])
    share = np.minimum(1.0, np.minimum(area[i], area[j]) / whole[small_owner])
    weight = np.where(same, cost_of_cut(share), cost_of_merge(share))
    return [(pairs.features(i, j), same.astype(float), weight / len(same) ** 0.5)]


def averaged(rules: list[Rule]) -> Rule:
    """One rule with the hidden units of all, whose output is the mean of theirs."""
    features = len(EVIDENCE_FEATURES)
    hidden = [len(rule) // (features + 2) for rule in rules]
    ends = [np.cumsum([n * features, n, n]) for n in hidden]
    weights, biases, outs, bias = zip(
        *(np.split(rule, end) for rule, end in zip(rules, ends, strict=True)), strict=True
    )
    scaled = [part / len(rules) for part in (*outs, np.sum(bias, axis=0))]
    return np.concatenate([*weights, *biases, *scaled]).astype(np.float32)


def fit_rule(parts: list[Samples], seed: int, members: int = MEMBERS) -> Fit:
    """One rule from all samples, in their order: the first tenth is kept apart. Raises InputError where there
    is none."""
    if not parts:
        raise InputError(
            "the composites show no pair of pieces to fit a rule on: give more pictures, or more composites"
        )
    samples = (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] for p in parts]),
    )
    net, _ = fit_members(samples, HIDDEN, members, seed, min(_STEPS, 100 + len(samples[1]) // 4))
    held = max(1, int(len(samples[1]) * HELD_OUT))  # what fit_members kept apart
    with torch.no_grad():
        said = net(torch.from_numpy(samples[0][:held]).float())[:, 0].numpy() > 0
    wrong = float(np.average(said != (samples[1][:held] > 0.5), weights=samples[2][:held] + 1e-9))
    rule = (
        torch.cat([p.detach().ravel() for p in (net[0].weight, net[0].bias, net[2].weight, net[2].bias)])
        .numpy()
        .astype(np.float32)
    )
    return Fit(rule, wrong, len(samples[1]))
