"""PQ with true masks beside the shipped network, and tests on composites: `python evaluate.py WEIGHTS EVAL
CACHE`.

EVAL holds evaluation sets (voc2007, pennfudan, dsb2018, coco); CACHE is the bank of ``samples.banks``.
"""

import argparse
import pickle
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import tfiseg
import torch
from composites import QuestionComposer
from linkage import Picture
from network import VIEW_PX, OneQuestionNetwork, load_network
from tfiseg.export.instance.bank import Bank
from tfiseg.export.instance.picture_effects import imitate_camera
from tfiseg.runtime.evaluate.evaluation_set import load_eval_set
from tfiseg.runtime.evaluate.metrics import PanopticCounts, paired_gain, panoptic_counts

SETS = ("voc2007", "pennfudan", "dsb2018", "coco")
Cut = tuple[float, float]  # threshold, and how much necks count
CUTS: tuple[Cut, ...] = ((-1.5, 0.0), (-1.0, 0.0), (-0.5, 0.0), (0.0, 0.0), (0.0, 1.0))
JOINS = tuple((threshold, pieces) for pieces in (8, 40) for threshold in (0.0, 0.5, 1.0, 2.0))
NO_JOIN = (float("inf"), 0)
_FOLDS = 5
_BACK = 0.8  # IoU from which on an object came back as one
_GOOD_PART = 0.2  # of an object
_TEST = 31  # seed of composites for tests
Counts = dict[str, list[PanopticCounts]]  # by method, one for each picture


def methods_of(
    network: OneQuestionNetwork, refiner: tfiseg.Refiner, image, semantic
) -> dict[str, tfiseg.Instances]:
    """Instances by each method: ``shape`` (the default split), ``shipped``, and (cut, join) as text."""
    components = tfiseg.cluster(semantic, split=0.0)
    found = {
        "components": components,
        "shape": tfiseg.cluster(semantic),
        "shipped": refiner(image, components),
    }
    picture = Picture(network, image, semantic)
    for cut in CUTS:
        partition = picture.cut(*cut)
        found[name_of(cut, NO_JOIN)] = picture.instances(partition)
        for join, instances in zip(JOINS, picture.joined(partition, JOINS), strict=True):
            found[name_of(cut, join)] = instances
    return found


def name_of(cut: Cut, join: tuple[float, int]) -> str:
    """How thresholds are called in tables."""
    shape = f" with {cut[1]:g} shape" if cut[1] else ""
    joins = "no join" if join == NO_JOIN else f"join {join[0]:g} of at most {join[1]}"
    return f"cut {cut[0]:g}{shape}, {joins}"


def counts_of_set(network: OneQuestionNetwork, folder: Path) -> Counts:
    """PQ's counts of each picture of a set."""
    pictures, counts, refiner = load_eval_set(folder)[0], {}, tfiseg.Refiner()
    for i in range(len(pictures)):
        picture = pictures[i]
        for name, found in methods_of(network, refiner, picture.image, picture.semantic).items():
            score = panoptic_counts(found.label_map, found.class_id, picture.truth, picture.semantic)
            counts.setdefault(name, []).append(score.pooled)
    return counts


def quality(counts: list[PanopticCounts]) -> float:
    """PQ of pictures together."""
    total = PanopticCounts()
    for c in counts:
        total.add(c)
    return total.quality


def gain_of_mean(ours: Counts, theirs: Counts, draws: int = 2000) -> tuple[float, float, float]:
    """Gain in the mean PQ of all sets and the limits of its 95% interval: each set is resampled by itself.

    Args:
        ours, theirs: by set, the counts of one method.
        draws: number of samples.
    """
    rng, sampled, gains = np.random.default_rng(0), np.zeros(draws), []
    for name in ours:
        sides = [ours[name], theirs[name]]
        table = np.array([[astuple(c) for c in side] for side in sides])
        picks = rng.integers(0, table.shape[1], (draws, table.shape[1]))
        found, right, extra, missed = np.moveaxis(table[:, picks].sum(2), -1, 0)
        each = 100 * found / np.maximum(right + 0.5 * extra + 0.5 * missed, 1e-9)
        sampled += (each[0] - each[1]) / len(ours)
        gains.append(quality(sides[0]) - quality(sides[1]))
    low, high = np.percentile(sampled, (2.5, 97.5))
    return float(np.mean(gains)), float(low), float(high)


