"""Panoptic quality, COCO average precision and boundary IoU of predicted against true instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import MissingDependencyError
from ...instances import Instances
from ...plugins.settings import IGNORE

_DRAWS = 2000  # of pictures, for the interval of a gain
_BAND_SHARE = 0.02  # width of the band inside each outline, as a share of the picture's diagonal


@dataclass
class PanopticCounts:
    """The sums in PQ (Kirillov et al., CVPR 2019); matches at IoU > 0.5 are always one-to-one."""

    iou_sum: float = 0.0
    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def add(self, other: PanopticCounts) -> None:
        """Add other counts."""
        self.iou_sum += other.iou_sum
        self.true_positives += other.true_positives
        self.false_positives += other.false_positives
        self.false_negatives += other.false_negatives

    @property
    def quality(self) -> float:
        """PQ in 0..100."""
        size = self.true_positives + 0.5 * self.false_positives + 0.5 * self.false_negatives
        return 100 * self.iou_sum / size if size else float("nan")


@dataclass
class PictureScore:
    """The counts of one picture, or the sum over pictures."""

    pooled: PanopticCounts = field(default_factory=PanopticCounts)  # counts of all classes
    per_class: dict[int, PanopticCounts] = field(default_factory=dict)  # class ID -> counts
    # (predicted, true) instance numbers of one picture
    matches: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: PictureScore) -> None:
        """Add the counts of another picture."""
        self.pooled.add(other.pooled)
        for class_id, counts in other.per_class.items():
            self.per_class.setdefault(class_id, PanopticCounts()).add(counts)


def paired_gain(
    ours: Sequence[PanopticCounts], theirs: Sequence[PanopticCounts]
) -> tuple[float, float, float]:
    """Return the gain in PQ of ``ours`` over ``theirs``, and the limits of its 95% interval.

    The interval comes from a paired bootstrap: both are resampled with the same pictures.
    """
    table = np.array(
        [
            [[c.iou_sum, c.true_positives, c.false_positives, c.false_negatives] for c in side]
            for side in (ours, theirs)
        ]
    )

    def quality(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(
            100 * sums[..., 0] / np.maximum(sums[..., 1] + 0.5 * sums[..., 2] + 0.5 * sums[..., 3], 1e-9),
            np.float64,
        )

    our_quality, their_quality = quality(table.sum(1))
    sample = np.random.default_rng(0).integers(0, len(ours), (_DRAWS, len(ours)))
    sampled = quality(table[:, sample].sum(2))
    low, high = np.percentile(sampled[0] - sampled[1], (2.5, 97.5))
    return float(our_quality - their_quality), float(low), float(high)


def panoptic_counts(
    predicted: NDArray[np.int32],
    predicted_class: NDArray[np.int32],
    truth: NDArray[np.int32],
    truth_semantic: NDArray[np.uint8],
) -> PictureScore:
    """Match the predicted and true instances of one picture, and count the matches.

    A pair matches if the classes agree and IoU > 0.5. Ignored pixels belong to no instance.

    Args:
        predicted: label map, int32 (H, W), 0 = none.
        predicted_class: class IDs of instances 1..n, int32 (n,).
        truth: true label map, int32 (H, W), 0 = none.
        truth_semantic: true class map, uint8 (H, W), 255 = ignore.
    """
    known = truth_semantic != IGNORE
    numbers = np.unique(truth[known])
    truth_flat = np.searchsorted(numbers, truth[known])
    n, m = len(predicted_class) + 1, len(numbers)
    overlap = np.bincount(predicted[known].astype(np.int64) * m + truth_flat, minlength=n * m).reshape(n, m)
    area, truth_area = overlap.sum(1), overlap.sum(0)
    truth_class = np.zeros(m, np.int64)
    truth_class[truth_flat] = truth_semantic[known]
    iou = overlap / np.maximum(area[:, None] + truth_area[None] - overlap, 1)
    classes = np.concatenate([[-1], predicted_class])
    iou[classes[:, None] != truth_class[None]] = 0
    iou[0] = 0
    iou[:, numbers == 0] = 0
    matched = iou > 0.5
    score = PictureScore()
    true_columns = [k for k in range(m) if numbers[k] > 0]
    visible_rows = [k for k in range(1, n) if area[k] > 0]
    class_ids = {int(classes[k]) for k in visible_rows} | {int(truth_class[k]) for k in true_columns}
    for class_id in sorted(class_ids):
        rows = [k for k in visible_rows if classes[k] == class_id]
        columns = [k for k in true_columns if truth_class[k] == class_id]
        hits = matched[np.ix_(rows, columns)]
        count = int(hits.sum())
        counts = PanopticCounts(
            float(iou[np.ix_(rows, columns)][hits].sum()), count, len(rows) - count, len(columns) - count
        )
        score.per_class[class_id] = counts
        score.matches += [(rows[i], int(numbers[columns[j]])) for i, j in np.argwhere(hits)]
        score.pooled.add(counts)
    return score


def boundary_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks (H, W) near their outlines (Cheng et al., CVPR 2021)."""
    width = max(1, round(_BAND_SHARE * float(np.hypot(*predicted.shape))))
    rows, columns = (np.flatnonzero((predicted | truth).any(axis)) for axis in (1, 0))
    window = (slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2))
    bands = []
    for mask in (predicted[window], truth[window]):
        inner = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=width)
        bands.append(mask & (inner[1:-1, 1:-1] == 0))
    return float((bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum())


class AveragePrecision:
    """COCO average precision over pictures by pycocotools, for the classes in the truth."""

    def __init__(self) -> None:
        try:
            from pycocotools import mask
        except ImportError as missing:
            raise MissingDependencyError(
                'average precision needs pycocotools: pip install ".[eval]" in the repository'
            ) from missing
        self._encode = mask.encode
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []

    def add(self, found: Instances, truth: NDArray[np.int32], truth_semantic: NDArray[np.uint8]) -> None:
        """Add one picture. Ignored pixels belong to no mask; instances of mostly such pixels are skipped."""
        picture = len(self._images) + 1
        height, width = truth.shape
        self._images.append({"id": picture, "height": height, "width": width})
        # in the order of pycocotools' masks, so that these need no copies
        labels, truth, truth_semantic = map(np.asfortranarray, (found.label_map, truth, truth_semantic))
        known = truth_semantic != IGNORE
        for number in np.unique(truth[truth > 0]):
            mask = (truth == number) & known
            if not mask.any():
                continue
            self._truth.append(
                {
                    "id": len(self._truth) + 1,
                    "image_id": picture,
                    "category_id": int(np.bincount(truth_semantic[mask]).argmax()),
                    "segmentation": self._rle(mask),
                    "area": int(mask.sum()),
                    "bbox": [0, 0, width, height],
                    "iscrowd": 0,
                }
            )
        for instance in found:
            mask = labels == instance.number
            known_mask = mask & known
            if known_mask.sum() * 2 < mask.sum():
                continue
            self._found.append(
                {
                    "image_id": picture,
                    "category_id": instance.class_id,
                    "segmentation": self._rle(known_mask),
                    "score": instance.score,
                }
            )

    def _rle(self, mask: NDArray[np.bool_]) -> Any:
        return self._encode(np.asfortranarray(mask.astype(np.uint8)))

    def scores(self) -> dict[str, float]:
        """Return AP (mean over IoU 0.50:0.95), AP50 and AP75, 0..100, mean over the classes in the truth."""
        import contextlib
        import io

        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        classes = sorted({t["category_id"] for t in self._truth})
        if not classes:
            return {"AP": float("nan"), "AP50": float("nan"), "AP75": float("nan")}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth = COCO()
            truth.dataset = {
                "info": {},
                "images": self._images,
                "annotations": self._truth,
                "categories": [{"id": c} for c in classes],
            }
            truth.createIndex()
            if not self._found:
                return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
            evaluation = COCOeval(truth, truth.loadRes(list(self._found)), "segm")
            evaluation.params.maxDets = [1, 100, 1000]  # microscope images contain hundreds of cells
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]  # no other is used
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class

        def mean(values: NDArray[np.float64]) -> float:
            return round(100 * float(values[values > -1].mean()), 2) if (values > -1).any() else float("nan")

        return {"AP": mean(precision), "AP50": mean(precision[0]), "AP75": mean(precision[5])}
