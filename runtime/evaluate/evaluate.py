"""``tfiseg eval``: score instances against an evaluation set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError
from ...files import writable_folder
from ...instances import Instances
from ...plugins.settings import IGNORE, Split
from ..refine.refiner import Refiner
from ..segmenter import Segmenter
from .coco_set import CocoPictures, load_coco_set
from .contact_sheet import contact_sheet
from .evaluation_set import EvalPicture, EvalPictures, keep_classes, load_eval_set
from .finders import OURS, Find, model_finders, truth_finders
from .metrics import (
    AveragePrecision,
    PanopticCounts,
    PictureScore,
    boundary_iou,
    paired_gain,
    panoptic_counts,
)
from .recall import RecallBySize

Pictures = EvalPictures | CocoPictures
_SHEET_PICTURES = 10


def open_eval_set(folder: Path, annotations: Path | None = None) -> tuple[Pictures, dict[int, str]]:
    """Return the pictures of a set, read on access, and class ID -> name; see ``evaluate``."""
    return load_eval_set(folder) if annotations is None else load_coco_set(folder, annotations)


def semantic_iou(pairs: NDArray[np.int64]) -> dict[int, float]:
    """Return the IoU of each class in the truth, from a confusion matrix (truth, predicted)."""
    intersection = np.diag(pairs)
    union = pairs.sum(0) + pairs.sum(1) - intersection
    return {int(c): float(intersection[c] / union[c]) for c in np.flatnonzero(pairs.sum(1))}


def evaluate(
    folder: Path,
    semantic: str = "truth",
    segmenter: Segmenter | None = None,
    split: Split = "auto",
    out: Path | None = None,
    quiet: bool = False,
    refiner: Refiner | None = None,
    against: Sequence[str] = (),
    min_area: int | None = None,
    annotations: Path | None = None,
) -> dict[str, Any]:
    """Score instances against an evaluation set.

    Args:
        folder: the evaluation set, or the images of ``annotations``.
        semantic: "truth" clusters the true class maps by ``split``, see ``tfiseg.cluster``; "model" runs
            ``segmenter`` on the pictures.
        out: folder for contact sheets of the ten best, median and worst pictures.
        refiner: for "truth", refines the regions of the class maps, instead of ``split``.
        against: baselines on the same class maps: "components" (connected components), "shape",
            "calibrated-components" (with the model's score calibration), "shipped" (the default instance
            network; for "truth").
        min_area: for "truth", minimum area of an instance in pixels; default: that of the refiner, else 25.
        annotations: COCO file with the true instances.

    Returns:
        PQ and its counts, AP, AP50, AP75, mean boundary IoU of matches, PQ per class, recall by class and
        size, median time per picture, and the best, median and worst pictures. For "model" also IoU per class
        and mIoU over the shared classes. ``gain``: the gain in PQ over each baseline and its 95% interval.
    """
    out = writable_folder(out) if out is not None else None  # an error now, not at the end
    pictures, names = open_eval_set(folder, annotations)
    if semantic == "truth":
        finders, ids = truth_finders(names, split, refiner, against, min_area), None
    elif semantic == "model" and segmenter is not None:
        finders, ids = model_finders(names, segmenter, against)
    else:
        raise InputError(f'semantic must be "truth" or "model" (with a segmenter), got {semantic!r}')
    tallies = {name: _Tally(is_complete=name == OURS) for name in finders}
    began, ms = time.perf_counter(), list[float]()
    for picture in tqdm(pictures, unit="image", desc=f"eval {folder.name}", disable=quiet):
        for name, find in finders.items():
            start = time.perf_counter()
            found = find(picture)
            if name == OURS:
                ms.append((time.perf_counter() - start) * 1e3)
            tallies[name].add(*_keep_shared_classes(found, picture, ids))
    ours = tallies[OURS]
    report = {"set": folder.name, "pictures": len(pictures), "semantic": semantic, **_scores(ours, names)}
    if against:
        report["gain"] = {name: _gain(ours, tallies[name]) for name in against}
    report |= _class_map_scores(ours, names) if semantic == "model" else {}
    report |= {"median_ms": round(float(np.median(ms)), 1), "seconds": round(time.perf_counter() - began, 2)}
    ranking = _rank_pictures(ours.pictures)
    report |= {title: [pictures.paths[k].stem for k in indices] for title, indices in ranking.items()}
    if out is not None:
        for title, indices in ranking.items():
            _write_sheet(out / f"{title}.png", indices, ours, pictures, finders[OURS], ids)
    return report | ({} if out is None else {"contact_sheets": str(out)})


def _scores(ours: _Tally, names: dict[int, str]) -> dict[str, Any]:
    counts = ours.total.pooled
    return {
        "PQ": round(counts.quality, 2),
        "true_positives": counts.true_positives,
        "false_positives": counts.false_positives,
        "false_negatives": counts.false_negatives,
        **ours.precision.scores(),
        "boundary_IoU": round(100 * float(np.mean(ours.outlines)), 2) if ours.outlines else float("nan"),
        "per_class_PQ": {
            names.get(c, f"class {c}"): round(v.quality, 2) for c, v in sorted(ours.total.per_class.items())
        },
        "recall_by_size": ours.recall.report(names),
    }


def _class_map_scores(ours: _Tally, names: dict[int, str]) -> dict[str, Any]:
    iou = semantic_iou(ours.confusion)
    labels = {c: names.get(c, "background" if c == 0 else f"class {c}") for c in iou}
    return {
        "mIoU": round(float(np.mean(list(iou.values()))), 4),
        "per_class_IoU": {labels[c]: round(v, 4) for c, v in iou.items()},
    }


def _write_sheet(
    path: Path, indices: list[int], ours: _Tally, pictures: Pictures, find: Find, ids: set[int] | None
) -> None:
    cases = []
    for k in indices:
        found, picture = _keep_shared_classes(find(pictures[k]), pictures[k], ids)
        cases.append((ours.pictures[k], picture, found))
    if not cv2.imwrite(str(path), contact_sheet(cases)):
        raise InputError(f"can't write {path}: is the disk full?")


class _Tally:
    """The scores of one finder; ``is_complete`` includes outlines, recall and class maps."""

    def __init__(self, is_complete: bool) -> None:
        self.is_complete = is_complete
        self.precision = AveragePrecision()
        self.confusion = np.zeros((256, 256), np.int64)
        self.total = PictureScore()
        self.pictures: list[PanopticCounts] = []
        self.outlines: list[float] = []
        self.recall = RecallBySize()

    def add(self, found: Instances, picture: EvalPicture) -> None:
        score = panoptic_counts(found.label_map, found.class_id, picture.truth, picture.semantic)
        self.total.add(score)
        self.pictures.append(score.pooled)
        self.precision.add(found, picture.truth, picture.semantic)
        if not self.is_complete:
            return
        self.recall.add(picture.truth, picture.semantic, score.matches)
        known = picture.semantic != IGNORE
        self.outlines += [
            boundary_iou((found.label_map == i) & known, (picture.truth == j) & known)
            for i, j in score.matches
        ]
        joint = picture.semantic[known].astype(np.int64) * 256 + found.semantic_map[known]
        self.confusion += np.bincount(joint, minlength=256 * 256).reshape(256, 256)


def _keep_shared_classes(
    found: Instances, picture: EvalPicture, ids: set[int] | None
) -> tuple[Instances, EvalPicture]:
    """Remove the instances and objects of other classes than these; None keeps all."""
    if ids is None:
        return found, picture
    return found.select(np.isin(found.class_id, [*ids])), keep_classes(picture, ids)


def _gain(ours: _Tally, baseline: _Tally) -> dict[str, Any]:
    scores = baseline.precision.scores()
    gain, low, high = paired_gain(ours.pictures, baseline.pictures)
    gains = {"PQ_gain": round(gain, 2), "interval_95": [round(low, 2), round(high, 2)]}
    quality = round(baseline.total.pooled.quality, 2)
    return {"PQ": quality, "AP": scores["AP"], "AP50": scores["AP50"], **gains}


def _rank_pictures(scores: Sequence[PanopticCounts]) -> dict[str, list[int]]:
    """Return the indices of the ten best, median and worst pictures, by errors and then by matches."""

    def key(k: int) -> tuple[int, int, float]:
        c = scores[k]
        return c.false_positives + c.false_negatives, -c.true_positives, -c.iou_sum

    order, n = sorted(range(len(scores)), key=key), _SHEET_PICTURES
    middle = max(0, (len(order) - n) // 2)
    return {"best": order[:n], "median": order[middle : middle + n], "worst": order[::-1][:n]}
