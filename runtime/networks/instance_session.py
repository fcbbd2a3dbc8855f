"""The instance network, through ONNX Runtime or as an engine: views and class masks in; displacement,
affinities, boundary and foreground out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from ...plugins.operator import check_min_area
from ..gpu.execution_context import Context
from .engine_file import SUFFIX
from .instance_engine import EngineViews
from .model_info import METADATA_KEY
from .onnx_binding import BoundContext, on_stream
from .onnx_bytes import with_outputs
from .onnx_runtime import open_onnx
from .session import CUDA_PROVIDER, DEFAULT_PROVIDERS

INSTANCE_FORMAT = 2  # 2: the join rule sees other classes
_OUTPUTS, _FOREGROUND = ("displacement", "affinity", "boundary"), "foreground"
_BOTH = (*_OUTPUTS, _FOREGROUND)
ANY_SIDE = "side"
_BATCH = 8  # views; more at once aren't faster
DEFAULT_INSTANCE_MODEL = Path(__file__).parents[1] / "models" / "tfiseg-instance.onnx"


@dataclass(frozen=True)
class InstanceMaps:
    """What the network says of K views.

    ``displacement`` float32 (K, 2, S / 4, S / 4), (dy, dx) in cells of 4 px to the centre of each cell's
    object; ``affinity`` float32 (K, A, S / 4, S / 4) in [0, 1]; ``boundary`` float32 (K, 1, S / 2, S / 2) in
    [0, 1]; ``foreground`` float32 (K, S / 2, S / 2), see ``InstanceSession.foreground``, where it was asked
    for.
    """

    displacement: NDArray[np.float32]
    affinity: NDArray[np.float32]
    boundary: NDArray[np.float32]
    foreground: NDArray[np.float32] | None = None


def of_groups(lone_odds: float | None) -> bool:
    """Whether most of what could be parted in a network's class maps is groups, by its ``lone_odds``."""
    return lone_odds is not None and lone_odds < 1


def _checked_odds(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value > 0)
    ):
        raise ValueError(f"lone_odds must be a positive number, got {value!r}")
    return float(value)


