"""PQ of weights beside the shipped network, with true or predicted masks, and tests on composites: `python
evaluate.py EVAL CACHE WEIGHTS [WEIGHTS]`.

EVAL holds evaluation sets (voc2007, pennfudan, dsb2018, coco); CACHE is the bank of ``samples.banks``. Views,
shape and the shipped network are computed once for all weights.
"""

import argparse
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
import tfiseg
import torch
from composites import QuestionComposer
from linkage import Answers, Picture
from network import VIEW_PX, OneQuestionNetwork, load_network
from tfiseg.export.instance.bank import Bank
from tfiseg.export.instance.picture_effects import imitate_camera
from tfiseg.runtime.evaluate.evaluation_set import EvalPicture, keep_classes, load_eval_set
from tfiseg.runtime.evaluate.finders import OURS, model_finders
from tfiseg.runtime.evaluate.metrics import PanopticCounts, paired_gain, panoptic_counts

SETS = ("voc2007", "pennfudan", "dsb2018", "coco")
UNKNOWN_SETS = ("dsb2018",)  # whose class the default network does not know
Cut = tuple[float, float]  # threshold, and how much necks count
CUTS: tuple[Cut, ...] = ((-1.0, 0.0), (0.0, 0.0), (-0.5, 1.0), (0.0, 1.0), (0.5, 1.0))
JOINED_CUTS: tuple[Cut, ...] = ((0.0, 0.0), (0.0, 1.0))
JOINS = tuple((threshold, pieces) for pieces in (8, 40) for threshold in (0.0, 1.0, 2.0))
SHOWN_JOINS = ((2.0, 8), (2.0, 40))
NO_JOIN = (float("inf"), 0)
_FOLDS = 5
_BACK = 0.8  # IoU from which on an object came back as one
_GOOD_PART = 0.2  # of an object
_TEST = 31  # seed of composites for tests
Counts = dict[str, list[PanopticCounts]]  # by method, one for each picture


Networks = dict[str, OneQuestionNetwork]  # by name


def methods_of(
    networks: Networks, refiner: tfiseg.Refiner, image: np.ndarray, semantic: np.ndarray
) -> dict[str, tfiseg.Instances]:
    """Instances by each method: ``components``, ``shape`` (the default split), ``shipped``, and each
    network's cuts and joins, see ``name_of``."""
    components = tfiseg.cluster(semantic, split=0.0)
    found = {
        "components": components,
        "shape": tfiseg.cluster(semantic),
        "shipped": refiner(image, components),
    }
    picture = Picture(image, semantic)
    for network_name, network in networks.items():
        answers = Answers(network, picture)
        for cut in CUTS:
            partition = answers.cut(*cut)
            found[name_of(network_name, cut, NO_JOIN)] = answers.instances(partition)
            joins = JOINS if cut in JOINED_CUTS else ()
            for join, instances in zip(joins, answers.joined(partition, joins), strict=True):
                found[name_of(network_name, cut, join)] = instances
    return found


def name_of(network: str, cut: Cut, join: tuple[float, int]) -> str:
    """How a network with thresholds is called in tables."""
    shape = f" with {cut[1]:g} shape" if cut[1] else ""
    joins = "no join" if join == NO_JOIN else f"join {join[0]:g} of at most {join[1]}"
    return f"{network}: cut {cut[0]:g}{shape}, {joins}"


def pictures_of(folder: Path, predicted: bool) -> Iterator[tuple[EvalPicture, np.ndarray]]:
    """The pictures of a set and the class maps to find instances in: true ones, or the default network's."""
    pictures, names = load_eval_set(folder)
    if not predicted:
        yield from ((p, p.semantic) for p in (pictures[i] for i in range(len(pictures))))
        return
    with tfiseg.Segmenter(quality="fast", threads=1) as segmenter:
        finders, known = model_finders(names, segmenter, ())
        for i in range(len(pictures)):
            picture = keep_classes(pictures[i], known)
            found = finders[OURS](picture)  # without small and doubtful components
            yield picture, np.where(found.label_map > 0, found.semantic_map, 0).astype(np.uint8)


