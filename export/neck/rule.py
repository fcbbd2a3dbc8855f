"""Fit the split rule on composites of object shapes: is a neck inside one object?

It writes plugins/csrc/neck_rule.h for the native operator and the numpy reference. Run it in the repository
as ``python -m tfiseg.export.neck.rule --images DIR --semantic DIR --confidence DIR`` (needs torch; about ten
minutes on two cores).
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...plugins.native import region_graph
from ...plugins.neck import Edges, Regions, neck_features, union
from ...plugins.problem import problem_of
from .composites import Shape, composite, shape_bank

MEMBERS, HIDDEN = 4, 16  # averaged networks, hidden units of each: single fits vary by 2 PQ
_SIDES_PX = (96, 128, 192, 256, 320, 448, 512)  # grid sizes from stride-4 logits to full images
_MIN_PURITY = 0.6  # regions with a smaller share of one object are not used
HELD_OUT = 0.1
_CHUNK = 250  # composites per task of a worker process

Samples = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


Graph = tuple[NDArray[np.int32], Regions, Edges]


def neck_samples(truth: NDArray[np.int32], rng: np.random.Generator) -> Samples:
    """Collect necks while the regions of a composite merge correctly; 13 features."""
    return merge_samples(region_graph(problem_of((truth > 0).astype(np.uint8))), truth, neck_features, 0, rng)


def merge_samples(
    graph: Graph,
    truth: NDArray[np.int32],
    features_of: Callable[[Regions, Edges], NDArray[np.float64]],
    leading: int,
    rng: np.random.Generator,
) -> Samples:
    """Collect pairs of regions while a graph merges as in the truth.

    Args:
        truth: object of each pixel, int32 (h, w); 0 and below = no object.
        leading: feature by which pairs are merged, largest first.

    Returns:
        Features (m, f), same object (m,), weight (m,).
    """
    region_map, regions, edges = graph
    truth = np.maximum(truth, 0)
    n = len(regions)
    counts = np.zeros((n + 1, int(truth.max()) + 1), np.int64)
    np.add.at(counts, (region_map.ravel(), truth.ravel()), 1)
    counts = counts[1:]
    features, same, weight = [], [], []
    while len(edges):
        owner, purity = counts.argmax(1), counts.max(1) / np.maximum(counts.sum(1), 1)
        sure = (purity > _MIN_PURITY) & (owner > 0)
        known = sure[edges[:, 0]] & sure[edges[:, 1]]
        one = owner[edges[:, 0]] == owner[edges[:, 1]]
        x = features_of(regions, edges)
        smaller = np.minimum(regions[edges[:, 0], 0], regions[edges[:, 1], 0])
        # size of the object that a wrong cut would split
        size = counts.sum(0)[np.where(one, owner[edges[:, 0]], 0)]
        small_owner = np.where(
            regions[edges[:, 0], 0] <= regions[edges[:, 1], 0], owner[edges[:, 0]], owner[edges[:, 1]]
        )
        size = np.where(one, size, counts.sum(0)[small_owner])
        features.append(x[known])
        same.append(one[known].astype(float))
        share = np.minimum(1.0, smaller / np.maximum(size, 1))
        weight.append(np.where(one, cost_of_cut(share), cost_of_merge(share))[known])
        true_edges = np.flatnonzero(one)
        if not len(true_edges):
            break
        # merge one pair at a time, in a random order close to the rule's, to get states of all stages
        order = x[true_edges, leading] + rng.normal(0, 0.15, len(true_edges))
        a, b = edges[true_edges[order.argmax()], :2]
        regions, edges, counts = _merge(regions, edges, counts, int(a), int(b))
    if not features:
        return features_of(regions, edges[:0]), np.zeros(0), np.zeros(0)
    f, s, w = np.concatenate(features), np.concatenate(same), np.concatenate(weight)
    # each composite has the same weight, regardless of its number of necks
    return f, s, w / max(1.0, len(w) ** 0.5)


def cost_of_cut(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the PQ cost of cutting off a share of an object: a false positive, and from a third on its
    match."""
    return 0.5 + 1.5 * np.clip((share - 0.1) / 0.3, 0, 1)


