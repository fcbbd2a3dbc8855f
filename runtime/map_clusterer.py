"""Clustering, scoring and filtering of a network's maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError, did_you_mean
from ..instances import Instances
from ..plugins.operator import cluster_batch
from ..plugins.settings import (
    AFFINITY_OFFSETS,
    MIN_AREA_PX,
    ClusterSettings,
    Split,
    check_max_instances,
    check_min_area,
    split_table,
)
from .networks.model_info import ModelInfo
from .networks.model_variants import WITHOUT_HEADS
from .networks.session import Session
from .object_score import FEATURES, object_probability
from .segmenter_settings import SegmenterSettings, check_min_score

MIN_SCORE = 0.5  # of mean class probabilities
# of calibrated scores p: an instance increases PQ if p > PQ / (2 IoU), which is 0.27 to 0.32 on training
# photos
MIN_CALIBRATED_SCORE = 0.3
# share of the frame, for a network that scales its longer side to 384 px: seven cells of a 4:3 frame's class
# map. Smaller regions are mostly noise.
_MIN_AREA_SHARE, _AT_LONG_SIDE_PX = 1e-3, 384


def default_min_area(size_hw: tuple[int, int], info: ModelInfo, tiles: int = 1) -> int:
    """Return the default minimum area of an instance in pixels, at least 25.

    It is 0.1 % of the frame, and less if the class map is finer (tiles, networks with a larger input).

    Args:
        size_hw: of the frame, in pixels.
    """
    finer = tiles * info.extra.get("long_side_px", _AT_LONG_SIDE_PX) / _AT_LONG_SIDE_PX
    return max(MIN_AREA_PX, round(_MIN_AREA_SHARE * size_hw[0] * size_hw[1] / finer**2))


@dataclass(frozen=True)
class Margins:
    """Margins by which the thresholds of instances are lowered (or raised, if negative)."""

    score: float = 0.0  # subtracted from the minimum score
    area: float = 1.0  # divides the minimum area; below 1, it raises it
    log_odds: float = 0.0  # added to the log-odds of the merge rule and the second-pass rule

    def shifted(self, settings: ClusterSettings) -> ClusterSettings:
        """Return clustering settings with these margins."""
        return replace(
            settings,
            merge_rule=self._biased(settings.merge_rule),
            part_rule=self._biased(settings.part_rule),
            min_area=self.smaller(settings.min_area),
        )

    def _biased(self, rule: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if rule is None or not self.log_odds:
            return rule
        result = rule.copy()
        result[-1] += self.log_odds  # the last weight of a rule is its bias
        return result

    def smaller(self, area: int) -> int:
        """Return a minimum area with the margin."""
        return round(area / self.area)


_NO_MARGINS = Margins()


class MapClusterer:
    """Clusters the maps of a session, and filters the instances.

    ``things``, ``min_score``, ``min_area`` and ``max_instances`` may be changed between frames. They are
    checked as the options of a ``Segmenter`` are.
    """

    session: Session
    class_names: tuple[str, ...]
    _method: str  # see ``Segmenter.refine``

    def _read_parameters(self, settings: SegmenterSettings) -> None:
        """Complete the options from the model's metadata."""
        self.things = settings.things
        self.min_area = settings.min_area
        self._tiles = settings.tiles
        self.max_instances = settings.max_instances
        self._threads = settings.threads or None
        self._given_min_score = settings.min_score
        self._read_metadata(settings.split)

    def _read_metadata(self, split: Split | None) -> None:
        """Read the parameters of clustering and scores. Without its heads, a model may have others."""
        metadata = self.session.info.extra
        parameters = metadata.get("clustering", {})
        if self._method != "frame":
            parameters = parameters | metadata.get(WITHOUT_HEADS, {}).get("clustering", {})
        self._split: Split = parameters.get("split", "auto") if split is None else split
        split_table(self._split)  # raises now, not at the first frame
        self._affinity_offsets = np.array(parameters.get("affinity_offsets", AFFINITY_OFFSETS), np.int32)
        self._merge_rule, self._part_rule = (
            None if name not in parameters else np.array(parameters[name], np.float32)
            for name in ("merge_rule", "part_rule")
        )
        self._sharpen = int(parameters.get("sharpen", 0))
        self._model_min_area: int | None = parameters.get("min_area")
        self.score_rule: Sequence[float] | None = parameters.get("score_rule")
        if self.score_rule is not None and len(self.score_rule) != len(FEATURES) + 1:
            raise ModelError(
                f"{self.session.path}: its score calibration has {len(self.score_rule)} numbers, expected "
                f"{len(FEATURES) + 1}. Export the model again."
            )
        self._default_min_score = MIN_SCORE if self.score_rule is None else MIN_CALIBRATED_SCORE

    @property
    def split(self) -> Split:
        """See ``tfiseg.cluster``."""
        return self._split

    @property
    def min_score(self) -> float:
        """Minimum score of reported instances: the option's value, or the default of the model."""
        return self._default_min_score if self._given_min_score is None else self._given_min_score

    @min_score.setter
    def min_score(self, value: float | None) -> None:
        if value is not None:
            check_min_score(value)
        self._given_min_score = value

    @property
    def things(self) -> tuple[int, ...]:
        """Class IDs to segment. Set class IDs or names, or one of them; None: all countable classes."""
        return self._things

    @things.setter
    def things(self, value: Iterable[str | int] | str | int | None) -> None:
        if value is None:
            self._things = self.session.info.things
        elif isinstance(value, str | Integral):
            self._things = self._class_ids(value)
        elif isinstance(value, Iterable):
            self._things = tuple(k for thing in value for k in self._class_ids(thing))
        else:
            raise InputError(f"things must be class names or ids, got {value!r}")

    @property
    def min_area(self) -> int | None:
        """Minimum area of an instance in pixels; None: the default for the model and the frame's size."""
        return self._min_area

    @min_area.setter
    def min_area(self, value: int | None) -> None:
        if value is not None:
            check_min_area(value)
        self._min_area = value

    @property
    def max_instances(self) -> int:
        """Maximum number of instances per frame; the largest are kept."""
        return self._max_instances

    @max_instances.setter
    def max_instances(self, value: int) -> None:
        check_max_instances(value)
        self._max_instances = value

    def _class_ids(self, name: str | int | Integral) -> tuple[int, ...]:
        """Return the class IDs, above 0, of an ID or of a name, which several classes may have."""
        is_id = isinstance(name, Integral) or (isinstance(name, str) and name.isdecimal())
        wanted = int(name) if is_id else name  # type: ignore[call-overload]
        ids = tuple(k for k, known in enumerate(self.class_names) if k and wanted == (k if is_id else known))
        if ids:
            return ids
        raise InputError(
            f"unknown class {name!r}; this model knows {', '.join(self.class_names[1:])}."
            f"{did_you_mean(str(name), self.class_names[1:])}"
        )

    def cluster_settings(self, size_hw: tuple[int, int]) -> ClusterSettings:
        """Return the operator's settings for a frame of this size."""
        return ClusterSettings(
            things=self.clustered_classes,
            split=self._split,
            min_area=self._frame_min_area(size_hw),
            max_instances=self.max_instances,
            affinity_offsets=self._affinity_offsets,
            merge_rule=self._merge_rule,
            part_rule=self._part_rule,
            sharpen=self._sharpen,
        )

    @property
    def clustered_classes(self) -> tuple[int, ...]:
        """Classes to cluster; a score calibration compares areas of all countable ones."""
        if self.score_rule is None:
            return self.things
        return tuple(sorted({*self.things, *self.session.info.things}))

    def components_of(self, logits: NDArray[np.float32], size_hw: tuple[int, int]) -> Instances:
        """Return all connected components of a frame's class map, also small ones.

        Args:
            logits: float32 (1, C, h, w).
            size_hw: of the frame, in pixels.
        """
        settings = self.cluster_settings(size_hw)
        return cluster_batch(
            logits,
            settings=settings.components(min(MIN_AREA_PX, settings.min_area)),
            output_size_hw=size_hw,
            class_names=self.class_names,
            threads=self._threads,
        )[0]

    def filter_instances(
        self,
        found: Instances,
        size_hw: tuple[int, int],
        calibrated: bool = True,
        largest_excluded_area_px: int = 0,
        margins: Margins = _NO_MARGINS,
    ) -> Instances:
        """Keep instances of ``things`` that reach the minimum area and the minimum score.

        Args:
            found: instances whose score is the mean class probability.
            size_hw: of the frame, in pixels.
            calibrated: convert scores to probabilities, if the model has a score calibration.
            largest_excluded_area_px: see ``object_probability``.
        """
        found = found.select(found.area >= margins.smaller(self._frame_min_area(size_hw)))
        min_score = self.min_score
        if self.score_rule is not None and calibrated:
            found = replace(found, score=object_probability(found, self.score_rule, largest_excluded_area_px))
        elif self.score_rule is not None and self._given_min_score is None:
            min_score = MIN_SCORE
        found = found.select(
            (found.score >= min_score - margins.score) & np.isin(found.class_id, self.things)
        )
        if len(found) <= self.max_instances:
            return found
        largest = np.argsort(-found.area, kind="stable")[: self.max_instances]
        return found.select(np.isin(np.arange(len(found)), largest))

    def _frame_min_area(self, size_hw: tuple[int, int]) -> int:
        if self.min_area is not None:
            return self.min_area
        if self._model_min_area is not None:
            return self._model_min_area
        return default_min_area(size_hw, self.session.info, self._tiles)

    def by_shape(self, image: NDArray[np.uint8], split: Split, calibrated: bool = False) -> Instances:
        """Find the instances of an image by the shape of its class map only, as a baseline.

        Args:
            image: uint8 (H, W, 3) BGR.
            split: see ``tfiseg.cluster``.
            calibrated: see ``filter_instances``.
        """
        logits = self.session.infer(image)["logits"]
        return self.cluster_maps({"logits": logits}, (image.shape[0], image.shape[1]), split, calibrated)

    def cluster_maps(
        self,
        maps: Mapping[str, NDArray[np.float32]],
        frame_size_hw: tuple[int, int],
        split: Split | None = None,
        calibrated: bool = True,
        margins: Margins = _NO_MARGINS,
    ) -> Instances:
        """Cluster the network's maps of a frame.

        Args:
            maps: output name -> float32 (1, channels, h, w), as ``session.infer`` returns them.
            frame_size_hw: of the frame, in pixels.
            calibrated: see ``filter_instances``.
        """
        if self._method != "frame":  # engines always return their heads' maps
            maps = {name: value for name, value in maps.items() if name not in ("affinity", "boundary")}
        settings = margins.shifted(self.cluster_settings(frame_size_hw))
        if split is not None:
            settings = replace(settings, split=split)
        (found,) = cluster_batch(
            maps["logits"],
            displacement=maps.get("displacement"),
            boundary=maps["boundary"][:, 0] if "boundary" in maps else None,
            affinity=maps.get("affinity"),
            settings=settings.for_maps("affinity" in maps, "boundary" in maps),
            output_size_hw=frame_size_hw,
            class_names=self.class_names,
            threads=self._threads,
        )
        return self.filter_instances(found, frame_size_hw, calibrated, margins=margins)
