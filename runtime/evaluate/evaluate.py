"""``tfiseg eval``: instance quality on a folder of pictures with true instances.

Format: ``images/ID.jpg|png``, ``instances/ID.png`` (uint16, 0 = none), ``semantic/ID.png`` (uint8 class, 0
background, 255 ignore), ``classes.json`` ({"1": "person"}).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...drawing import instance_colours
from ...errors import InputError
from ...files import writable_folder
from ...images import image_paths, read_image, read_map
from ...instances import Instances
from ...plugins.operator import cluster
from ...plugins.settings import IGNORE, MIN_AREA_PX, Split
from ..refine.refiner import Refiner
from ..segmenter import Segmenter
from .metrics import (
    AveragePrecision,
    PanopticCounts,
    PictureScore,
    boundary_iou,
    paired_gain,
    panoptic_counts,
)
from .recall import RecallBySize

_SHEET_CELL_HW = (220, 300)
_SHOWN = 10  # pictures on a contact sheet
_OURS = "ours"
# split, and whether by the model's own score rule
BASELINES: dict[str, tuple[Split, bool]] = {
    "components": (0.0, False),
    "shape": ("auto", False),
    "rated-components": (0.0, True),
}
_SHIPPED = "shipped"
# PASCAL's names -> COCO's, both without spaces: sets and networks name the same things in either way
_SAME_CLASS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


@dataclass(frozen=True)
class EvalPicture:
    """One picture of an evaluation set."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.int32]
    semantic: NDArray[np.uint8]


def load_eval_set(folder: Path) -> tuple[EvalPictures, dict[int, str]]:
    """The pictures of an evaluation set (read when they are asked for) and its class names; raises InputError
    for another format."""
    for needed in ("images", "instances", "semantic", "classes.json"):
        if not (folder / needed).exists():
            raise InputError(
                f"{folder} has no {needed}: an evaluation set holds images/, instances/, semantic/ and classes.json"
            )
    names = {int(k): v for k, v in json.loads((folder / "classes.json").read_text()).items()}
    paths = image_paths(folder / "images")
    if not paths:
        raise InputError(f"{folder}/images holds no picture")
    return EvalPictures(folder, paths), names


