"""``Segmenter``: frames in, instances out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError, did_you_mean
from ..instances import Instances
from ..plugins.operator import cluster_batch
from ..plugins.settings import (
    AFFINITY_OFFSETS,
    MAX_INSTANCES,
    MIN_AREA_PX,
    ClusterSettings,
    Split,
    split_table,
)
from .gpu_segmenting import GpuRoute
from .networks.gpu_session import GpuSession
from .networks.model_variants import Variant
from .networks.multi_scale import MultiScaleSession
from .networks.open_session import open_session
from .networks.session import DEFAULT_MODEL, DEFAULT_PROVIDERS, Session
from .object_score import FEATURES, object_probability
from .picture_input import as_frame
from .refine.mask_refinement import Foregrounds
from .refine.refiner import Refiner
from .segmenter_settings import SegmenterSettings
from .sources.base import Frame, checked_image

_log = logging.getLogger("tfiseg")

MIN_SCORE = 0.5  # of mean class probabilities
# of probabilities of being an object: one more adds to PQ where p > PQ / (2 IoU), which is 0.27 to 0.32 on
# training photos
MIN_CALIBRATED_SCORE = 0.3
_MIN_AREA_SHARE = (
    1e-3  # of the frame: a network's crumbs, below what its stride-4 grid can tell (docs/benchmarks)
)


def usual_min_area(size_hw: tuple[int, int]) -> int:
    """Smallest instance in pixels that is kept in a frame of this size: 0.1 %, at least 25."""
    return max(MIN_AREA_PX, round(_MIN_AREA_SHARE * size_hw[0] * size_hw[1]))


class Segmenter:
    """Find instance masks in frames: a semantic network, then the clustering operator.

    Args:
        model: path of a model in tfiseg's format, or of an engine; an engine is checked against this machine
            before it is loaded. Default: the network that comes with tfiseg (21 PASCAL classes).
        quality: "balanced" uses the model's own instance heads, in the same pass (by shape, if it has none);
            "fast" separates objects by the shape of the class map; "best" also runs the instance network on
            each region, refines masks, and shows the default network larger frames.
        things: names or ids of the classes to segment; default: all countable classes of the model.
        split: see ``tfiseg.cluster``; default: what the model's metadata says, else "auto".
        min_area: smallest instance in pixels; default: what the instance network or the model was made for,
            else 0.1 % of the frame, at least 25.
        min_score: instances with a lower score are left out; 0 keeps all. The score is the probability of
            being an object if the model has a score rule (default: 0.3), else the mean class probability
            (default: 0.5).
        max_instances: maximum number of instances per frame; the largest are kept.
        refine: expert override of ``quality``: "shape", "frame" (the model's instance heads) or "components"
            (the instance network, see ``Refiner``; in the same CUDA graph if both networks run on the GPU).
        instance_model: path of an instance network or its engine, for "components" or ``outlines``; default:
            the one that comes with tfiseg.
        outlines: refine masks with the instance network (see ``Refiner.outlined``), on the CPU; default: with
            "components", if the instance network can. ``semantic_map`` is not changed.
        thorough: with "components", refine more regions, and refine parts again; default: as the instance
            network's metadata says.
        max_views: with "components", maximum number of regions to refine per frame; default: 64, in the GPU's
            graph 16.
        long_side_px: longer side in pixels that the network scales frames to; default: the model's own, with
            ``quality="best"`` and the default network 512.
        scales, flip: average class maps over several passes: overlapping windows (1.5: of two thirds of the
            frame's longer side each; 1: the whole frame) and mirror images. They have no instance heads, so
            "balanced" becomes "components". An engine must accept windows of that size.
        threads: CPU threads of network and clustering; 0 = all that the process may use.
        providers: ONNX Runtime execution providers.

    Raises:
        ModelError: the model can't be used, or has no instance heads with ``refine="frame"``.
        EngineError: an engine's record, content or machine doesn't fit; the message gives the command that
            rebuilds it.
        InputError: an option is out of range or has no effect, or a class name is unknown.

    Example:
        >>> segmenter = Segmenter(things=["person"])
        >>> instances = segmenter("street.jpg")
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        quality: str = "balanced",
        things: Iterable[str | int] | None = None,
        split: Split | None = None,
        min_area: int | None = None,
        min_score: float | None = None,
        max_instances: int = MAX_INSTANCES,
        refine: str | None = None,
        instance_model: str | Path | None = None,
        outlines: bool | None = None,
        thorough: bool | None = None,
        max_views: int | None = None,
        long_side_px: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self._open(SegmenterSettings(**options))

    @classmethod
    def from_settings(cls, settings: SegmenterSettings) -> Segmenter:
        """Make a segmenter from validated options."""
        segmenter = cls.__new__(cls)
        segmenter._open(settings)
        return segmenter

    def _open(self, settings: SegmenterSettings) -> None:
        self.settings = settings
        wanted = settings.wanted_refine
        variant = Variant(heads=wanted == "frame", long_side_px=settings.input_long_side_px)
        path = settings.model or DEFAULT_MODEL
        self.session: Session = open_session(path, settings.threads, settings.providers, variant)
        self.class_names = self.session.info.class_names
        self.refine = self._possible_refine(settings)
        self._read_parameters(settings)
        if settings.several_passes:
            self.session = self._averaging(settings)
        self._open_refiner(settings)

    def _possible_refine(self, settings: SegmenterSettings) -> str:
        """How instances are found with this model; raises ModelError where it can't do what was asked for."""
        path, wanted = self.session.path, settings.wanted_refine
        if wanted == "components" and not self.session.has("logits"):
            raise ModelError(
                f'{path} gives instances and no class logits, which refine="components" needs. '
                "`tfiseg build --no-operator` makes an engine that gives logits."
            )
        if wanted != "frame" or self.session.has("affinity") or not self.session.has("logits"):
            return wanted
        if settings.refine == "frame":
            raise ModelError(f"{path} has no instance heads: `tfiseg train frame --model {path}` adds them")
        _log.info(
            '%s has no instance heads: objects are separated by shape. For more, use quality="best" or add '
            "heads with `tfiseg train frame --model %s`",
            path,
            path,
        )
        return "shape"

    def _read_parameters(self, settings: SegmenterSettings) -> None:
        """Take what the options leave open from the model's metadata."""
        things = settings.things
        if things is None:
            self.things = self.session.info.things
        else:
            self.things = tuple(self._class_id(t) for t in ([things] if isinstance(things, str) else things))
        parameters = self.session.info.extra.get("clustering", {})
        self.split: Split = settings.split if settings.split is not None else parameters.get("split", "auto")
        split_table(self.split)  # raises now, not at the first frame
        self._affinity_offsets = np.array(parameters.get("affinity_offsets", AFFINITY_OFFSETS), np.int32)
        self.min_area = settings.min_area
        self.max_instances = settings.max_instances
        self.threads = settings.threads or None
        self._merge_rule, self._part_rule = (
            None if name not in parameters else np.array(parameters[name], np.float32)
            for name in ("merge_rule", "part_rule")
        )
        self._sharpen = int(parameters.get("sharpen", 0))
        self._model_min_area: int | None = parameters.get("min_area")
        self.score_rule: Sequence[float] | None = parameters.get("score_rule")
        if self.score_rule is not None and len(self.score_rule) != len(FEATURES) + 1:
            raise ModelError(
                f"{self.session.path}: its score rule has {len(self.score_rule)} numbers, expected "
                f"{len(FEATURES) + 1}"
            )
        usual = MIN_SCORE if self.score_rule is None else MIN_CALIBRATED_SCORE
        self.min_score = usual if settings.min_score is None else settings.min_score
        self._min_score_is_given = settings.min_score is not None

    def _averaging(self, settings: SegmenterSettings) -> Session:
        if not self.session.has("logits"):
            raise InputError(
                f"{self.session.path} gives instances and no class logits, so scales and flip have nothing to "
                "average. `tfiseg build --no-operator` makes an engine that gives logits."
            )
        if isinstance(self.session, GpuSession) and self.session.clusters:
            _log.warning("scales and flip average class maps on the CPU: clustering runs there, too")
        return MultiScaleSession(self.session, settings.scales, settings.flip)

    def _open_refiner(self, settings: SegmenterSettings) -> None:
        refiner = None
        if self.refine == "components" or settings.outlines:
            refiner = Refiner(
                settings.instance_model,
                max_views=settings.max_views,
                thorough=settings.thorough,
                threads=settings.threads,
                providers=settings.providers,
            )
        self.refiner = refiner if self.refine == "components" else None
        wants_outlines = settings.outlines
        if wants_outlines is None:
            wants_outlines = refiner is not None and refiner.session.draws_outlines
        self._outliner = refiner if wants_outlines else None
        if refiner is not None and refiner.session.min_area is not None:
            self._model_min_area = refiner.session.min_area
        self._gpu = GpuRoute(self, settings.max_views)
        on_cpu = self._gpu.reason_for_cpu
        if refiner is not None:  # raises now, not at the first frame; crowds' sessions can wait
            maps = self.refiner is not None and on_cpu is not None
            refiner.session.prepare(
                maps, outlines=self._outliner is not None, maps_alone=maps and refiner.thorough
            )
        if isinstance(self.session, GpuSession) and self.session.clusters:
            if on_cpu is not None:
                _log.warning("%s, on frames in host memory", on_cpu)
            if self._outliner is not None:
                _log.warning("masks are refined on the CPU, on frames in host memory")

    def close(self) -> None:
        """Free what an engine holds on the GPU; or use ``with``."""
        self.session.close()
        refiner = self.refiner or self._outliner
        if refiner is not None:
            refiner.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _class_id(self, name: str | int) -> int:
        if isinstance(name, Integral) or (isinstance(name, str) and name.isdecimal()):
            if 0 < int(name) < len(self.class_names):
                return int(name)
        elif name in self.class_names:
            return self.class_names.index(name)
        raise InputError(
            f"unknown class {name!r}; this model knows {', '.join(self.class_names[1:])}."
            f"{did_you_mean(str(name), self.class_names[1:])}"
        )

    @overload
    def __call__(self, frame: list[Any] | tuple[Any, ...], color: str | None = None) -> list[Instances]: ...

    @overload
    def __call__(self, frame: Any, color: str | None = None) -> Instances: ...

    def __call__(self, frame: Any, color: str | None = None) -> Instances | list[Instances]:
        """Find the instances of a picture, at its own size.

        Args:
            frame: a ``Frame``; or what ``tfiseg.segment`` takes; or a list of these. An array or tensor on
                the GPU stays there if everything runs there.
            color: order of channels, "rgb" or "bgr"; default: "bgr" for numpy, "rgb" for torch.

        Returns:
            Instances; a list of them for a list.

        Raises:
            InputError: the picture can't be read or used.
        """
        on_gpu = isinstance(self.session, GpuSession) and not (self._gpu.reason_for_cpu or self._outliner)
        if isinstance(frame, list | tuple):
            return [self._segment(as_frame(one, color, on_gpu)) for one in frame]
        return self._segment(as_frame(frame, color, on_gpu))

    def _segment(self, frame: Frame | NDArray[np.uint8]) -> Instances:
        began = time.perf_counter()
        known: Foregrounds = {}
        lies_there = hasattr(frame.image if isinstance(frame, Frame) else frame, "__cuda_array_interface__")
        if lies_there and self._outliner is not None:
            raise InputError("outlines are drawn on the CPU: give a frame in host memory, or outlines=False")
        if lies_there and self._gpu.reason_for_cpu is not None:
            raise InputError(f"{self._gpu.reason_for_cpu}: give a frame in host memory")
        if isinstance(self.session, GpuSession) and self._gpu.reason_for_cpu is None:
            found, known = self._gpu.segment(self.session, frame)
            stages = {
                "network": (time.perf_counter() - began) * 1e3 - sum(found.stage_ms.values()),
                **found.stage_ms,
            }
        else:
            image = checked_image(frame)
            maps = self.session.infer(image)
            network_ms = (time.perf_counter() - began) * 1e3
            if self.refiner is None:
                found = self.cluster_maps(maps, (image.shape[0], image.shape[1]))
            else:
                found, known = self._refined(self.refiner, image, maps)
            stages = {"network": network_ms, **found.stage_ms}
        if self._outliner is not None:
            found = self._outliner.outlined(checked_image(frame), replace(found, stage_ms=stages), known)
            stages = dict(found.stage_ms)
            found = found.select(found.area >= self._least_area(found.label_map.shape))
        if isinstance(frame, Frame):
            stages = {"decode": frame.decode_ms, **stages}
            return replace(
                found,
                frame_index=frame.index,
                capture_time_ns=frame.capture_time_ns,
                media_time_s=frame.media_time_s,
                stage_ms=stages,
            )
        return replace(found, stage_ms=stages)

    def _refined(
        self, refiner: Refiner, image: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float32]]
    ) -> tuple[Instances, Foregrounds]:
        """Components first, crumbs included: they may be joined to something. Beside the instances what was
        learned of outlines."""
        size_hw = (image.shape[0], image.shape[1])
        components = self.components_of(maps["logits"], size_hw)
        wanted = np.isin(components.class_id, self.things)
        found, known = refiner.looked(image, components.select(wanted), outlines=self._outliner is not None)
        return self.filter_instances(
            found, size_hw, largest_excluded_area_px=int(components.area[~wanted].max(initial=0))
        ), known

    @property
    def refines_masks(self) -> bool:
        """Whether outlines are refined by the instance network."""
        return self._outliner is not None

    def cluster_settings(self, size_hw: tuple[int, int]) -> ClusterSettings:
        """How a frame of this size is clustered."""
        return ClusterSettings(
            things=self.clustered_classes,
            split=self.split,
            min_area=self._least_area(size_hw),
            max_instances=self.max_instances,
            affinity_offsets=self._affinity_offsets,
            merge_rule=self._merge_rule,
            part_rule=self._part_rule,
            sharpen=self._sharpen,
        )

    @property
    def clustered_classes(self) -> tuple[int, ...]:
        """Classes that are clustered: a score rule compares with all that the picture shows, whatever is
        asked for."""
        return (
            self.things
            if self.score_rule is None
            else tuple(sorted({*self.things, *self.session.info.things}))
        )

    def components_of(self, logits: NDArray[np.float32], size_hw: tuple[int, int]) -> Instances:
        """Connected components of a frame's class map, crumbs included, from logits float32 (1, C, h, w)."""
        settings = self.cluster_settings(size_hw)
        return cluster_batch(
            logits,
            settings=settings.components(min(MIN_AREA_PX, settings.min_area)),
            output_size_hw=size_hw,
            class_names=self.class_names,
            threads=self.threads,
        )[0]

    def filter_instances(
        self,
        found: Instances,
        size_hw: tuple[int, int],
        calibrated: bool = True,
        largest_excluded_area_px: int = 0,
    ) -> Instances:
        """Keep instances of the wanted classes that are large enough and have a sufficient score.

        Args:
            found: instances whose score is the mean class probability.
            size_hw: of the frame, in pixels.
            calibrated: score by the model's score rule, if it has one.
            largest_excluded_area_px: see ``object_probability``.
        """
        found = found.select(found.area >= self._least_area(size_hw))
        least = self.min_score
        if self.score_rule is not None and calibrated:
            found = replace(found, score=object_probability(found, self.score_rule, largest_excluded_area_px))
        elif self.score_rule is not None and not self._min_score_is_given:
            least = MIN_SCORE
        found = found.select((found.score >= least) & np.isin(found.class_id, self.things))
        if len(found) <= self.max_instances:
            return found
        largest = np.argsort(-found.area, kind="stable")[: self.max_instances]
        return found.select(np.isin(np.arange(len(found)), largest))

    def _least_area(self, size_hw: tuple[int, int]) -> int:
        if self.min_area is not None:
            return self.min_area
        return usual_min_area(size_hw) if self._model_min_area is None else self._model_min_area

    def by_shape(self, image: NDArray[np.uint8], split: Split, calibrated: bool = False) -> Instances:
        """Instances of one picture from its class map alone, whatever the segmenter's own way is: what that
        is measured against."""
        logits = self.session.infer(image)["logits"]
        return self.cluster_maps({"logits": logits}, (image.shape[0], image.shape[1]), split, calibrated)

    def cluster_maps(
        self,
        maps: Mapping[str, NDArray[np.float32]],
        frame_size_hw: tuple[int, int],
        split: Split | None = None,
        calibrated: bool = True,
    ) -> Instances:
        """Cluster the network's maps of a frame.

        Args:
            maps: output name -> float32 (1, channels, h, w), as ``session.infer`` returns them.
            frame_size_hw: of the frame, in pixels.
            split: overrides the segmenter's own.
            calibrated: see ``filter_instances``.
        """
        if self.refine != "frame":  # an engine's heads can't be left out when it is loaded
            maps = {name: value for name, value in maps.items() if name not in ("affinity", "boundary")}
        settings = self.cluster_settings(frame_size_hw)
        if split is not None:
            settings = replace(settings, split=split)
        (found,) = cluster_batch(
            maps["logits"],
            displacement=maps.get("displacement"),
            boundary=maps["boundary"][:, 0] if "boundary" in maps else None,
            affinity=maps.get("affinity"),
            settings=settings.served_by("affinity" in maps, "boundary" in maps),
            output_size_hw=frame_size_hw,
            class_names=self.class_names,
            threads=self.threads,
        )
        return self.filter_instances(found, frame_size_hw, calibrated)