def cost_of_merge(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the PQ cost of merging a share of an object with another: high if the share is most of it."""
    return 0.2 + 1.3 * np.clip((share - 0.2) / 0.4, 0, 1)


def _merge(
    regions: Regions, edges: Edges, counts: NDArray[np.int64], a: int, b: int
) -> tuple[Regions, Edges, NDArray[np.int64]]:
    regions, counts = regions.copy(), counts.copy()
    regions[a] = union(regions[a : a + 1], regions[b : b + 1])[0]
    counts[a] += counts[b]
    counts[b] = 0
    ends = np.where(edges[:, :2] == b, a, edges[:, :2])
    keep = ends[:, 0] != ends[:, 1]
    pairs = np.sort(ends[keep], axis=1)
    rest = edges[keep, 2:]
    unique, index = np.unique(pairs, axis=0, return_inverse=True)
    index = index.ravel()
    merged = np.zeros((len(unique), edges.shape[1]), np.int64)
    merged[:, :2] = unique
    np.maximum.at(merged[:, 2], index, rest[:, 0])
    np.add.at(merged[:, 3:], index, rest[:, 1:])
    return regions, merged, counts


def _collect_chunk(task: tuple[Sequence[Shape], int, list[int]]) -> Samples:
    bank, count, seed = task
    rng = np.random.default_rng(seed)
    parts = [neck_samples(composite(bank, rng, int(rng.choice(_SIDES_PX))), rng) for _ in range(count)]
    return concatenate_samples(parts)


def concatenate_samples(parts: Sequence[Samples]) -> Samples:
    """Concatenate features, same-object flags and weights."""
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] for p in parts]),
    )


def collect(bank: Sequence[Shape], count: int, seed: int, workers: int = 1) -> Samples:
    """Collect samples of ``count`` composites; they depend on the seed, not on the number of workers."""
    tasks = [(bank, min(_CHUNK, count - k), [seed, k]) for k in range(0, count, _CHUNK)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return concatenate_samples(
            list(tqdm(pool.imap(_collect_chunk, tasks), total=len(tasks), desc=f"composites, {_CHUNK} each"))
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: synchronizing threads takes longer than these short steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit_member(
    samples: Samples, hidden: int = HIDDEN, seed: int = 0, steps: int = 5000
) -> tuple[torch.nn.Sequential, float]:
    """Fit a network features -> hidden -> 1 with ReLU; also return its held-out loss."""
    torch.manual_seed(seed)
    x, y, w = (torch.from_numpy(s).float() for s in samples)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)  # a feature may be constant
    net = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
    )
    held = int(len(x) * HELD_OUT)
    xs = (x - mean) / std
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        pick = torch.randint(held, len(x), (4096,))
        loss = _loss(net(xs[pick])[:, 0], y[pick], w[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        held_loss = float(_loss(net(xs[:held])[:, 0], y[:held], w[:held]))
        first = net[0]
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)
    return net, held_loss


def fit(samples: Samples, seed: int = 0, steps: int = 5000) -> tuple[torch.nn.Sequential, float]:
    """Fit the split rule, see ``fit_members``."""
    return fit_members(samples, HIDDEN, MEMBERS, seed, steps)


def fit_members(
    samples: Samples, hidden: int, members: int, seed: int, steps: int
) -> tuple[torch.nn.Sequential, float]:
    """Average several fits into one wide network; also return the members' mean held-out loss."""
    fits = [fit_member(samples, hidden, seed=seed + k, steps=steps) for k in tqdm(range(members), desc="fit")]
    nets = [net for net, _ in fits]
    features, units = samples[0].shape[1], members * hidden
    whole = torch.nn.Sequential(torch.nn.Linear(features, units), torch.nn.ReLU(), torch.nn.Linear(units, 1))
    with torch.no_grad():
        whole[0].weight.copy_(torch.cat([n[0].weight for n in nets]))
        whole[0].bias.copy_(torch.cat([n[0].bias for n in nets]))
        whole[2].weight.copy_(torch.cat([n[2].weight for n in nets], 1) / members)
        whole[2].bias.copy_(torch.stack([n[2].bias for n in nets]).mean(0))
    return whole, sum(loss for _, loss in fits) / members


def _loss(logit: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (
        torch.nn.functional.binary_cross_entropy_with_logits(logit, y, reduction="none") * w
    ).sum() / w.sum()


def header_text(net: torch.nn.Sequential, composites: int, seed: int) -> str:
    """Return the text of neck_rule.h, with weights in the 9 digits that a float32 needs."""
    w1, b1, w2, b2 = (
        p.detach().double().numpy() for p in (net[0].weight, net[0].bias, net[2].weight, net[2].bias)
    )

    def row(values: NDArray[np.float64]) -> str:
        return "{" + ", ".join(f"{v:.9g}" for v in values) + "}"

    lines = ",\n    ".join(row(r) for r in w1)
    return f"""// Written by export/neck/rule.py ({composites} composites, seed {seed}): do not edit.
// Read by merge.h, for the CPU and for the GPU (TFISEG_TABLE: where tables lie), and by reference.py.
constexpr int kNeckFeatures = {w1.shape[1]};
constexpr int kNeckHidden = {w1.shape[0]};
TFISEG_TABLE float kNeckHiddenWeight[kNeckHidden][kNeckFeatures] = {{
    {lines}}};
TFISEG_TABLE float kNeckHiddenBias[kNeckHidden] = {row(b1)};
TFISEG_TABLE float kNeckOutWeight[kNeckHidden] = {row(w2[0])};
constexpr float kNeckOutBias = {b2[0]:.9g};
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("images", "semantic", "confidence"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--composites", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "plugins" / "csrc" / "neck_rule.h"
    )
    args = parser.parse_args()
    bank = shape_bank(args.images, args.semantic, args.confidence)
    samples = collect(bank, args.composites, args.seed, args.workers)
    net, held_loss = fit(samples, seed=args.seed)
    args.out.write_text(header_text(net, args.composites, args.seed))
    print(
        f"{len(bank)} shapes, {len(samples[0])} necks ({samples[1].mean():.0%} inside one object), held-out "
        f"loss {held_loss:.4f}"
    )


if __name__ == "__main__":
    main()
