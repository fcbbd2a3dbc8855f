"""``tfiseg eval``: instance quality on a folder of pictures with true instances.

Format: ``images/ID.jpg|png``, ``instances/ID.png`` (uint16, 0 = none), ``semantic/ID.png`` (uint8 class, 0 background, 255
ignore), ``classes.json`` ({"1": "person"}).
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

from ..errors import InputError
from ..instances import Instances
from ..plugins.operator import Split, cluster
from ..plugins.problem import IGNORE
from .drawing import draw_instances, instance_colours
from .metrics import AveragePrecision, PictureScore, panoptic_counts
from .refine import Refiner
from .segmenter import Segmenter
from .sinks import writable_folder
from .sources import IMAGE_SUFFIXES

_SHEET_CELL_HW = (220, 300)
_WORST = 12  # pictures on the contact sheet
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
    """The pictures of an evaluation set (read when they are asked for) and its class names; raises InputError for another format."""
    for needed in ("images", "instances", "semantic", "classes.json"):
        if not (folder / needed).exists():
            raise InputError(f"{folder} has no {needed}: an evaluation set holds images/, instances/, semantic/ and classes.json")
    names = {int(k): v for k, v in json.loads((folder / "classes.json").read_text()).items()}
    paths = sorted(p for p in (folder / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
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
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        truth = cv2.imread(str(self.folder / "instances" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        semantic = cv2.imread(str(self.folder / "semantic" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        if image is None or truth is None or semantic is None:
            raise InputError(f"{path}: the picture, its instances/{path.stem}.png or its semantic/{path.stem}.png can't be read")
        if not image.shape[:2] == truth.shape == semantic.shape:
            raise InputError(f"{path}: sizes differ: picture {image.shape[:2]}, instances {truth.shape}, semantic {semantic.shape}")
        return EvalPicture(path.stem, np.asarray(image, np.uint8), truth.astype(np.int32), np.asarray(semantic, np.uint8))


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
) -> dict[str, Any]:
    """Score an evaluation set.

    Args:
        folder: the set.
        semantic: "truth" clusters the true class maps; "model" runs ``segmenter`` on the pictures.
        segmenter: with "model".
        split: with "truth", see ``tfiseg.cluster``.
        out: where worst.png, a contact sheet of the worst pictures, goes.
        quiet: no progress bar.
        refiner: with "truth", cuts and joins the class maps' components in place of ``split``.

    Returns:
        PQ, its counts, AP, AP50, AP75, PQ per class, the worst pictures; with "model" also IoU per class and mIoU over the
        classes in the truth. Classes that only the set or only the model knows are left out of both.
    """
    out = writable_folder(out) if out is not None else None  # before the work
    pictures, names = load_eval_set(folder)
    precision = AveragePrecision()
    confusion = np.zeros((256, 256), np.int64)
    total = PictureScore()
    worst: list[tuple[PictureScore, EvalPicture, Instances]] = []
    find, ids = _finder(semantic, segmenter, split, names, refiner)
    began = time.perf_counter()
    for picture in tqdm(pictures, unit="picture", desc=f"eval {folder.name}", disable=quiet):
        found = find(picture)
        if ids is not None:
            found, picture = found.select(np.isin(found.class_id, [*ids])), _truth_of(picture, ids)
        score = panoptic_counts(found.label_map, found.class_id, picture.truth, picture.semantic)
        total.add(score)
        worst = sorted([*worst, (score, picture, found)], key=_badness)[:_WORST]
        precision.add(found, picture.truth, picture.semantic)
        known = picture.semantic != IGNORE
        joint = picture.semantic[known].astype(np.int64) * 256 + found.semantic_map[known]
        confusion += np.bincount(joint, minlength=256 * 256).reshape(256, 256)
    counts = total.pooled
    report: dict[str, Any] = {
        "set": folder.name,
        "pictures": len(pictures),
        "semantic": semantic,
        "PQ": round(counts.quality, 2),
        "true_positives": counts.true_positives,
        "false_positives": counts.false_positives,
        "false_negatives": counts.false_negatives,
        **precision.scores(),
        "per_class_PQ": {names.get(c, f"class {c}"): round(v.quality, 2) for c, v in sorted(total.per_class.items())},
    }
    if semantic == "model":
        iou = semantic_iou(confusion)
        report["mIoU"] = round(float(np.mean(list(iou.values()))), 4)
        report["per_class_IoU"] = {names.get(c, "background" if c == 0 else f"class {c}"): round(v, 4) for c, v in iou.items()}
    report["seconds"] = round(time.perf_counter() - began, 2)
    report["worst"] = [picture.name for _, picture, _ in worst]
    if out is not None:
        sheet = out / "worst.png"
        if not cv2.imwrite(str(sheet), contact_sheet(worst)):
            raise InputError(f"can't write {sheet}: is the disk full?")
        report["contact_sheet"] = str(sheet)
    return report


def _badness(case: tuple[PictureScore, EvalPicture, Instances]) -> tuple[int, str]:
    counts = case[0].pooled
    return -(counts.false_positives + counts.false_negatives), case[1].name


def _finder(
    semantic: str, segmenter: Segmenter | None, split: Split, names: dict[int, str], refiner: Refiner | None
) -> tuple[Callable[[EvalPicture], Instances], set[int] | None]:
    """How to find a picture's instances, and which class ids count (None: all)."""
    labels = [names.get(i, f"class {i}") for i in range(max(names) + 1)]
    if semantic == "truth":
        if refiner is not None:
            return lambda picture: refiner(picture.image, cluster(picture.semantic, split=0.0, class_names=labels)), None
        return lambda picture: cluster(picture.semantic, split=split, class_names=labels), None
    if semantic != "model" or segmenter is None:
        raise InputError(f'semantic must be "truth" or "model" (with a segmenter), got {semantic!r}')
    theirs = {_canonical(v): k for k, v in names.items()}
    lookup = np.zeros(256, np.uint8)  # the model's ids -> the set's, by name; what the set doesn't know is background
    for ours, name in enumerate(segmenter.class_names):
        lookup[ours] = theirs.get(_canonical(name), 0) if ours else 0
    if not lookup.any():
        ours_text, theirs_text = ", ".join(segmenter.class_names[1:]), ", ".join(names.values())
        raise InputError(f"the model's classes ({ours_text}) and the set's ({theirs_text}) have no name in common")

    def find(picture: EvalPicture) -> Instances:
        found = segmenter(picture.image)
        return replace(found, class_id=lookup[found.class_id].astype(np.int32), semantic_map=lookup[found.semantic_map], class_names=labels)

    return find, {int(c) for c in np.unique(lookup) if c}