class EvalPictures(Sequence[EvalPicture]):
    """The pictures of a set, read from disk one at a time."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder = folder
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path = self.paths[index]
        image = read_image(path)
        truth, semantic = (
            read_map(self.folder / kind / f"{path.stem}.png") for kind in ("instances", "semantic")
        )
        if not image.shape[:2] == truth.shape == semantic.shape:
            raise InputError(
                f"{path}: sizes differ: picture {image.shape[:2]}, instances {truth.shape}, semantic {semantic.shape}"
            )
        return EvalPicture(path.stem, image, truth.astype(np.int32), np.asarray(semantic, np.uint8))


def semantic_iou(pairs: NDArray[np.int64]) -> dict[int, float]:
    """IoU of each class present in the truth, from a confusion matrix (truth, predicted)."""
    both = np.diag(pairs)
    either = pairs.sum(0) + pairs.sum(1) - both
    return {int(c): float(both[c] / either[c]) for c in np.flatnonzero(pairs.sum(1))}


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
) -> dict[str, Any]:
    """Score an evaluation set.

    Args:
        folder: the set.
        semantic: "truth" clusters the true class maps; "model" runs ``segmenter`` on the pictures.
        segmenter: with "model".
        split: with "truth", see ``tfiseg.cluster``.
        out: where best.png, median.png and worst.png go, contact sheets of ten pictures each.
        quiet: no progress bar.
        refiner: with "truth", cuts and joins the class maps' components in place of ``split``.
        min_area: with "truth", smallest instance in pixels, the baselines' too; default: what the refiner's
            network was made for, else 25.
        against: baselines on the same class maps: "components" (connected components), "shape";
            "rated-components": the first, scored by the model's own rule; "shipped", with "truth": the
            instance network that comes with tfiseg, down to its own smallest instance where ``min_area`` says
            no other.

    Returns:
        PQ, its counts, AP, AP50, AP75, mean boundary IoU of matches, PQ per class, the median time of finding
        a picture's instances, the best, median and worst pictures, recall by class and object size; with
        "model" also IoU per class and mIoU
        over the classes in the truth. Classes that only the set or only the model knows are left out of both.
        ``gain`` holds each baseline's PQ, AP and AP50 and by how much PQ is above it, with a 95 % interval by
        bootstrap over pictures, paired.
    """
    out = writable_folder(out) if out is not None else None  # before the work
    pictures, names = load_eval_set(folder)
    finders, ids = _finders(semantic, segmenter, split, names, refiner, against, min_area)
    tallies = {name: _Tally(in_full=name == _OURS) for name in finders}
    began, ms = time.perf_counter(), list[float]()
    for picture in tqdm(pictures, unit="picture", desc=f"eval {folder.name}", disable=quiet):
        for name, find in finders.items():
            start = time.perf_counter()
            found = find(picture)
            if name == _OURS:
                ms.append((time.perf_counter() - start) * 1e3)
            tallies[name].add(*_counting(found, picture, ids))
    ours = tallies[_OURS]
    counts = ours.total.pooled
    report: dict[str, Any] = {
        "set": folder.name,
        "pictures": len(pictures),
        "semantic": semantic,
        "PQ": round(counts.quality, 2),
        "true_positives": counts.true_positives,
        "false_positives": counts.false_positives,
        "false_negatives": counts.false_negatives,
        **ours.precision.scores(),
        "boundary_IoU": round(100 * float(np.mean(ours.outlines)), 2) if ours.outlines else float("nan"),
        "per_class_PQ": {
            names.get(c, f"class {c}"): round(v.quality, 2) for c, v in sorted(ours.total.per_class.items())
        },
    }
    report["recall_by_size"] = ours.recall.report(names)
    if against:
        report["gain"] = {name: _gain(ours, tallies[name]) for name in against}
    if semantic == "model":
        iou = semantic_iou(ours.confusion)
        report["mIoU"] = round(float(np.mean(list(iou.values()))), 4)
        report["per_class_IoU"] = {
            names.get(c, "background" if c == 0 else f"class {c}"): round(v, 4) for c, v in iou.items()
        }
    report["median_ms"] = round(float(np.median(ms)), 1)
    report["seconds"] = round(time.perf_counter() - began, 2)
    for title, shown in _ranked(ours.pictures).items():
        report[title] = [pictures.paths[k].stem for k in shown]
        if out is not None:
            cases = [
                (ours.pictures[k], *_counting(finders[_OURS](pictures[k]), pictures[k], ids)) for k in shown
            ]
            sheet = out / f"{title}.png"
            if not cv2.imwrite(
                str(sheet), contact_sheet([(score, picture, found) for score, found, picture in cases])
            ):
                raise InputError(f"can't write {sheet}: is the disk full?")
    if out is not None:
        report["contact_sheets"] = str(out)
    return report


class _Tally:
    """What one way of finding instances scores, picture by picture; ``in_full``: outlines and classes,
    too."""

    def __init__(self, in_full: bool) -> None:
        self.in_full = in_full
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
        if not self.in_full:
            return
        self.recall.add(picture.truth, picture.semantic, score.matches)
        known = picture.semantic != IGNORE
        self.outlines += [
            boundary_iou((found.label_map == i) & known, (picture.truth == j) & known)
            for i, j in score.matches
        ]
        joint = picture.semantic[known].astype(np.int64) * 256 + found.semantic_map[known]
        self.confusion += np.bincount(joint, minlength=256 * 256).reshape(256, 256)


def _counting(found: Instances, picture: EvalPicture, ids: set[int] | None) -> tuple[Instances, EvalPicture]:
    """Both without the classes that only one of them knows."""
    if ids is None:
        return found, picture
    return found.select(np.isin(found.class_id, [*ids])), _truth_of(picture, ids)


def _gain(ours: _Tally, theirs: _Tally) -> dict[str, Any]:
    scores = theirs.precision.scores()
    gain, low, high = paired_gain(ours.pictures, theirs.pictures)
    interval = [round(low, 2), round(high, 2)]
    return {
        "PQ": round(theirs.total.pooled.quality, 2),
        "AP": scores["AP"],
        "AP50": scores["AP50"],
        "PQ_gain": round(gain, 2),
        "interval_95": interval,
    }


def _ranked(scores: Sequence[PanopticCounts]) -> dict[str, list[int]]:
    """Numbers of the ten best, median and worst pictures: by mistakes, then by how many are right."""

    def rank(k: int) -> tuple[int, int, float]:
        c = scores[k]
        return c.false_positives + c.false_negatives, -c.true_positives, -c.iou_sum

    order = sorted(range(len(scores)), key=rank)
    middle = max(0, (len(order) - _SHOWN) // 2)
    return {"best": order[:_SHOWN], "median": order[middle : middle + _SHOWN], "worst": order[::-1][:_SHOWN]}


Find = Callable[[EvalPicture], Instances]


def _finders(
    semantic: str,
    segmenter: Segmenter | None,
    split: Split,
    names: dict[int, str],
    refiner: Refiner | None,
    against: Sequence[str],
    min_area: int | None,
) -> tuple[dict[str, Find], set[int] | None]:
    """How to find a picture's instances, ours first and by each baseline, and which class ids count (None:
    all)."""
    unknown = [name for name in against if name not in (*BASELINES, _SHIPPED)]
    if unknown:
        raise InputError(
            f"unknown baseline {', '.join(unknown)}: there are {', '.join((*BASELINES, _SHIPPED))}"
        )
    if _SHIPPED in against and semantic != "truth":
        raise InputError(
            f"{_SHIPPED} is a baseline for instance networks on true class maps, not with --semantic model"
        )
    if "rated-components" in against and (
        semantic != "model" or segmenter is None or segmenter.score_rule is None
    ):
        raise InputError(
            "rated-components are those of a model with a score rule (`tfiseg train score`), with --semantic model"
        )
    labels = [names.get(i, f"class {i}") for i in range(max(names) + 1)]
    if semantic == "truth":

        def least_of(its: Refiner | None) -> int:
            return min_area if min_area is not None else MIN_AREA_PX if its is None else its.min_area

        def by(ratio: Split) -> Find:
            return lambda picture: cluster(
                picture.semantic, split=ratio, min_area=least_of(refiner), class_names=labels
            )

        def looked_at(its: Refiner) -> Find:
            def find(picture: EvalPicture) -> Instances:
                crumbs_too = cluster(
                    picture.semantic, split=0.0, min_area=min(MIN_AREA_PX, least_of(its)), class_names=labels
                )
                found = its(picture.image, crumbs_too)
                return found.select(found.area >= least_of(its))

            return find

        finders = {_OURS: by(split) if refiner is None else looked_at(refiner)}
        for name in against:
            finders[name] = (
                by(BASELINES[name][0])
                if name in BASELINES
                else looked_at(Refiner(threads=(refiner and refiner.threads) or 0))
            )
        return finders, None
    if semantic != "model" or segmenter is None:
        raise InputError(f'semantic must be "truth" or "model" (with a segmenter), got {semantic!r}')
    theirs = {_canonical(v): k for k, v in names.items()}
    lookup = np.zeros(
        256, np.uint8
    )  # the model's ids -> the set's, by name; what the set doesn't know is background
    for id_of_model, name in enumerate(segmenter.class_names):
        lookup[id_of_model] = theirs.get(_canonical(name), 0) if id_of_model else 0
    if not lookup.any():
        ours_text, theirs_text = ", ".join(segmenter.class_names[1:]), ", ".join(names.values())
        raise InputError(
            f"the model's classes ({ours_text}) and the set's ({theirs_text}) have no name in common"
        )

    def named(find: Callable[[NDArray[np.uint8]], Instances]) -> Find:
        def in_the_sets_classes(picture: EvalPicture) -> Instances:
            found = find(picture.image)
            semantic_map = lookup[found.semantic_map]
            return replace(
                found,
                class_id=lookup[found.class_id].astype(np.int32),
                semantic_map=semantic_map,
                class_names=labels,
            )

        return in_the_sets_classes

    def by_shape(ratio: Split, rated: bool) -> Find:
        return named(lambda image: segmenter.by_shape(image, ratio, rated))

    return {_OURS: named(segmenter), **{name: by_shape(*BASELINES[name]) for name in against}}, {
        int(c) for c in np.unique(lookup) if c
    }


def _canonical(name: str) -> str:
    joined = name.replace(" ", "").lower()
    return _SAME_CLASS.get(joined, joined)


def _truth_of(picture: EvalPicture, ids: set[int]) -> EvalPicture:
    """The truth of the classes with these ids; other objects are background."""
    other = ~np.isin(picture.semantic, [*ids, IGNORE])
    return replace(
        picture,
        truth=np.where(other, 0, picture.truth),
        semantic=np.where(other, 0, picture.semantic).astype(np.uint8),
    )


def contact_sheet(cases: Sequence[tuple[PanopticCounts, EvalPicture, Instances]]) -> NDArray[np.uint8]:
    """Pairs of truth (left) and found (right), two pairs a row."""
    cells = []
    for counts, picture, found in cases:
        numbers, truth = np.unique(picture.truth, return_inverse=True)
        colours = instance_colours(len(numbers))
        painted = colours[truth.reshape(picture.truth.shape)]
        left = np.where(
            (picture.truth > 0)[..., None],
            cv2.addWeighted(picture.image, 0.4, painted, 0.6, 0),
            picture.image,
        )
        pair = np.hstack([_fitted(left.astype(np.uint8)), _fitted(found.draw(picture.image))])
        text = f"{picture.name}: {counts.true_positives} right, {counts.false_positives} too many, {counts.false_negatives} missed"
        pair[:17] //= 4  # a dark strip, so that the text is read on any picture
        cv2.putText(pair, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(pair)
    if len(cells) % 2:
        cells.append(np.zeros_like(cells[0]))
    return np.vstack([np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)])


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = _SHEET_CELL_HW
    scale = min(height / image.shape[0], width / image.shape[1])
    small = cv2.resize(
        image,
        (max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale))),
        interpolation=cv2.INTER_AREA,
    )
    cell = np.zeros((height, width, 3), np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    return cell
