"""Evaluation sets as COCO annotations: a JSON file of polygons or RLE masks, and a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, InputError, MissingDependencyError
from ...images import MAX_SIDE_PX, read_image
from ...plugins.settings import IGNORE
from ...schema import either, integer, list_of, number, one_of, read_file, record, text
from .evaluation_set import EvalPicture

_MAX_BYTES = 1 << 29
_MAX_CLASSES = IGNORE - 1
_ID = integer(0, 1 << 53)
_SIDE = integer(1, MAX_SIDE_PX)
_POLYGONS = list_of(list_of(number(-MAX_SIDE_PX, 2 * MAX_SIDE_PX), 6), 1)
_COUNTS = either("the runs of an RLE mask", text(1 << 24), list_of(integer(0, MAX_SIDE_PX**2)))
_RLE = record({"size": list_of(_SIDE, 2, 2), "counts": _COUNTS})
_FORMAT = record(
    {
        "images": list_of(record({"id": _ID, "file_name": text(1000), "height": _SIDE, "width": _SIDE})),
        "annotations": list_of(
            record(
                {
                    "image_id": _ID,
                    "category_id": _ID,
                    "segmentation": either("polygons or an RLE mask (a box is not enough)", _POLYGONS, _RLE),
                },
                {"iscrowd": one_of(0, 1)},
            )
        ),
        "categories": list_of(record({"id": _ID, "name": text(200)}), 1, _MAX_CLASSES),
    }
)


def load_coco_set(folder: Path, annotations: Path) -> tuple[CocoPictures, dict[int, str]]:
    """Return the pictures of a COCO file, read on access, and class ID -> name.

    Categories get the class IDs 1, 2, ... in the order of their IDs.

    Args:
        folder: the images, at their ``file_name`` in the COCO file or directly in the folder.

    Raises:
        InputError: the file is damaged, or an image is missing.
    """
    try:
        content = read_file(annotations, _FORMAT, _MAX_BYTES)
    except FormatError as error:
        raise InputError(f"{annotations} is no COCO file of instances: {error}") from error
    if not content["images"]:
        raise InputError(f"{annotations} lists no image")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_ids = {category["id"]: k for k, category in enumerate(categories, 1)}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for k, annotation in enumerate(content["annotations"]):
        for name, known in (("image_id", objects), ("category_id", class_ids)):
            if annotation[name] not in known:
                raise InputError(f"{annotations}: annotations[{k}].{name} {annotation[name]} does not exist")
        objects[annotation["image_id"]].append(annotation)
    paths = [_find(folder, image["file_name"]) for image in content["images"]]
    if missing := [i["file_name"] for i, path in zip(content["images"], paths, strict=True) if path is None]:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(paths)} images in {annotations}, e.g. {missing[0]}"
        )
    found = [path for path in paths if path is not None]
    pictures = CocoPictures(found, content["images"], objects, class_ids)
    return pictures, {class_ids[category["id"]]: category["name"] for category in categories}


def _find(folder: Path, file_name: str) -> Path | None:
    """Return the path of an image; other programs write its path on another machine."""
    candidates = (folder / file_name, folder / Path(file_name.replace("\\", "/")).name)
    return next((path for path in candidates if path.is_file()), None)


class CocoPictures(Sequence[EvalPicture]):
    """The pictures of a COCO file, read and drawn on access.

    Objects of ``iscrowd`` are ignored. Where objects overlap, the smaller one is in front.
    """

    def __init__(
        self,
        paths: list[Path],
        images: list[dict[str, Any]],
        objects: dict[int, list[dict[str, Any]]],
        class_ids: dict[int, int],
    ) -> None:
        try:
            from pycocotools import mask
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                'COCO annotations need pycocotools: pip install ".[eval]" in the repository'
            ) from error
        self.paths = paths
        self._masks, self._images, self._objects, self._class_ids = mask, images, objects, class_ids

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path, stated = self.paths[index], self._images[index]
        image, size_hw = read_image(path), (stated["height"], stated["width"])
        if image.shape[:2] != size_hw:
            is_turned = image.shape[1::-1] == size_hw
            raise InputError(
                f"{path}: the image has {image.shape[0]}x{image.shape[1]} pixels (height x width), its "
                f"annotations say {size_hw[0]}x{size_hw[1]}"
                + (": its EXIF rotation was ignored when it was annotated" if is_turned else "")
            )
        truth, semantic = np.zeros(size_hw, np.int32), np.zeros(size_hw, np.uint8)
        objects = self._objects[stated["id"]]
        masks = [self._mask(annotation, size_hw, path) for annotation in objects]
        # crowds first, so that objects are in front of them; then from large to small
        order = sorted(range(len(masks)), key=lambda k: (not objects[k].get("iscrowd"), -masks[k].sum()))
        for number_in_image, k in enumerate(order, 1):
            is_crowd = objects[k].get("iscrowd")
            truth[masks[k]] = 0 if is_crowd else number_in_image
            semantic[masks[k]] = IGNORE if is_crowd else self._class_ids[objects[k]["category_id"]]
        return EvalPicture(path.stem, image, truth, semantic)

    def _mask(self, annotation: dict[str, Any], size_hw: tuple[int, int], path: Path) -> NDArray[np.bool_]:
        shape = annotation["segmentation"]
        try:
            if isinstance(shape, list):
                shape = self._masks.merge(self._masks.frPyObjects(shape, *size_hw))
            elif isinstance(shape["counts"], list):
                if sum(shape["counts"]) != shape["size"][0] * shape["size"][1]:
                    raise ValueError("its runs do not add up to its size")
                shape = self._masks.frPyObjects(shape, *size_hw)
            mask = self._masks.decode(shape).astype(bool)
        except ValueError as error:
            raise InputError(f"{path}: a mask of its annotations is damaged ({error})") from error
        if mask.shape != size_hw:
            raise InputError(f"{path}: a mask of its annotations has size {mask.shape}, expected {size_hw}")
        return mask
