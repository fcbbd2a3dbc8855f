"""The interface of instance networks: views and class masks in, maps out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, ModelError
from ..gpu.execution_context import ALL_OUTPUTS, FOREGROUND, MAPS, Context
from .model_info import instance_metadata, metadata_version

INSTANCE_FORMAT = 2  # since 2, the join rule has features of other classes
ANY_SIDE = "side"
_BATCH = 8  # views; larger batches are not faster
DEFAULT_INSTANCE_MODEL = Path(__file__).parents[1] / "models" / "tfiseg-instance.onnx"


@dataclass(frozen=True)
class InstanceMaps:
    """Maps of K views of side S."""

    # (dy, dx) from each cell to the center of its object, in cells of 4 px, float32 (K, 2, S / 4, S / 4)
    displacement: NDArray[np.float32]
    affinity: NDArray[np.float32]  # float32 (K, A, S / 4, S / 4) in [0, 1]
    boundary: NDArray[np.float32]  # float32 (K, 1, S / 2, S / 2) in [0, 1]
    # float32 (K, S / 2, S / 2), see ``InstanceSession.foreground``; None if not requested
    foreground: NDArray[np.float32] | None = None


def is_for_groups(lone_odds: float | None) -> bool:
    """Return whether groups outnumber single objects; see ``InstanceInfo.lone_odds``."""
    return lone_odds is not None and lone_odds < 1


@dataclass(frozen=True)
class InstanceInfo:
    """Metadata of an instance network."""

    view_px: int  # side of the views in pixels
    outline_px: int  # side of views that are rendered for mask refinement only, in pixels
    stride: int  # of displacement and affinity, in pixels
    affinity_offsets: NDArray[np.int32]  # (dy, dx) in cells, int32 (A, 2)
    rules: dict[str, NDArray[np.float32]]  # learned rules by name ("merge", "part", "join"), float32
    min_area: int | None = None  # area in pixels of the smallest objects to find; None if unknown
    # number of single objects for each group, among splittable components of the class maps that the network
    # was trained for; None if unknown
    lone_odds: float | None = None

    @staticmethod
    def from_json(text: str, path: Path) -> InstanceInfo:
        """Parse metadata. Raises ModelError if it is damaged or of another format."""
        try:
            version = metadata_version(text, "instance_format")
            data = instance_metadata(text) if version == INSTANCE_FORMAT else None
        except FormatError as wrong:
            raise ModelError(f"{path}: its tfiseg metadata is damaged ({wrong}): export it again") from wrong
        if version is None:
            raise ModelError(
                f"{path} is no instance network: leave `instance_model` (--instance-model) out to use the "
                "one that comes with tfiseg, or make one with `tfiseg train instance`"
            )
        if data is None:
            raise ModelError(
                f"{path} is no instance network for this version: its format is {version}, expected "
                f"{INSTANCE_FORMAT}. `tfiseg train instance` makes one."
            )
        return InstanceInfo(
            view_px=data["view_px"],
            outline_px=data.get("outline_px", data["view_px"]),  # older models have one side
            stride=data["stride"],
            affinity_offsets=np.asarray(data["affinity_offsets"], np.int32),
            rules={name: np.asarray(values, np.float32) for name, values in data["rules"].items()},
            min_area=data.get("min_area"),
            lone_odds=data.get("lone_odds"),
        )


class InstanceSession:
    """Base class of sessions of instance networks; ``open_instance_session`` opens one.

    The attributes of ``InstanceInfo`` are attributes of the session.

    Args:
        side: side of the network's input in pixels; ``ANY_SIDE`` if it has no fixed size.
        max_batch: maximum number of views per call; None: any number.

    Raises:
        ModelError: metadata and network contradict each other.
    """

    def __init__(
        self,
        path: Path,
        info: InstanceInfo,
        side: int | str,
        outputs: Sequence[str],
        max_batch: int | None = None,
    ) -> None:
        self.path, self.max_batch = path, max_batch
        self.view_px, self.outline_px, self.stride = info.view_px, info.outline_px, info.stride
        self.affinity_offsets, self.rules = info.affinity_offsets, info.rules
        self.min_area, self.lone_odds = info.min_area, info.lone_odds
        if side not in (self.view_px, ANY_SIDE):
            raise ModelError(
                f"{path}: its metadata has views of {self.view_px} px, but the network takes {side}: export "
                "it again"
            )
        self.can_refine_masks = FOREGROUND in outputs

    @property
    def on_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        raise NotImplementedError

    def device_context(
        self, stream: Any, outputs: tuple[str, ...]
    ) -> tuple[Context, dict[str, np.dtype[Any]]]:
        """Make an execution context on a stream; return it with the dtypes of its outputs by name.

        Args:
            outputs: needed ones; there may be others.

        Raises:
            ModelError: the network runs on the CPU.
        """
        raise NotImplementedError

    def _run_batch(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        """Return outputs of a few views; subclasses implement it."""
        raise NotImplementedError

    def prepare(self, maps: bool, outlines: bool, maps_alone: bool = False) -> None:
        """Open the sessions that frames will need, so that the first one need not wait.

        Args:
            maps_alone: components are also split in views without foreground maps.

        Raises:
            ModelError: see ``check_mask_refinement``.
        """
        if outlines:
            self.check_mask_refinement()

    def set_up(self) -> None:
        """Save what the runtime compiled; called after the first run on the GPU."""

    def close(self) -> None:
        """Free the memory of calls."""

    def infer(
        self, views: NDArray[np.uint8], masks: NDArray[np.uint8], foreground: bool = False
    ) -> InstanceMaps:
        """Return the maps of K views of side S = ``view_px``.

        Args:
            views: uint8 (K, S, S, 3) BGR.
            masks: pixels of the view's class, uint8 (K, S, S), 0 or 1.
            foreground: also predict the foreground, in the same pass.
        """
        if not len(views):
            shapes = (self.map_shape(name, 0, self.view_px) for name in MAPS)
            return InstanceMaps(*(np.zeros(shape, np.float32) for shape in shapes))
        if not foreground:
            return InstanceMaps(*self._run(MAPS, views, masks))
        self.check_mask_refinement()
        displacement, affinity, boundary, predicted = self._run(ALL_OUTPUTS, views, masks)
        return InstanceMaps(displacement, affinity, boundary, predicted[:, 0])

    def map_shape(self, name: str, count: int, view_px: int) -> tuple[int, int, int, int]:
        """Return the shape (K, C, h, w) of an output for ``count`` views of side ``view_px``."""
        cells = view_px // self.stride
        sizes = {"displacement": (2, cells), "affinity": (len(self.affinity_offsets), cells)}
        channels, side = sizes.get(name, (1, 2 * cells))
        return count, channels, side, side

    def foreground(self, views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probability that pixels belong to the object that the mask marks.

        Args:
            views: uint8 (K, S, S, 3) BGR, K > 0, S = ``outline_px``.
            masks: uint8 (K, S, S), 0 or 1.

        Returns:
            float32 (K, S / 2, S / 2) in [0, 1].
        """
        self.check_mask_refinement()
        return self._run((FOREGROUND,), views, masks)[0][:, 0]

    def check_mask_refinement(self) -> None:
        """Raise ModelError if the network has no output ``foreground``."""
        if not self.can_refine_masks:
            raise ModelError(
                f"{self.path} cannot refine masks: `tfiseg train instance` makes a network that can"
            )

    def _run(
        self, outputs: tuple[str, ...], views: NDArray[np.uint8], masks: NDArray[np.uint8]
    ) -> list[NDArray[np.float32]]:
        """Run small batches: ONNX Runtime keeps the memory of the largest one."""
        batch = min(_BATCH, self.max_batch or _BATCH)
        parts = [slice(k, k + batch) for k in range(0, len(views), batch)]
        found = [self._run_batch(outputs, views[part], masks[part]) for part in parts]
        return found[0] if len(found) == 1 else [np.concatenate(maps) for maps in zip(*found, strict=True)]