def cross_validated(sets: dict[str, Counts]) -> tuple[dict[str, list[PanopticCounts]], list[str]]:
    """Counts of each set with thresholds from the other folds, the best there by the sets' mean PQ."""
    names = [n for n in next(iter(sets.values())) if n.startswith("cut")]
    fold = {s: np.random.default_rng(0).permutation(len(c["shape"])) % _FOLDS for s, c in sets.items()}
    out: dict[str, list[PanopticCounts]] = {s: list(c["shape"]) for s, c in sets.items()}
    chosen = []
    for k in range(_FOLDS):
        score = {
            n: np.mean(
                [quality([c for c, f in zip(sets[s][n], fold[s], strict=True) if f != k]) for s in sets]
            )
            for n in names
        }
        chosen.append(max(score, key=lambda n: score[n]))
        for s in sets:
            for i in np.flatnonzero(fold[s] == k):
                out[s][i] = sets[s][chosen[-1]][i]
    return out, chosen


def report_sets(sets: dict[str, Counts]) -> None:
    """Print PQ of every method, and gains with their intervals."""
    names = list(next(iter(sets.values())))
    print("| | " + " | ".join(sets) + " | mean |")
    validated, chosen = cross_validated(sets)
    for name in names:
        row = [quality(c[name]) for c in sets.values()]
        print(f"| {name} | " + " | ".join(f"{q:.1f}" for q in row) + f" | {np.mean(row):.1f} |")
    row = [quality(c) for c in validated.values()]
    print("| cross-validated | " + " | ".join(f"{q:.1f}" for q in row) + f" | {np.mean(row):.1f} | {chosen}")
    best = max(
        (n for n in names if n.startswith("cut")),
        key=lambda n: np.mean([quality(c[n]) for c in sets.values()]),
    )
    shown = [name_of(cut, join) for cut in ((0.0, 0.0), (0.0, 1.0)) for join in (NO_JOIN, (2.0, 8))]
    for name in dict.fromkeys((*shown, best, "cross-validated")):
        for base in ("shape", "shipped"):
            ours = validated if name == "cross-validated" else {s: c[name] for s, c in sets.items()}
            theirs = {s: c[base] for s, c in sets.items()}
            gains = [*(paired_gain(ours[s], theirs[s]) for s in sets), gain_of_mean(ours, theirs)]
            print(
                f"{name} over {base}: " + " | ".join(f"{g:+.1f} ({a:+.1f} to {b:+.1f})" for g, a, b in gains)
            )


def came_back(found: np.ndarray, label: np.ndarray) -> bool:
    """Whether every object of a composite is one instance of its own."""
    for number in np.unique(label[label > 0]):
        its = label == number
        overlap = np.bincount(found[its])
        overlap[:1] = 0
        best = int(overlap.argmax()) if overlap.any() else -1
        if (its & (found == best)).sum() <= _BACK * (its | (found == best)).sum():
            return False
    return True


def is_merged(found: np.ndarray, label: np.ndarray) -> bool:
    """Whether an instance has a good part of each of two objects."""
    numbers = np.unique(label[label > 0])
    parts = [np.bincount(found[label == n], minlength=found.max() + 1) / (label == n).sum() for n in numbers]
    return bool((np.sum([p > _GOOD_PART for p in parts], axis=0)[1:] > 1).any())


def report_composites(network: OneQuestionNetwork, held: Bank, count: int) -> None:
    """Print how often all objects behind a grid or a bar come back whole, and how often two become one."""
    composer, refiner = QuestionComposer(held, _TEST, VIEW_PX), tfiseg.Refiner()
    tests = {"behind a grid, one": composer.one_behind_grid, "two behind a bar": composer.two_behind_bar}
    for title, draw in tests.items():
        right, merged = Counter[str](), Counter[str]()
        rng, done = np.random.default_rng(_TEST), 0
        while done < count:
            scene = draw(rng)
            if scene is None:
                continue
            done += 1
            image, label = imitate_camera(scene[0], rng), np.maximum(scene[1], 0)
            for name, found in methods_of(network, refiner, image, (label > 0).astype(np.uint8)).items():
                right[name] += came_back(found.label_map, label)
                merged[name] += is_merged(found.label_map, label)
        print(f"{title}, of {count}: whole {dict(right)}, merged {dict(merged)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("sets", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--composites", type=int, default=60)
    options = parser.parse_args()
    network = load_network(options.weights)
    torch.set_num_threads(1)
    report_sets({name: counts_of_set(network, options.sets / name) for name in SETS})
    _, held = pickle.loads(options.cache.read_bytes())
    report_composites(network, held, options.composites)


if __name__ == "__main__":
    main()
