"""``Segmenter``: frames in, instances out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ModelError
from ..instances import Instances, instances_from_table
from ..plugins.operator import (
    AFFINITY_OFFSETS,
    MIN_AREA_PX,
    Split,
    check_min_area,
    cluster,
    split_table,
    thing_flags,
)
from ..plugins.problem import MAX_INSTANCES
from .gpu.clusterer import MOST_INSTANCES, Asked
from .gpu.view_refiner import VIEWS, LookSettings
from .networks.gpu_session import GpuSession, enlarged
from .networks.multi_scale import MultiScaleSession, checked_scales
from .networks.session import DEFAULT_FRAME_MODEL, DEFAULT_MODEL, DEFAULT_PROVIDERS, Session, open_session
from .object_score import FEATURES, object_probability
from .refine.mask_refinement import Foregrounds
from .refine.refiner import Refiner
from .sources.base import Frame, checked_image

_log = logging.getLogger("tfiseg")

REFINES = (None, "components", "frame")
MIN_SCORE = 0.5  # of mean class probabilities
# of probabilities of being an object: one more adds to PQ where p > PQ / (2 IoU), which is 0.27 to 0.32 on
# training photos
MIN_RATED_SCORE = 0.3
_MIN_AREA_SHARE = (
    1e-3  # of the frame: a network's crumbs, below what its stride-4 grid can tell (docs/benchmarks)
)


def usual_min_area(size_hw: tuple[int, int]) -> int:
    """Smallest instance in pixels that is kept in a frame of this size: 0.1 %, at least 25."""
    return max(MIN_AREA_PX, round(_MIN_AREA_SHARE * size_hw[0] * size_hw[1]))


class Segmenter:
    """Instance masks of frames: a semantic network, then the clustering operator.

    Args:
        model: path of a model in tfiseg's format, or of an engine, which is checked against this machine
            before it is loaded; default: the network that comes with tfiseg (21 PASCAL classes), with
            refine="frame" the one with instance heads.
        things: names or ids of the classes to segment; default: all countable classes of the model.
        split: see ``tfiseg.cluster``; default: what the model's metadata says, else "auto".
        min_area: smallest instance in pixels; default: what the instance network, where there is one, or the
            model says that it is for; if neither does, 0.1 % of the frame, at least 25.
        min_score: instances with a lower score are left out; 0 keeps all. The score is the probability of
            being an object where the model has a rule for that (``tfiseg train score``; the networks that
            come with tfiseg do; default: 0.3), else the mean class probability (default: 0.5).
        max_instances: at most this many per frame, the largest.
        refine: "components": cut and join the class map's components by what the instance network sees in
            them, in place of their shape alone (see ``Refiner``; where both networks run on the GPU, there
            and in the same graph); "frame": by the model's own instance heads, in the same pass; None: by
            shape, or by the heads of a model that has them.
        instance_model: path of an instance network, or of an engine of one, with refine="components" or
            ``outlines``; default: the one that comes with tfiseg.
        outlines: draw outlines anew, as the instance network sees them in views of what was found (see
            ``Refiner.outlined``); default: with refine="components", if the instance network can. On the CPU,
            of frames in host memory. Only the classes that are reported defend their pixels. ``semantic_map``
            stays the semantic network's.
        thorough: with refine="components": look at more components, and closer (see ``Refiner``); default: as
            the instance network asks.
        max_views: with refine="components": look at so many components and classes of a frame at most, and at
            crowds in as many windows (see ``Refiner``); default: 64 on the CPU; in the GPU's graph, where
            each costs whether it shows something or not, 16.
        scales, flip: look several times at each frame, for finer class maps: at overlapping windows of it,
            1.5 meaning two thirds of its longer side each (1: the whole frame), and at mirror images.
            ``scales=(1, 1.5), flip=True`` takes six passes of a wide frame, ten of others. An engine must
            take windows of that size, too.
        threads: CPU threads of network and clustering; 0 = all that the process may use.
        providers: ONNX Runtime execution providers.

    Raises:
        ModelError: the model can't be used, or has no instance heads with refine="frame". EngineError: an
            engine whose record, content or machine doesn't fit; the message gives both sides and the command
            that rebuilds. InputError: unknown class name; scales and flip beside instance heads; a frame that
            is no uint8 (H, W, 3).

    Example:
        >>> segmenter = Segmenter(things=["person"])
        >>> instances = segmenter(cv2.imread("street.jpg"))
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
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
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        if threads < 0:
            raise InputError(f"threads must be at least 1 (0 = all), got {threads}")
        if min_area is not None:
            check_min_area(min_area)
        scales = checked_scales(scales)
        if refine not in REFINES:
            raise InputError(f"refine must be one of {', '.join(map(repr, REFINES))}, got {refine!r}")
        if instance_model is not None and refine != "components" and not outlines:
            raise InputError('an instance_model does nothing without refine="components" or outlines')
        if thorough is not None and refine != "components":
            raise InputError(
                'thorough says how to look at components: it does nothing without refine="components"'
            )
        if max_views is not None and refine != "components":
            raise InputError(
                'max_views says how to look at components: it does nothing without refine="components"'
            )
        self.session: Session = open_session(
            model or (DEFAULT_FRAME_MODEL if refine == "frame" else DEFAULT_MODEL), threads, providers
        )
        self.class_names = self.session.info.class_names
        if things is None:
            self.things = self.session.info.things
        else:
            self.things = tuple(self._class_id(t) for t in ([things] if isinstance(things, str) else things))
        parameters = self.session.info.extra.get("clustering", {})
        self.split: Split = split if split is not None else parameters.get("split", "auto")
        split_table(self.split)  # raises now, not at the first frame
        self._affinity_offsets = np.array(parameters.get("affinity_offsets", AFFINITY_OFFSETS), np.int32)
        self.min_area = min_area
        self.max_instances = max_instances
        self.threads = threads or None
        self._merge_rule, self._part_rule = (
            None if name not in parameters else np.array(parameters[name], np.float32)
            for name in ("merge_rule", "part_rule")
        )
        self._sharpen = int(parameters.get("sharpen", 0))
        self.score_rule: Sequence[float] | None = parameters.get("score_rule")
        if self.score_rule is not None and len(self.score_rule) != len(FEATURES) + 1:
            raise ModelError(
                f"{self.session.path}: its score rule has {len(self.score_rule)} numbers, wanted {len(FEATURES) + 1}"
            )
        usual = MIN_SCORE if self.score_rule is None else MIN_RATED_SCORE
        self.min_score = usual if min_score is None else min_score
        if refine == "components" and not self.session.has("logits"):
            raise ModelError(
                f'{self.session.path} gives instances, and no class logits: refine="components" looks at the class map\'s components. '
                "`tfiseg build --no-operator` makes an engine that gives logits"
            )
        if refine == "frame" and not self.session.has("affinity"):
            raise ModelError(
                f"{self.session.path} has no instance heads: `tfiseg train frame --model {self.session.path}` adds them"
            )
        if flip or scales != (1.0,):
            if refine != "components" and self.session.has("affinity"):
                raise InputError(
                    'of instance heads there is no mean: scales and flip need refine="components", or a model without heads'
                )
            if not self.session.has("logits"):
                raise InputError(
                    f"{self.session.path} gives instances, and no class logits: scales and flip have nothing to average "
                    "(`tfiseg build --no-operator`)"
                )
            if isinstance(self.session, GpuSession) and self.session.clusters:
                _log.warning(
                    "clustering runs on the CPU, of frames in host memory: scales and flip average the class maps there"
                )
            self.session = MultiScaleSession(self.session, scales, flip)
        refiner = None
        if refine == "components" or outlines:
            refiner = Refiner(
                instance_model, max_views=max_views, thorough=thorough, threads=threads, providers=providers
            )
        self._gpu_views = max_views or VIEWS
        self.refiner = refiner if refine == "components" else None
        self._outliner = (
            refiner if outlines or (outlines is None and refiner and refiner.session.draws_outlines) else None
        )
        asked = None if refiner is None else refiner.session.min_area
        self._model_min_area: int | None = parameters.get("min_area") if asked is None else asked
        self._on_cpu = self._what_runs_on_cpu()  # None: nothing that needs the frame
        if (
            refiner is not None
            # raises now, not at the first frame; what only a crowd needs, which the GPU leaves to the CPU, can
            # wait
        ):
            maps = self.refiner is not None and self._on_cpu is not None
            refiner.session.prepare(
                maps, outlines=self._outliner is not None, maps_alone=maps and refiner.thorough
            )
        if isinstance(self.session, GpuSession) and self.session.clusters:
            if self._on_cpu is not None:
                _log.warning("%s, of frames in host memory", self._on_cpu)
            if self._outliner is not None:
                _log.warning("outlines are drawn on the CPU, of frames in host memory")

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
        raise InputError(f"unknown class {name!r}; this model knows {', '.join(self.class_names[1:])}")

    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Instances:
        """Instances of one frame (a ``Frame``, or a uint8 (H, W, 3) BGR picture), at the frame's size."""
        began = time.perf_counter()
        known: Foregrounds = {}
        lies_there = hasattr(frame.image if isinstance(frame, Frame) else frame, "__cuda_array_interface__")
        if lies_there and self._outliner is not None:
            raise InputError("outlines are drawn on the CPU: give a frame in host memory, or outlines=False")
        if lies_there and self._on_cpu is not None:
            raise InputError(f"{self._on_cpu}: give a frame in host memory")
        if isinstance(self.session, GpuSession) and self._on_cpu is None:
            found, known = self._on_gpu(self.session, frame)
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
            stages = found.stage_ms
            found = found.select(found.area >= self._least_area(found.label_map.shape))
        if isinstance(frame, Frame):
            stages = {"decode": frame.decode_ms, **stages}
            return replace(
                found, frame_index=frame.index, capture_time_ns=frame.capture_time_ns, stage_ms=stages
            )
        return replace(found, stage_ms=stages)

    def _what_runs_on_cpu(self) -> str | None:
        """What of all that needs the frame runs on the CPU, as a sentence without its end; None: nothing
        does."""
        if not isinstance(self.session, GpuSession):
            several = isinstance(self.session, MultiScaleSession)
            return (
                "several looks are averaged on the CPU" if several else f"{self.session.path} runs on the CPU"
            )
        if not self.session.clusters:
            return "clustering runs on the CPU"
        if self.refiner is None:
            return None
        network, why = self.refiner.session, None
        if self.refiner.thorough:
            why = "thorough looks are planned as they go"
        elif not network.on_gpu:
            why = f"{network.path} runs there; `tfiseg build` makes an engine of it, for instance_model"
        elif network.engine is not None and network.engine.most < self._gpu_views:
            most = network.engine.most
            why = f"{network.path} takes {most} views at once, not {self._gpu_views}: build it without --batch, or set max_views"
        return why and f"components are looked at on the CPU ({why})"

    def _on_gpu(self, session: GpuSession, frame: Frame | NDArray[np.uint8]) -> tuple[Instances, Foregrounds]:
        """Everything on the GPU; the frame may lie there already (``__cuda_array_interface__``). Beside the
        instances what was learned of outlines."""
        image = frame.image if isinstance(frame, Frame) else frame
        if not hasattr(image, "__cuda_array_interface__"):
            image = checked_image(image)
        size_hw = (int(image.shape[0]), int(image.shape[1]))
        if self.refiner is not None:
            return self._looked_on_gpu(session, self.refiner, image, size_hw)
        asked = Asked(
            size_hw,
            thing_flags(self._clustered),
            split_table(self.split),
            self._least_area(size_hw),
            min(self.max_instances, MOST_INSTANCES),
            self._affinity_offsets,
            self._merge_rule,
            self._part_rule,
            self._sharpen,
        )
        found = session.cluster(image, asked)
        label_map, semantic_map, table = found.label_map[0], found.semantic_map[0], found.table[0]
        if label_map.shape != size_hw:  # the operator inside the engine works on a grid of its own
            label_map, semantic_map, table = enlarged(label_map, semantic_map, table, size_hw)
        instances = instances_from_table(label_map, semantic_map, table, class_names=self.class_names)
        return self.worthwhile(instances, size_hw), {}

    def _looked_on_gpu(
        self, session: GpuSession, refiner: Refiner, image: Any, size_hw: tuple[int, int]
    ) -> tuple[Instances, Foregrounds]:
        """As ``_refined``; joins, which are few, on the CPU, and frames that hold a crowd."""
        with session.looked(image, self._asked_components(size_hw), self._looks(refiner)) as looked:
            began = time.perf_counter()
            crowd = refiner.holds_crowd(looked, self.things)
            fetched = (
                looked.frame() if crowd else refiner.fetched(looked, outlines=self._outliner is not None)
            )
        if isinstance(fetched, np.ndarray):
            components = refiner.components_of(looked, self.class_names)
            wanted = components.select(np.isin(components.class_id, self.things))
            crowds_ms = {"crowds": (time.perf_counter() - began) * 1e3}
            found, known = refiner.looked(fetched, wanted, outlines=self._outliner is not None)
            crowds_ms["crowds"] += found.stage_ms.get("crowds", 0.0)
            found = replace(found, stage_ms={**found.stage_ms, **crowds_ms})
        else:
            found, known = refiner.joined(looked, fetched, self.class_names), fetched.known
            found = replace(found, stage_ms={"merge": (time.perf_counter() - began) * 1e3})
        unwanted = looked.components[~np.isin(looked.components[:, 0], self.things), 6]
        return self.worthwhile(found, size_hw, beside_px=int(unwanted.max(initial=0))), known

    def _asked_components(self, size_hw: tuple[int, int]) -> Asked:
        """As ``components_of``, on the GPU."""
        least, most = min(MIN_AREA_PX, self._least_area(size_hw)), min(self.max_instances, MOST_INSTANCES)
        return Asked(
            size_hw,
            thing_flags(self._clustered),
            split_table(0.0),
            least,
            most,
            self._affinity_offsets,
            merge_rule=None,
        )

    def _looks(self, refiner: Refiner) -> LookSettings:
        return LookSettings(
            refiner.session, thing_flags(self.things), self._gpu_views, outlines=self._outliner is not None
        )

    def _refined(
        self, refiner: Refiner, image: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float32]]
    ) -> tuple[Instances, Foregrounds]:
        """Components first, crumbs included: they may be joined to something. Beside the instances what was
        learned of outlines."""
        size_hw = (image.shape[0], image.shape[1])
        components = self.components_of(maps["logits"], size_hw)
        wanted = np.isin(components.class_id, self.things)
        found, known = refiner.looked(image, components.select(wanted), outlines=self._outliner is not None)
        return self.worthwhile(found, size_hw, beside_px=int(components.area[~wanted].max(initial=0))), known

    @property
    def _clustered(self) -> tuple[int, ...]:
        """Classes that are clustered: a score rule compares with all that the picture shows, whatever is
        asked for."""
        return (
            self.things
            if self.score_rule is None
            else tuple(sorted({*self.things, *self.session.info.things}))
        )

    def components_of(self, logits: NDArray[np.float32], size_hw: tuple[int, int]) -> Instances:
        """Connected components of a frame's class map, crumbs included, from logits float32 (1, C, h, w)."""
        components: Instances = cluster(
            logits[0],
            things=self._clustered,
            split=0.0,
            min_area=min(MIN_AREA_PX, self._least_area(size_hw)),
            max_instances=self.max_instances,
            output_size_hw=size_hw,
            class_names=self.class_names,
            threads=self.threads,
        )
        return components

    def worthwhile(
        self, found: Instances, size_hw: tuple[int, int], rated: bool = True, beside_px: int = 0
    ) -> Instances:
        """The instances of the segmenter's classes that are neither too small nor too unsure to be reported.

        ``rated``: by the model's score rule, if it has one; else by mean class probability, as for a model
        that has none. ``beside_px``: see ``object_probability``.
        """
        found = found.select(found.area >= self._least_area(size_hw))
        least = self.min_score
        if self.score_rule is not None and rated:
            found = replace(found, score=object_probability(found, self.score_rule, beside_px))
        elif self.score_rule is not None and least == MIN_RATED_SCORE:
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

    def by_shape(self, image: NDArray[np.uint8], split: Split, rated: bool = False) -> Instances:
        """Instances of one picture from its class map alone, whatever the segmenter's own way is: what that
        is measured against."""
        logits = self.session.infer(image)["logits"]
        return self.cluster_maps({"logits": logits}, (image.shape[0], image.shape[1]), split, rated)

    def cluster_maps(
        self,
        maps: Mapping[str, NDArray[np.float32]],
        frame_size_hw: tuple[int, int],
        split: Split | None = None,
        rated: bool = True,
    ) -> Instances:
        """Instances from what the network said of a frame (``session.infer``): float32 (1, channels, h, w) by
        output name.

        ``split``: in place of the segmenter's own; ``rated``: see ``worthwhile``.
        """
        height, width = frame_size_hw
        found: Instances = cluster(
            maps["logits"][0],
            displacement=maps["displacement"][0] if "displacement" in maps else None,
            boundary=maps["boundary"][0, 0] if "boundary" in maps else None,
            affinity=maps["affinity"][0] if "affinity" in maps else None,
            affinity_offsets=self._affinity_offsets,
            merge_rule=self._merge_rule if "affinity" in maps else None,
            part_rule=self._part_rule if "affinity" in maps and "boundary" in maps else None,
            sharpen=self._sharpen if "boundary" in maps else 0,
            things=self._clustered,
            split=self.split if split is None else split,
            min_area=self._least_area((height, width)),
            max_instances=self.max_instances,
            output_size_hw=(height, width),
            class_names=self.class_names,
            threads=self.threads,
        )
        return self.worthwhile(found, frame_size_hw, rated)
