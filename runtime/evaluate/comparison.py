"""Comparison of two networks on the same frames: their outputs, labels and instances."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError, TfisegError
from ...instances import Instances
from ..segmenter import Segmenter
from .metrics import PanopticCounts, panoptic_counts
from .stable_instances import StableCounts, stable_counts

_DIFFERENCE_BGR = (0, 0, 255)


@dataclass(frozen=True)
class FrameComparison:
    """The comparison of one frame."""

    name: str
    label_agreement: float  # percentage of pixels with the same class
    counts: PanopticCounts  # matches of all instances
    stable: StableCounts  # matches of the stable instances
    noise: dict[str, float]  # output -> energy of the difference
    signal: dict[str, float]  # output -> energy of the reference
    network_ms: tuple[float, float]  # times of the reference and the candidate, which run one after the other


@dataclass
class Comparison:
    """The comparison of all frames."""

    reference: str
    candidate: str
    frames: list[FrameComparison] = field(default_factory=list)

    @property
    def label_agreement(self) -> float:
        """Percentage of pixels with the same class, mean over frames."""
        return float(np.mean([f.label_agreement for f in self.frames]))

    @property
    def quality(self) -> float:
        """PQ of the candidate's instances against the reference's, 0..100; 100 if neither has any."""
        quality = self.counts.quality
        return 100.0 if math.isnan(quality) else quality

    @property
    def counts(self) -> PanopticCounts:
        """Matches of all instances of all frames."""
        total = PanopticCounts()
        for frame in self.frames:
            total.add(frame.counts)
        return total

    @property
    def stable(self) -> StableCounts:
        """Counts of the stable instances of all frames."""
        total = StableCounts()
        for frame in self.frames:
            total.add(frame.stable)
        return total

    @property
    def stable_quality(self) -> float:
        """PQ of the stable instances, 0..100; 100 if neither network has any."""
        quality = self.stable.panoptic.quality
        return 100.0 if math.isnan(quality) else quality

    @property
    def score_agreement(self) -> float:
        """100 minus the mean change of stable instances' scores in percentage points."""
        total = self.stable
        return 100 - 100 * total.score_change / max(1, total.panoptic.true_positives)

    def snr_db(self) -> dict[str, float]:
        """Return the signal-to-noise ratio of each output in dB."""
        result = {}
        for name in self.frames[0].noise:
            noise, signal = sum(f.noise[name] for f in self.frames), sum(f.signal[name] for f in self.frames)
            result[name] = 10 * math.log10(signal / noise) if noise and signal else math.inf
        return result

    def worst(self, count: int) -> list[FrameComparison]:
        """Return the frames with the lowest label agreement, worst first."""
        return sorted(self.frames, key=lambda f: f.label_agreement)[:count]

    def report(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        worst = self.worst(1)[0]
        times = [float(np.median([f.network_ms[k] for f in self.frames])) for k in (0, 1)]
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "frames": len(self.frames),
            "label_agreement": round(self.label_agreement, 3),
            "PQ": round(self.quality, 2),
            "stable_PQ": round(self.stable_quality, 2),
            "score_agreement": round(self.score_agreement, 2),
            "stable_instances": _count_matches(self.stable.panoptic),
            "instances": _count_matches(self.counts),
            "worst_frame": {"name": worst.name, "label_agreement": round(worst.label_agreement, 3)},
            "network_ms": {"reference": round(times[0], 2), "candidate": round(times[1], 2)},  # medians
            "times_as_fast": round(
                float(np.median([f.network_ms[0] / f.network_ms[1] for f in self.frames])), 3
            ),
            "snr_db": {
                name: None if math.isinf(value) else round(value, 1) for name, value in self.snr_db().items()
            },
        }


def _count_matches(counts: PanopticCounts) -> dict[str, int]:
    return {
        "same": counts.true_positives,
        "only_reference": counts.false_negatives,
        "only_candidate": counts.false_positives,
    }


def compare(
    reference: Segmenter,
    candidate: Segmenter,
    frames: Sequence[NDArray[np.uint8]],
    names: Sequence[str] = (),
    quiet: bool = True,
) -> Comparison:
    """Compare two networks on frames.

    Args:
        candidate: the other network, with the same classes.
        frames: images, uint8 (H, W, 3) BGR.
        names: names of the frames; default: their numbers.

    Raises:
        InputError: there are no frames, or the networks have different classes.
        TfisegError: an output of the candidate is not finite.
    """
    if not len(frames):
        raise InputError("there are no frames to compare on")
    if reference.class_names != candidate.class_names:
        pairs = zip_longest(reference.class_names, candidate.class_names, fillvalue="missing")
        k, (one, other) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
        raise InputError(
            f"the networks have different classes: class {k} is {one!r} in the first and {other!r} in "
            "the second"
        )
    result = Comparison(str(reference.session.path), str(candidate.session.path))
    numbered = zip(names or [str(k) for k in range(len(frames))], frames, strict=False)
    for name, image in tqdm(numbered, total=len(frames), desc="comparing", unit="frame", disable=quiet):
        result.frames.append(_compare_frame(reference, candidate, image, name)[0])
    return result


