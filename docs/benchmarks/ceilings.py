"""Measure the maximum gain of each step: `python docs/benchmarks/ceilings.py SET...`.

The class maps are the ground truth. In turn, each step is replaced by the ground truth.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import tfiseg
from tfiseg.plugins.native import region_graph
from tfiseg.plugins.problem import problem_of
from tfiseg.runtime.evaluate.evaluation_set import load_eval_set
from tfiseg.runtime.evaluate.metrics import PanopticCounts, panoptic_counts
from tfiseg.runtime.refine.partition import Partition, instances_from_labels
from tfiseg.runtime.refine.refiner import split_components
from tfiseg.runtime.refine.view import sample_labels
from tfiseg.runtime.refine.view_planning import plan_and_render_views

BOUNDARIES = (0.7, 0.5, 0.3)


def find_owners(parts, truth):
    """Return the object with the largest share of each part 1.., 0 = none, and this share."""
    count = np.zeros((parts.max() + 1, truth.max() + 1), np.int64)
    np.add.at(count, (parts.ravel(), truth.ravel()), 1)
    area = np.maximum(count.sum(1), 1)
    count[:, 0] = count[0] = 0
    return count.argmax(1), count.max(1) / area


def merge_perfectly(own, truth):
    """Merge the regions of a component's mask as in the ground truth."""
    regions = region_graph(problem_of(own))[0]
    return find_owners(regions, truth)[0][regions].astype(np.int32)


def split_at_boundary(own, boundary, threshold):
    inside = np.where(cv2.resize(boundary, own.shape[::-1]) > threshold, 0, own).astype(np.uint8)
    return inside if inside.any() else own


def join_perfectly(pieces, truth):
    """Join the parts whose majority is the same object."""
    owner, share = find_owners(pieces, truth)
    number = np.where(share > 0.5, owner, np.arange(len(owner)) + truth.max() + 1)
    number[0] = 0
    return number[pieces].astype(np.int32)


refiner = tfiseg.Refiner()
for folder in sys.argv[1:]:
    totals = {}
    for picture in load_eval_set(Path(folder))[0]:
        components = tfiseg.cluster(picture.semantic, split=0.0)
        planned, rendered = plan_and_render_views(picture.image, components, refiner.session.view_px)
        planned = [p for p in planned if p.component]  # the others are for joins only
        own = rendered.own[: len(planned)]
        maps = refiner.session.infer(rendered.images[: len(planned)], rendered.masks[: len(planned)])
        truths = [sample_labels(picture.truth, p.view, refiner.session.view_px) for p in planned]

        def place_labels(found, components=components, planned=planned):
            partition = Partition(components)
            for p, labels in zip(planned, found, strict=True):
                partition.split(p, labels)
            return partition.label_map

        actual = place_labels(
            split_components(own, maps, refiner.session.affinity_offsets, refiner.session.rules)
        )
        perfect = place_labels(
            [merge_perfectly(mask, truth) for mask, truth in zip(own, truths, strict=True)]
        )
        results = {
            "actual cuts, no joins": actual,
            "perfect joins": join_perfectly(actual, picture.truth),
            "perfect merges": perfect,
            "perfect merges and joins": join_perfectly(perfect, picture.truth),
        }
        for threshold in BOUNDARIES:
            views = zip(own, maps.boundary[:, 0], truths, strict=True)
            results[f"perfect merges, split at boundaries above {threshold}"] = place_labels(
                [merge_perfectly(split_at_boundary(mask, b, threshold), truth) for mask, b, truth in views]
            )
        for name, pieces in results.items():
            instances = instances_from_labels(pieces, components)
            score = panoptic_counts(instances.label_map, instances.class_id, picture.truth, picture.semantic)
            totals.setdefault(name, PanopticCounts()).add(score.pooled)
    for name, t in totals.items():
        print(
            f"{Path(folder).name}, {name}: {t.quality:.1f} "
            f"({t.true_positives}/{t.false_positives}/{t.false_negatives})"
        )