def counts_of_set(networks: Networks, folder: Path, predicted: bool = False) -> Counts:
    """PQ's counts of each picture of a set."""
    counts: Counts = {}
    refiner = tfiseg.Refiner(threads=1)
    for picture, semantic in pictures_of(folder, predicted):
        for name, found in methods_of(networks, refiner, picture.image, semantic).items():
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


def cross_validated(sets: dict[str, Counts], network: str) -> tuple[Counts, list[str]]:
    """Counts of each set with the thresholds of one network that are best on the other folds, by the sets'
    mean PQ; and these thresholds."""
    names = [n for n in next(iter(sets.values())) if n.startswith(f"{network}:")]
    fold = {s: np.random.default_rng(0).permutation(len(c["shape"])) % _FOLDS for s, c in sets.items()}
    out: Counts = {s: list(c["shape"]) for s, c in sets.items()}
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


def report_sets(sets: dict[str, Counts], networks: list[str]) -> None:
    """Print PQ of every method, and gains with their intervals over shape, the shipped network and the first
    of the networks."""
    table: dict[str, Counts] = {
        name: {s: c[name] for s, c in sets.items()} for name in next(iter(sets.values()))
    }
    for network in networks:
        table[f"{network}: cross-validated"], chosen = cross_validated(sets, network)
        print(f"{network}: by folds {chosen}")
    print("| | " + " | ".join(sets) + " | mean |")
    for name, counts in table.items():
        row = [quality(c) for c in counts.values()]
        print(f"| {name} | " + " | ".join(f"{q:.1f}" for q in row) + f" | {np.mean(row):.1f} |")
    kinds = [name_of("", cut, join) for cut in JOINED_CUTS for join in (NO_JOIN, *SHOWN_JOINS)]
    for network in networks:
        for kind in (*kinds, ": cross-validated"):
            for base in ("shape", "shipped", f"{networks[0]}{kind}"):
                if base == network + kind:
                    continue
                ours, theirs = table[network + kind], table[base]
                gains = [*(paired_gain(ours[s], theirs[s]) for s in sets), gain_of_mean(ours, theirs)]
                row = " | ".join(f"{g:+.1f} ({a:+.1f} to {b:+.1f})" for g, a, b in gains)
                print(f"{network}{kind} over {base}: {row}")


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


def report_composites(networks: Networks, held: Bank, count: int) -> None:
    """Print how often all objects behind a grid or a bar come back whole, and how often two become one."""
    composer, refiner = QuestionComposer(held, _TEST, VIEW_PX), tfiseg.Refiner(threads=1)
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
            for name, found in methods_of(networks, refiner, image, (label > 0).astype(np.uint8)).items():
                right[name] += came_back(found.label_map, label)
                merged[name] += is_merged(found.label_map, label)
        print(f"{title}, of {count}: whole {dict(right)}, merged {dict(merged)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument(
        "weights", type=Path, nargs="+", help="files of different names; gains are over the first"
    )
    parser.add_argument("--only", nargs="+", choices=SETS, default=SETS, help="evaluation sets")
    parser.add_argument("--predicted", action="store_true", help="class maps of the default network")
    parser.add_argument("--composites", type=int, default=60, help="number for each of the two tests")
    parser.add_argument("--counts", type=Path, help="a file to keep each picture's counts in, set by set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = {path.stem: load_network(path) for path in options.weights}
    sets: dict[str, Counts] = {}
    for name in options.only:
        if not (options.predicted and name in UNKNOWN_SETS):
            sets[name] = counts_of_set(networks, options.sets / name, options.predicted)
            if options.counts is not None:
                options.counts.write_bytes(pickle.dumps(sets))
    report_sets(sets, list(networks))
    if options.composites:
        _, held = pickle.loads(options.cache.read_bytes())
        report_composites(networks, held, options.composites)


if __name__ == "__main__":
    main()