def noise_floor(
    segmenter: Segmenter, frames: Sequence[NDArray[np.uint8]], names: Sequence[str] = (), quiet: bool = True
) -> Comparison:
    """Compare a network with itself on frames with random noise of one gray level.

    Two frames of a camera differ by more, so smaller differences of a precision are invisible.
    """
    rng = np.random.default_rng(0)
    result = Comparison("fp32", "fp32 with one gray level of noise")
    numbered = zip(names or [str(k) for k in range(len(frames))], frames, strict=False)
    for name, image in tqdm(numbered, total=len(frames), desc="noise floor", unit="frame", disable=quiet):
        noise = rng.integers(-1, 2, image.shape, np.int16)
        noisy = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        result.frames.append(_compare_frame(segmenter, segmenter, image, name, noisy)[0])
    return result


def _compare_frame(
    reference: Segmenter,
    candidate: Segmenter,
    image: NDArray[np.uint8],
    name: str,
    candidate_image: NDArray[np.uint8] | None = None,
) -> tuple[FrameComparison, Instances, Instances]:
    began = time.perf_counter()
    maps = reference.session.infer(image)
    between = time.perf_counter()
    other = candidate.session.infer(image if candidate_image is None else candidate_image)
    times = (1e3 * (between - began), 1e3 * (time.perf_counter() - between))
    shared = [key for key in maps if key in other]
    for key in shared:
        if not np.isfinite(other[key]).all():
            raise TfisegError(
                f"{candidate.session.path}: {key} of frame {name} are not finite: the precision is too low "
                "for these values"
            )
        if maps[key].shape != other[key].shape:
            raise InputError(
                f"{key} has shape {maps[key].shape} in {reference.session.path}, {other[key].shape} in "
                f"{candidate.session.path}"
            )
    size = (image.shape[0], image.shape[1])
    true, found = reference.cluster_maps(maps, size), candidate.cluster_maps(other, size)
    counts = panoptic_counts(found.label_map, found.class_id, true.label_map, true.semantic_map).pooled
    agreement = 100 * float((true.semantic_map == found.semantic_map).mean())
    noise = {key: float(np.square(maps[key] - other[key], dtype=np.float64).sum()) for key in shared}
    signal = {key: float(np.square(maps[key], dtype=np.float64).sum()) for key in shared}
    stable = stable_counts(reference, candidate, maps, other, size)
    return FrameComparison(name, agreement, counts, stable, noise, signal, times), true, found


def write_worst_sheet(
    reference: Segmenter,
    candidate: Segmenter,
    frames: Sequence[NDArray[np.uint8]],
    comparison: Comparison,
    path: Path,
    count: int = 4,
) -> None:
    """Write an image of the worst frames: both networks' instances, and the differing pixels in red."""
    rows = []
    index_of = {frame.name: k for k, frame in enumerate(comparison.frames)}
    for frame in comparison.worst(count):
        image = frames[index_of[frame.name]]
        rows.append(np.hstack(list(_panels(reference, candidate, image, frame))))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
    if not cv2.imwrite(str(path), np.vstack(padded)):
        raise InputError(f"can't write the image {path}: name a .png or .jpg file in an existing folder")


def _panels(
    reference: Segmenter, candidate: Segmenter, image: NDArray[np.uint8], frame: FrameComparison
) -> Iterator[NDArray[np.uint8]]:
    _, true, found = _compare_frame(reference, candidate, image, frame.name)
    difference = image // 2
    difference[true.semantic_map != found.semantic_map] = _DIFFERENCE_BGR
    titles = ("reference", "candidate", f"{frame.name}: {frame.label_agreement:.2f}% of labels equal")
    for title, panel in zip(titles, (true.draw(image), found.draw(image), difference), strict=True):
        small = cv2.resize(
            panel, (round(panel.shape[1] * 320 / panel.shape[0]), 320), interpolation=cv2.INTER_AREA
        )
        small[:24] = small[:24] // 4  # a dark strip behind the title
        cv2.putText(small, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        yield np.asarray(small, np.uint8)