def _canonical(name: str) -> str:
    joined = name.replace(" ", "").lower()
    return _SAME_CLASS.get(joined, joined)


def _truth_of(picture: EvalPicture, ids: set[int]) -> EvalPicture:
    """The truth of the classes with these ids; other objects are background."""
    other = ~np.isin(picture.semantic, [*ids, IGNORE])
    return replace(picture, truth=np.where(other, 0, picture.truth), semantic=np.where(other, 0, picture.semantic).astype(np.uint8))


def contact_sheet(cases: list[tuple[PictureScore, EvalPicture, Instances]]) -> NDArray[np.uint8]:
    """Pairs of truth (left) and found (right), three pairs a row."""
    cells = []
    for score, picture, found in cases:
        numbers, truth = np.unique(picture.truth, return_inverse=True)
        colours = instance_colours(len(numbers))
        painted = colours[truth.reshape(picture.truth.shape)]
        left = np.where((picture.truth > 0)[..., None], cv2.addWeighted(picture.image, 0.4, painted, 0.6, 0), picture.image)
        pair = np.hstack([_fitted(left.astype(np.uint8)), _fitted(draw_instances(picture.image, found))])
        counts = score.pooled
        text = f"{picture.name}: {counts.true_positives} right, {counts.false_positives} too many, {counts.false_negatives} missed"
        cv2.putText(pair, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(pair, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(pair)
    while len(cells) % 3:
        cells.append(np.zeros_like(cells[0]))
    return np.vstack([np.hstack(cells[i : i + 3]) for i in range(0, len(cells), 3)])


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = _SHEET_CELL_HW
    scale = min(height / image.shape[0], width / image.shape[1])
    small = cv2.resize(image, (max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale))), interpolation=cv2.INTER_AREA)
    cell = np.zeros((height, width, 3), np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    return cell
