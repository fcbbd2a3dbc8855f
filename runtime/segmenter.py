"""``Segmenter``: find the instances of frames."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..instances import Instances
from ..plugins.settings import MAX_INSTANCES, Split
from .gpu_segmenting import GpuRoute
from .map_clusterer import MapClusterer
from .networks.gpu_session import GpuSession
from .networks.model_variants import Variant
from .networks.multi_scale import MultiScaleSession
from .networks.open_session import open_session
from .networks.session import DEFAULT_MODEL, DEFAULT_PROVIDERS, Session
from .option_effects import check_built_in_operator, check_engine_options, check_gpu_options, check_split
from .picture_input import as_frame
from .refine.mask_refinement import Foregrounds
from .refine.refiner import Refiner
from .segmenter_settings import SegmenterSettings
from .sources.base import Frame, check_image

# options that no attribute has; those of ``MapClusterer`` may be changed between frames
_FIXED_OPTIONS = frozenset(field.name for field in fields(SegmenterSettings)) - {
    "things",
    "min_score",
    "min_area",
    "max_instances",
    "refine",
}

_log = logging.getLogger("tfiseg")


class Segmenter(MapClusterer):
    """Find instance masks in frames: a semantic network, then the clustering operator.

    Args:
        model: path of a model in tfiseg's format, or of an engine; an engine is checked against this machine
            before it is loaded. Default: the network that comes with tfiseg (21 PASCAL classes).
        quality: "balanced" uses the model's own instance heads, in the same pass (by shape, if it has none);
            "fast" separates objects by the shape of the class map; "best" also runs the instance network on
            each region, refines masks, and shows the default network larger frames.
        things: names or ids of the classes to segment, or one; default: all countable classes of the model.
        split: see ``tfiseg.cluster``; default: from the model's metadata, else "auto".
        min_area: minimum area of an instance in pixels; default: from the metadata of the instance network or
            the model, else 0.1 % of the frame, at least 25; less with ``tiles`` or a larger ``long_side_px``.
        min_score: minimum score of an instance; 0 keeps all. If the model has a score calibration, the score
            is the probability that the instance is an object (default: 0.3), else the mean class probability
            (default: 0.5).
        max_instances: maximum number of instances per frame; the largest are kept.
        refine: expert override of ``quality``: "shape", "frame" (the model's instance heads) or "components"
            (the instance network, see ``Refiner``; in the same CUDA graph if both networks run on the GPU).
        instance_model: path of an instance network or its engine, for "components" or ``outlines``; default:
            the one that comes with tfiseg.
        outlines: refine masks with the instance network (see ``Refiner.outlined``), on the GPU with
            "components" in its graph, else on the CPU; default: with "components", if the instance network
            supports it.
        thorough: with "components", exhaustive refinement (see ``Refiner``); default: from the instance
            network's metadata.
        max_views: with "components", maximum number of regions to refine per frame; default: 64, or 16 in the
            GPU's graph.
        long_side_px: longer side in pixels that the network scales frames to; default: the model's own, or
            640 with ``quality="best"`` and the default network.
        tiles: 2 also processes overlapping windows of half the frame's longer side, with class maps twice as
            fine, for small objects in large frames. It takes five or more passes. "balanced" becomes
            "components".
        scales, flip: average class maps over several passes: overlapping windows (1.5: of two thirds of the
            frame's longer side each; 1: the whole frame) and mirror images. They have no instance heads, so
            "balanced" becomes "components". An engine must support windows of that size.
        threads: CPU threads of network and clustering; 0 = all that the process may use.
        device: "cpu" or "cuda": where a model in ONNX runs. An engine always runs on the GPU.
        backend: runtime of a model in ONNX: "onnxruntime" or "torch" (float16 on a GPU). Use PyTorch on GPUs
            without TensorRT and onnxruntime-gpu; on a CPU it chooses its own number of threads.
        providers: expert override of ``device``: ONNX Runtime execution providers.

    ``things``, ``min_score``, ``min_area`` and ``max_instances`` are attributes too, which may be set between
    frames.

    Raises:
        ModelError: the model can't be used, or has no instance heads with ``refine="frame"``.
        EngineError: an engine doesn't match its metadata or this machine; the message gives the command that
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
        things: Iterable[str | int] | str | int | None = None,
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
        tiles: int = 1,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        threads: int = 0,
        device: str = "cpu",
        backend: str = "onnxruntime",
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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED_OPTIONS:  # the networks are open: it would have no effect
            raise InputError(f"{name} of a segmenter can't be changed: make a new one, Segmenter({name}=...)")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the current options; the copy opens the model again."""
        settings = replace(
            self.settings,
            things=self.things,
            min_area=self.min_area,
            min_score=self._given_min_score,
            max_instances=self.max_instances,
        )
        return type(self).from_settings, (settings,), self.refine

    def __setstate__(self, refine: str) -> None:
        if refine != self.refine:
            self.refine = refine

    def _open(self, settings: SegmenterSettings) -> None:
        self.settings, self._is_closed = settings, False
        check_engine_options(settings)
        wanted = settings.wanted_refine
        variant = Variant(heads=wanted == "frame", long_side_px=settings.input_long_side_px)
        path = settings.model or DEFAULT_MODEL
        self.session: Session = open_session(
            path, settings.threads, settings.onnx_providers, variant, settings.torch_device
        )
        self.class_names = self.session.info.class_names
        self._method = self._possible_refine(settings)
        self._read_parameters(settings)
        self._check_effects(settings)
        if settings.several_passes:
            self.session = self._open_multi_scale(settings)
        self._open_refiner(settings)

    @property
    def refine(self) -> str:
        """How instances are found: "shape", "frame" or "components"."""
        return self._method

    @refine.setter
    def refine(self, value: str) -> None:
        alone = self.refiner is None and self._mask_refiner is None and self._gpu.reason_for_cpu is not None
        both = alone and self.session.has("affinity")
        if value != self._method and not (both and value in ("shape", "frame")):
            raise InputError(f"refine can't be changed to {value!r} here: make a new Segmenter(refine=...)")
        self._method = value
        self._read_metadata(self.settings.split)

    def _check_effects(self, settings: SegmenterSettings) -> None:
        """Raise InputError for options that the model doesn't support."""
        operator = getattr(self.session, "operator", None)
        if operator is not None:
            check_built_in_operator(settings, operator, self.things, self.session.path)
            return
        check_split(settings, self._method)
        if isinstance(self.session, GpuSession):
            check_gpu_options(settings, self.session.clusters)
            if self._method == "shape":
                self.session.cluster_class_map_alone()

    def _possible_refine(self, settings: SegmenterSettings) -> str:
        """Return the ``refine`` to use. Raises ModelError if the model doesn't support it."""
        path, wanted = self.session.path, settings.wanted_refine
        if wanted == "components" and not self.session.has("logits"):
            raise ModelError(
                f'{path} returns instances and no class logits, which refine="components" needs. '
                "`tfiseg build --no-operator` builds an engine that returns logits."
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

    def _open_multi_scale(self, settings: SegmenterSettings) -> Session:
        if not self.session.has("logits"):
            raise InputError(
                f"{self.session.path} returns instances and no class logits, so tiles, scales and flip have "
                "nothing to average. `tfiseg build --no-operator` builds an engine that returns logits."
            )
        if isinstance(self.session, GpuSession) and self.session.clusters:
            _log.warning("tiles, scales and flip average class maps on the CPU: clustering runs there too")
        scales = settings.scales if settings.tiles == 1 else (1, settings.tiles)
        return MultiScaleSession(self.session, scales, settings.flip, settings.tiles)

    def _open_refiner(self, settings: SegmenterSettings) -> None:
        refiner = None
        if self._method == "components" or settings.outlines:
            refiner = Refiner(
                settings.instance_model,
                max_views=settings.max_views,
                thorough=settings.thorough,
                threads=settings.threads,
                providers=settings.onnx_providers,
            )
        self.refiner = refiner if self._method == "components" else None
        outlines = settings.outlines
        if outlines is None:
            outlines = refiner is not None and refiner.session.can_refine_masks
        self._mask_refiner = refiner if outlines else None
        if refiner is not None and refiner.session.min_area is not None:
            self._model_min_area = refiner.session.min_area
        # with a cycle of references, a deleted segmenter would keep its networks until a garbage collection
        self._gpu = GpuRoute(cast("Segmenter", weakref.proxy(self)), settings.max_views)
        on_cpu = self._gpu.reason_for_cpu
        if refiner is not None:  # raises now, not at the first frame; sessions for crowds are opened later
            maps = self.refiner is not None and on_cpu is not None
            if self.refines_masks:
                refiner.session.check_mask_refinement()
            outlines_on_cpu = self.refines_masks and not self._gpu.refines_masks
            refiner.session.prepare(maps, outlines_on_cpu, maps_alone=maps and refiner.thorough)
        if isinstance(self.session, GpuSession) and self.session.clusters:
            if on_cpu is not None:
                _log.warning("%s, on frames in host memory", on_cpu)
            if self.refines_masks and not self._gpu.refines_masks:
                _log.warning("masks are refined on the CPU, on frames in host memory")

    def close(self) -> None:
        """Free the memory of the networks; later calls raise InputError. ``with`` calls it too."""
        self._is_closed = True
        self.session.close()
        refiner = self.refiner or self._mask_refiner
        if refiner is not None:
            refiner.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def __call__(self, frame: list[Any] | tuple[Any, ...], color: str | None = None) -> list[Instances]: ...

    @overload
    def __call__(self, frame: Any, color: str | None = None) -> Instances: ...

    def __call__(self, frame: Any, color: str | None = None) -> Instances | list[Instances]:
        """Find the instances of an image, at its own size.

        Args:
            frame: a ``Frame``, any input of ``tfiseg.segment``, or a list of these. An array or tensor on the
                GPU stays there if all steps run there.
            color: order of channels, "rgb" or "bgr"; default: "bgr" for NumPy, "rgb" for PyTorch.

        Returns:
            Instances; a list of them for a list.

        Raises:
            InputError: the image can't be read or used.
        """
        on_gpu = isinstance(self.session, GpuSession) and not self._gpu.reason_for_cpu
        on_gpu = on_gpu and self._gpu.refines_masks == self.refines_masks
        if isinstance(frame, list | tuple):
            return [self._segment(as_frame(one, color, on_gpu)) for one in frame]
        return self._segment(as_frame(frame, color, on_gpu))

    def _segment(self, frame: Frame | NDArray[np.uint8]) -> Instances:
        if self._is_closed:
            raise InputError("this segmenter is closed: make a new one")
        began = time.perf_counter()
        known: Foregrounds = {}
        on_gpu = hasattr(frame.image if isinstance(frame, Frame) else frame, "__cuda_array_interface__")
        if on_gpu and self.refines_masks and not self._gpu.refines_masks:
            raise InputError("masks are refined on the CPU: pass a frame in host memory, or outlines=False")
        if on_gpu and self._gpu.reason_for_cpu is not None:
            raise InputError(f"{self._gpu.reason_for_cpu}: pass a frame in host memory")
        if isinstance(self.session, GpuSession) and self._gpu.reason_for_cpu is None:
            found = self._gpu.segment(self.session, frame)
            stages = {
                "network": (time.perf_counter() - began) * 1e3 - sum(found.stage_ms.values()),
                **found.stage_ms,
            }
        else:
            image = check_image(frame)
            maps = self.session.infer(image)
            network_ms = (time.perf_counter() - began) * 1e3
            if self.refiner is None:
                found = self.cluster_maps(maps, (image.shape[0], image.shape[1]))
            else:
                found, known = self._refine(self.refiner, image, maps)
            stages = {"network": network_ms, **found.stage_ms}
        if self._mask_refiner is not None:
            if not self._gpu.refines_masks:
                image = check_image(frame)
                found = self._mask_refiner.outlined(image, replace(found, stage_ms=stages), known)
                stages = dict(found.stage_ms)
            found = found.select(found.area >= self._frame_min_area(found.label_map.shape))
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

    def _refine(
        self, refiner: Refiner, image: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float32]]
    ) -> tuple[Instances, Foregrounds]:
        """Refine all components, also small ones: they may be joined. See ``Refiner.refine``."""
        size_hw = (image.shape[0], image.shape[1])
        components = self.components_of(maps["logits"], size_hw)
        countable = np.isin(components.class_id, self.things)
        found, known = refiner.refine(image, components.select(countable), self.refines_masks)
        return self.filter_instances(
            found, size_hw, largest_excluded_area_px=int(components.area[~countable].max(initial=0))
        ), known

    @property
    def refines_masks(self) -> bool:
        """Whether the instance network refines masks."""
        return self._mask_refiner is not None
