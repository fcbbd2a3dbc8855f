"""The instance network, whatever runs it: views and class masks in; displacement, affinities, boundary and
foreground out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, ModelError
from ..gpu.execution_context import Context
from .model_info import instance_metadata, metadata_version

INSTANCE_FORMAT = 2  # 2: the join rule sees other classes
MAPS, FOREGROUND = ("displacement", "affinity", "boundary"), "foreground"
ALL_OUTPUTS = (*MAPS, FOREGROUND)
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


@dataclass(frozen=True)
class InstanceInfo:
    """What an instance network's metadata says.

    Args:
        view_px: side of the views that it takes. outline_px: of those in which it draws outlines and nothing
            else.
        stride: of displacement and affinities, pixels.
        affinity_offsets: int32 (A, 2), (dy, dx) in cells.
        rules: learned rules by name ("merge", "part", "join"), float32.
        min_area: pixels of the smallest objects that it is for; None: not said.
        lone_odds: of components that could be parted, how many are one object for each that is several; None:
            not said.
    """

    view_px: int
    outline_px: int
    stride: int
    affinity_offsets: NDArray[np.int32]
    rules: dict[str, NDArray[np.float32]]
    min_area: int | None = None
    lone_odds: float | None = None

    @staticmethod
    def from_json(text: str, path: Path) -> InstanceInfo:
        """Read metadata; raises ModelError where it is damaged, or of another format."""
        try:
            version = metadata_version(text, "instance_format")
            if version == INSTANCE_FORMAT:
                return _info_of(instance_metadata(text))
        except FormatError as wrong:
            raise ModelError(f"{path}: its tfiseg metadata is damaged ({wrong}): export it again") from wrong
        raise ModelError(
            f"{path} is no instance network for this version: its format is {version}, wanted "
            f"{INSTANCE_FORMAT}; "
            "`tfiseg train instance` makes one"
        )


def _info_of(data: dict[str, Any]) -> InstanceInfo:
    return InstanceInfo(
        view_px=data["view_px"],
        outline_px=data.get("outline_px", data["view_px"]),  # there was one side only
        stride=data["stride"],
        affinity_offsets=np.asarray(data["affinity_offsets"], np.int32),
        rules={name: np.asarray(values, np.float32) for name, values in data["rules"].items()},
        min_area=data.get("min_area"),
        lone_odds=data.get("lone_odds"),
    )


class InstanceSession:
    """An instance network in a file; ``open_instance_session`` opens one. ``view_px``, ``outline_px``,
    ``stride``, ``affinity_offsets``, ``rules``, ``min_area`` and ``lone_odds`` are those of its
    ``InstanceInfo``.

    Args:
        path: the file, for messages.
        info: what it says of itself.
        side: of the views that the network takes, pixels; a name where it takes views of any.
        outputs: names of its outputs.
        most_views: that it takes at once; None: any number.

    Raises:
        ModelError: metadata and network contradict each other.
    """

    def __init__(
        self,
        path: Path,
        info: InstanceInfo,
        side: int | str,
        outputs: Sequence[str],
        most_views: int | None = None,
    ) -> None:
        self.path, self.most_views = path, most_views
        self.view_px, self.outline_px, self.stride = info.view_px, info.outline_px, info.stride
        self.affinity_offsets, self.rules = info.affinity_offsets, info.rules
        self.min_area, self.lone_odds = info.min_area, info.lone_odds
        if side not in (self.view_px, ANY_SIDE):
            raise ModelError(
                f"{path}: its metadata speaks of views of {self.view_px} px, its network takes {side}: "
                "export it again"
            )
        self.draws_outlines = FOREGROUND in outputs

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        raise NotImplementedError

    def device_context(self, stream: Any, outlines: bool) -> tuple[Context, dict[str, np.dtype[Any]]]:
        """What runs the network on the GPU, on this stream, for ``outlines`` as well, and the types of its
        outputs by name; raises ModelError where it runs on the CPU."""
        raise NotImplementedError

    def _run_batch(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        """These outputs of a few views. Subclasses fill this."""
        raise NotImplementedError

    def prepare(self, maps: bool, outlines: bool, maps_alone: bool = False) -> None:
        """Open what is needed to cut, ``maps``, to draw ``outlines``, or for both, and to cut without drawing
        as well, ``maps_alone``, so that the first frame needn't wait for it. Raises ModelError as
        ``check_outlines``."""
        if outlines:
            self.check_outlines()

    def set_up(self) -> None:
        """Called when it has run on the GPU for the first time."""

    def close(self) -> None:
        """Free the memory that it works in."""

    def infer(
        self, views: NDArray[np.uint8], masks: NDArray[np.uint8], foreground: bool = False
    ) -> InstanceMaps:
        """Maps of views uint8 (K, S, S, 3) BGR and masks uint8 (K, S, S) 0/1, S = ``view_px``;
        ``foreground``: that in the same pass."""
        if not len(views):
            shapes = (self.map_shape(name, 0, self.view_px) for name in MAPS)
            return InstanceMaps(*(np.zeros(shape, np.float32) for shape in shapes))
        if not foreground:
            return InstanceMaps(*self._run(MAPS, views, masks))
        self.check_outlines()
        displacement, affinity, boundary, drawn = self._run(ALL_OUTPUTS, views, masks)
        return InstanceMaps(displacement, affinity, boundary, drawn[:, 0])

    def map_shape(self, name: str, count: int, view_px: int) -> tuple[int, int, int, int]:
        """Shape (K, C, h, w) of an output for so many views of this side."""
        cells = view_px // self.stride
        channels, side = {
            "displacement": (2, cells),
            "affinity": (len(self.affinity_offsets), cells),
        }.get(name, (1, 2 * cells))
        return count, channels, side, side

    def foreground(self, views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How likely the pixels of K > 0 views belong to what their masks show roughly, float32 (K, S / 2, S
        / 2) in [0, 1], S = ``outline_px``."""
        self.check_outlines()
        return self._run((FOREGROUND,), views, masks)[0][:, 0]

    def check_outlines(self) -> None:
        """Raises ModelError where the network draws none."""
        if not self.draws_outlines:
            raise ModelError(f"{self.path} draws no outlines: `tfiseg train instance` makes one that does")

    def _run(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        """A few views at a time: ONNX Runtime keeps the memory of the largest batch that it ever saw."""
        batch = min(_BATCH, self.most_views or _BATCH)
        parts = [slice(k, k + batch) for k in range(0, len(views), batch)]
        found = [self._run_batch(outputs, views[part], masks[part]) for part in parts]
        return found[0] if len(found) == 1 else [np.concatenate(maps) for maps in zip(*found, strict=True)]
