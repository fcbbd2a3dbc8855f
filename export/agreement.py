"""Does an exported network still say what the original says? Label by label, on pictures, with preprocessing of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import ModelError
from ..runtime.sessions import OnnxSession
from .frame_graph import Preprocessing

MIN_AGREEMENT = 0.995
Original = Callable[[NDArray[Any]], NDArray[Any]]  # what the network wants to see -> what it says


@dataclass(frozen=True)
class Reading:
    """How an original's answer is read: ``channels_last``; ``binary``, one channel of which more than ``threshold`` is class 1;
    ``align_corners`` of the upsampling to the picture that it leaves to the reader."""

    channels_last: bool = False
    binary: bool = False
    threshold: float = 0.0
    align_corners: bool = False

    def labels(self, said: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[np.int64]:
        """Class of every pixel of the picture (h, w) that the network saw."""
        if np.issubdtype(said.dtype, np.integer):
            small = np.squeeze(said).astype(np.uint16)
            return cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int64)
        values = said[0].astype(np.float32)
        if values.ndim == 2:
            values = values[None]
        elif self.channels_last:
            values = values.transpose(2, 0, 1)
        large = upsampled(values, size_hw, self.align_corners)
        return (large[0] > self.threshold).astype(np.int64) if self.binary else large.argmax(0)


def upsampled(values: NDArray[np.float32], size_hw: tuple[int, int], align_corners: bool) -> NDArray[np.float32]:
    """Bilinear (C, h, w) -> (C, H, W), pixel centres at half or corners on corners."""
    if values.shape[1:] == size_hw:
        return values
    places = []
    for side, small in zip(size_hw, values.shape[1:], strict=True):
        if align_corners:
            places.append(np.arange(side) * (small - 1) / max(side - 1, 1))
        else:
            places.append((np.arange(side) + 0.5) * small / side - 0.5)
    xs, ys = np.meshgrid(places[1].astype(np.float32), places[0].astype(np.float32))
    return np.stack([cv2.remap(one, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for one in values])


def check_agreement(
    original: Original,
    reading: Reading,
    preprocessing: Preprocessing,
    exported: Path,
    frames: Sequence[NDArray[np.uint8]],
    names: Sequence[str],
    sheet: Path,
    quiet: bool = True,
) -> float:
    """Least share of pixels, over the frames, on which both name the same class.

    Args:
        original: the network as it was. reading: how its answer is read. preprocessing: what it wants to see.
        exported: the network in tfiseg's format.
        frames: uint8 (H, W, 3) BGR each.
        sheet: where a picture is drawn if they disagree.

    Raises:
        ModelError: under 99.5 %; names the worst frame, the classes that are mixed up, and the picture.
    """
    session = OnnxSession(exported)
    shares = []
    worst: tuple[float, str, NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]] | None = None
    for frame, name in tqdm(zip(frames, names, strict=True), total=len(frames), desc="checking", unit="frame", disable=quiet):
        seen = preprocessing.apply(frame)
        size_hw = seen.shape[1:3] if preprocessing.channels_last else seen.shape[2:]
        theirs = reading.labels(original(seen), (int(size_hw[0]), int(size_hw[1])))
        ours = upsampled(session.infer(frame)["logits"][0], theirs.shape, align_corners=False).argmax(0)  # type: ignore[arg-type]
        shares.append(float((theirs == ours).mean()))
        if worst is None or shares[-1] < worst[0]:
            worst = (shares[-1], name, frame, theirs, ours)
    assert worst is not None
    if worst[0] < MIN_AGREEMENT:
        raise ModelError(_disagreement(worst[1], worst[2], worst[3], worst[4], sheet))
    return worst[0]


def _disagreement(name: str, frame: NDArray[np.uint8], theirs: NDArray[np.int64], ours: NDArray[np.int64], sheet: Path) -> str:
    """The sentence, and the picture: the frame, the original's labels, ours, and the pixels that differ."""
    differs = theirs != ours
    view = cv2.resize(frame, theirs.shape[::-1])
    colours = np.random.default_rng(1).integers(40, 256, (65536, 3), dtype=np.uint8)
    colours[0] = 0
    red = view // 2
    red[differs] = (0, 0, 255)
    cv2.imwrite(str(sheet), np.hstack([view, colours[theirs], colours[ours], red]))
    pairs, counts = np.unique(np.stack([theirs[differs], ours[differs]]), axis=1, return_counts=True)
    most = pairs[:, counts.argmax()]
    rows, columns = np.nonzero(differs)
    return (
        f"the export agrees with the original on {1 - differs.mean():.2%} of the pixels of {name}, wanted {MIN_AGREEMENT:.1%}: mostly "
        f"class {most[0]} became {most[1]}, within rows {rows.min()} to {rows.max()}, columns {columns.min()} to {columns.max()} of "
        f"{theirs.shape[0]} x {theirs.shape[1]}; {sheet} shows where"
    )
