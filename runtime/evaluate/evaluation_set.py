"""Evaluation sets: folders of pictures with true instances.

Format: ``images/ID.jpg|png``, ``instances/ID.png`` (uint16, 0 = none), ``semantic/ID.png`` (uint8 class IDs,
0 = background, 255 = ignore), ``classes.json`` ({"1": "person"}).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, InputError
from ...images import image_paths, read_image, read_map
from ...plugins.settings import IGNORE
from ...schema import map_of, read_file, text

_MAPS = ("instances", "semantic")
_CLASSES = map_of(text(200), text(3, "[0-9]{1,2}|1[0-9][0-9]|2[0-4][0-9]|25[0-5]"), 256)


@dataclass(frozen=True)
class EvalPicture:
    """A picture of an evaluation set."""

    name: str  # file name without suffix
    image: NDArray[np.uint8]  # uint8 (H, W, 3) BGR
    truth: NDArray[np.int32]  # true label map, int32 (H, W), 0 = none
    semantic: NDArray[np.uint8]  # true class map, uint8 (H, W), 255 = ignore


def load_eval_set(folder: Path) -> tuple[EvalPictures, dict[int, str]]:
    """Return an evaluation set's pictures, read on access, and class ID -> name; raises InputError."""
    for required in ("images", "instances", "semantic", "classes.json"):
        if not (folder / required).exists():
            raise InputError(
                f"{folder} has no {required}: an evaluation set contains images/, instances/, semantic/ and "
                "classes.json"
            )
    try:
        classes = read_file(folder / "classes.json", _CLASSES)
    except FormatError as error:
        raise InputError(f"{folder / 'classes.json'} is damaged ({error}): expected {{id: name}}") from error
    names = {int(k): name for k, name in classes.items()}
    paths = image_paths(folder / "images")
    if not paths:
        raise InputError(f"{folder}/images contains no image")
    for kind in _MAPS:
        missing = [path.stem for path in paths if not (folder / kind / f"{path.stem}.png").is_file()]
        if missing:
            raise InputError(
                f"{folder / kind} lacks the maps of {len(missing)} of {len(paths)} images, e.g. "
                f"{missing[0]}.png"
            )
    return EvalPictures(folder, paths), names


class EvalPictures(Sequence[EvalPicture]):
    """The pictures of an evaluation set, read from disk on access."""

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder = folder
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path = self.paths[index]
        image = read_image(path)
        maps = [self.folder / kind / f"{path.stem}.png" for kind in _MAPS]
        truth, semantic = (read_map(map_path) for map_path in maps)
        for map_path, values in zip(maps, (truth, semantic), strict=True):
            if values.ndim != 2:
                raise InputError(
                    f"{map_path} is a color image of {values.shape[2]} channels: expected one channel of IDs"
                )
        if not image.shape[:2] == truth.shape == semantic.shape:
            raise InputError(
                f"{path}: sizes differ: image {image.shape[:2]}, instances {truth.shape}, semantic "
                f"{semantic.shape}"
            )
        return EvalPicture(path.stem, image, truth.astype(np.int32), np.asarray(semantic, np.uint8))


def keep_classes(picture: EvalPicture, ids: set[int]) -> EvalPicture:
    """Return the picture with objects of these classes only; others become background."""
    other = ~np.isin(picture.semantic, [*ids, IGNORE])
    semantic = np.where(other, 0, picture.semantic).astype(np.uint8)
    return replace(picture, truth=np.where(other, 0, picture.truth), semantic=semantic)