class InstanceSession:
    """The instance network in a file. ``view_px``, the side of the views that it takes, ``outline_px``, of
    those in which it draws outlines and nothing else, ``affinity_offsets`` and ``rules`` are its own;
    ``draws_outlines``: whether it tells the foreground; ``min_area``: pixels of the smallest objects that it
    is for, None: not said; ``lone_odds``: of components that could be parted, how many are one object for
    each that is several, None: not said.

    Args:
        path: model that ``tfiseg train instance`` exported, or an engine of one; default: the one that comes
            with tfiseg.
        threads: CPU threads; 0 = ONNX Runtime's own choice.
        providers: ONNX Runtime execution providers, first choice first.

    Raises:
        ModelError: the file is missing, no ONNX, or no instance network of this version. EngineError: see
            ``open_session``.
    """

    def __init__(
        self,
        path: str | Path = DEFAULT_INSTANCE_MODEL,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        self.path = Path(path)
        self.providers = tuple(providers)
        self.engine = None
        self._open = partial(open_onnx, self.path, threads)
        self._opening = Lock()
        self._sessions: dict[tuple[str, ...], Any] = {}
        if self.path.suffix == SUFFIX:
            self.engine = EngineViews(self.path)
            text, side, outputs = (
                json.dumps(self.engine.metadata),
                self.engine.view_px,
                list(self.engine.types),
            )
        else:
            self._whole = whole = self._open(providers)
            text = whole.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}")
            side = whole.get_inputs()[0].shape[1]  # a name where it takes views of any
            outputs = [o.name for o in whole.get_outputs()]
        try:
            data = json.loads(text)
            version = data.get("instance_format")
            if version == INSTANCE_FORMAT:
                self.view_px = int(data["view_px"])
                self.outline_px = int(data.get("outline_px", self.view_px))  # there was one side only
                self.min_area = int(data["min_area"]) if "min_area" in data else None
                if self.min_area is not None:
                    check_min_area(self.min_area)
                self.lone_odds = _checked_odds(data["lone_odds"]) if "lone_odds" in data else None
                self.stride = int(data["stride"])
                self.affinity_offsets = np.asarray(data["affinity_offsets"], np.int32)
                self.rules = {name: np.asarray(values, np.float32) for name, values in data["rules"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            raise ModelError(
                f"{self.path}: its tfiseg metadata is damaged ({wrong!r}): export it again"
            ) from wrong
        if version != INSTANCE_FORMAT:
            raise ModelError(
                f"{self.path} is no instance network for this version: its format is {version}, wanted {INSTANCE_FORMAT}; "
                "`tfiseg train instance` makes one"
            )
        if side not in (self.view_px, ANY_SIDE):
            raise ModelError(
                f"{self.path}: its metadata speaks of views of {self.view_px} px, its network takes {side}: export it again"
            )

        self.draws_outlines = _FOREGROUND in outputs
        if (
            self.engine is None
        ):  # ONNX Runtime computes all outputs of a session, so each use has one of its own
            self._sessions[_BOTH if self.draws_outlines else _OUTPUTS] = whole

    def infer(
        self, views: NDArray[np.uint8], masks: NDArray[np.uint8], foreground: bool = False
    ) -> InstanceMaps:
        """Maps of views uint8 (K, S, S, 3) BGR and masks uint8 (K, S, S) 0/1, S = ``view_px``;
        ``foreground``: that in the same pass."""
        if not len(views):
            cells = self.view_px // self.stride
            channels = ((2, cells), (len(self.affinity_offsets), cells), (1, 2 * cells))
            return InstanceMaps(*(np.zeros((0, c, side, side), np.float32) for c, side in channels))
        if not foreground:
            return InstanceMaps(*self._run(_OUTPUTS, views, masks))
        self.check_outlines()
        displacement, affinity, boundary, drawn = self._run(_BOTH, views, masks)
        return InstanceMaps(displacement, affinity, boundary, drawn[:, 0])

    def foreground(self, views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How likely the pixels of K > 0 views belong to what their masks show roughly, float32 (K, S / 2, S
        / 2) in [0, 1], S = ``outline_px``."""
        self.check_outlines()
        return self._run((_FOREGROUND,), views, masks)[0][:, 0]

    def check_outlines(self) -> None:
        """Raises ModelError where the network draws none."""
        if not self.draws_outlines:
            raise ModelError(f"{self.path} draws no outlines: `tfiseg train instance` makes one that does")

    def prepare(self, maps: bool, outlines: bool, maps_alone: bool = False) -> None:
        """Open what is needed to cut, ``maps``, to draw ``outlines``, or for both, and to cut without drawing
        as well, ``maps_alone``, so that the first frame needn't wait for it. Raises ModelError as
        ``check_outlines``."""
        if outlines:
            self.check_outlines()
        if self.engine is not None:
            return
        if outlines:
            self._session_for((_FOREGROUND,))
        if maps:
            self._session_for(_BOTH if outlines else _OUTPUTS)
        if maps_alone:
            self._session_for(_OUTPUTS)

    def set_up(self) -> None:
        """Called when it has run on the GPU for the first time."""
        if self.engine is not None:
            self.engine.set_up()

    def close(self) -> None:
        """Free the memory that an engine works in."""
        if self.engine is not None:
            self.engine.close()

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return self.engine is not None or self.providers[0] == CUDA_PROVIDER

    def device_context(self, stream: Any, outlines: bool) -> tuple[Context, dict[str, np.dtype[Any]]]:
        """What runs the network on the GPU, on this stream, for ``outlines`` as well, and the types of its
        outputs by name; raises ModelError where it runs on the CPU."""
        if self.engine is not None:
            return self.engine.context(), self.engine.types
        if not self.on_gpu:
            raise ModelError(f"{self.path} runs on the CPU")
        part = with_outputs(self.path.read_bytes(), _BOTH if outlines else _OUTPUTS)
        context = BoundContext(self._open(self.providers, on_stream(self.providers, stream), part))
        return context, context.types

    def _session_for(self, outputs: tuple[str, ...]) -> Any:
        with self._opening:
            if outputs not in self._sessions:
                part = with_outputs(self.path.read_bytes(), outputs)
                self._sessions[outputs] = (
                    self._whole if part is None else self._open(self.providers, model=part)
                )
            return self._sessions[outputs]

    def _run(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        """A few views at a time: ONNX Runtime keeps the memory of the largest batch that it ever saw."""
        batch = _BATCH if self.engine is None else min(_BATCH, self.engine.most)
        parts = [slice(k, k + batch) for k in range(0, len(views), batch)]
        if self.engine is not None:
            found = [self.engine.run(outputs, views[part], masks[part]) for part in parts]
        else:
            session = self._session_for(outputs)
            found = [session.run(outputs, {"views": views[part], "masks": masks[part]}) for part in parts]
        return found[0] if len(found) == 1 else [np.concatenate(maps) for maps in zip(*found, strict=True)]
