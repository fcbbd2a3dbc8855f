"""Training crops for a semantic network: class-balanced, centred on objects, with objects of rare classes
pasted in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ...errors import InputError
from ...images import read_image, read_map

IGNORE = 255
_LONG_SIDE_PX = 400  # scale 1 of the jitter below; the network is run at 384
_SCALE_RANGE = (0.5, 1.8)
_SMALL_SCALE_RANGE = (
    0.22,
    0.7,
)  # of the four views that share a crop: a person of 300 px is seen as one of 60
_MIN_PRESENT = 0.01  # share of the picture that a class covers before crops are centred on it
_PASTE_AREA_PX = (600, 60_000)
_PASTE_CONFIDENCE = 0.75
_CENTRED = 0.75  # share of crops centred on a class drawn uniformly; the others show any place of any picture
_PASTED = 0.4  # share of crops that get a pasted object
# share of crops made of four small views side by side: networks find small things only if they learn from
# some
_FOUR_VIEWS = 0.25


@dataclass(frozen=True)
class Picture:
    """One training picture: ``image`` uint8 (H, W, 3) BGR, ``semantic`` uint8 (H, W), ``confidence`` uint8
    (h, w), 0..255."""

    name: str
    image: NDArray[np.uint8]
    semantic: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


def sure_of(picture: Picture) -> NDArray[np.uint8]:
    """The picture's confidence at its own size, uint8 (H, W)."""
    return np.asarray(
        cv2.resize(picture.confidence, picture.semantic.shape[::-1], interpolation=cv2.INTER_LINEAR), np.uint8
    )


@dataclass(frozen=True)
class _Cutout:
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    class_id: int


def load_pictures(
    images: Path, semantic: Path, confidence: Path | None = None, more: Sequence[Path] = ()
) -> list[Picture]:
    """Load the pictures that have a class map of the same name, sorted by name.

    Args:
        images: pictures, NAME.jpg or NAME.png.
        semantic: class maps, NAME.png, uint8, 255 = ignore.
        confidence: NAME.png, 0..255, any size; default: all class maps are certain.
        more: further folders, each with ``images``, ``semantic`` and, optionally, ``confidence`` in it.

    Raises:
        InputError: a folder is missing, a class map does not fit its picture, or nothing is found.
    """
    pictures = _load_folder(images, semantic, confidence)
    for folder in more:
        sure = folder / "confidence"
        found = _load_folder(folder / "images", folder / "semantic", sure if sure.is_dir() else None)
        pictures += [replace(picture, name=f"{folder.name}/{picture.name}") for picture in found]
    return pictures


def _load_folder(images: Path, semantic: Path, confidence: Path | None) -> list[Picture]:
    pictures = []
    for folder in (images, semantic, *([confidence] if confidence is not None else [])):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
    for path in sorted(images.iterdir()):
        maps = [folder / f"{path.stem}.png" for folder in (semantic, confidence) if folder is not None]
        if not all(m.exists() for m in maps):
            continue
        image, class_map = read_image(path), read_map(maps[0])
        if class_map.shape != image.shape[:2] or class_map.dtype != np.uint8:
            raise InputError(
                f"{path}: its class map {maps[0]} must be one 8-bit channel of the picture's size "
                f"{image.shape[:2]}, got {class_map.dtype} {class_map.shape}"
            )
        sure = read_image(maps[1])[..., 0] if len(maps) > 1 else np.full((1, 1), 255, np.uint8)
        pictures.append(Picture(path.stem, *(np.asarray(a, np.uint8) for a in (image, class_map, sure))))
    if not pictures:
        raise InputError(f"no picture in {images} has a class map of its name (NAME.png) in {semantic}")
    return pictures


class CropSampler:
    """Draws training crops, deterministic by seed.

    ``draw()`` returns image uint8 (S, S, 3) BGR, class map uint8 (S, S) with 255 = ignore, and weight float32
    (S, S) in [0, 1].
    """

    def __init__(self, pictures: list[Picture], classes: int, crop_px: int, seed: int) -> None:
        self.pictures = pictures
        self.crop_px = crop_px
        self.rng = np.random.default_rng(seed)
        counts = np.stack(
            [np.bincount(p.semantic.ravel(), minlength=256)[:classes] / p.semantic.size for p in pictures]
        )
        self.showing = {c: np.flatnonzero(counts[:, c] >= _MIN_PRESENT) for c in range(1, classes)}
        self.showing = {c: indices for c, indices in self.showing.items() if len(indices)}
        if not self.showing:
            raise InputError("no class map shows any class but 0 (background) on at least 1 % of its picture")
        # between uniform over classes and as often as they come: the exponent damps repeats of the very few
        often = np.array([len(i) for i in self.showing.values()], float) ** 0.3
        self.class_odds = often / often.sum()
        self.class_ids = np.array(list(self.showing))
        self.cutouts = self._cut_out()

    def _cut_out(self) -> dict[int, list[_Cutout]]:
        found: dict[int, list[_Cutout]] = {}
        for picture in self.pictures:
            sure = sure_of(picture)
            for class_id in np.unique(picture.semantic):
                if class_id in (0, IGNORE) or int(class_id) not in self.showing:
                    continue
                region = (picture.semantic == class_id).astype(np.uint8)
                n, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
                for i in range(1, n):
                    x, y, w, h, area = stats[i]
                    if not _PASTE_AREA_PX[0] <= area <= _PASTE_AREA_PX[1]:
                        continue
                    mask = (labels[y : y + h, x : x + w] == i).astype(np.uint8)
                    if sure[y : y + h, x : x + w][mask > 0].mean() < 255 * _PASTE_CONFIDENCE:
                        continue
                    cutout = _Cutout(picture.image[y : y + h, x : x + w], mask, int(class_id))
                    found.setdefault(int(class_id), []).append(cutout)
        return found

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        size = self.crop_px
        if self.rng.random() >= _FOUR_VIEWS:
            return self._draw_view(size, _SCALE_RANGE)
        half = size // 2
        crop = (
            np.empty((size, size, 3), np.uint8),
            np.empty((size, size), np.uint8),
            np.empty((size, size), np.float32),
        )
        for y in (0, half):
            for x in (0, half):
                view = self._draw_view(half, _SMALL_SCALE_RANGE)
                pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]] = zip(crop, view, strict=True)
                for whole, part in pairs:
                    whole[y : y + half, x : x + half] = part
        return crop

    def _draw_view(
        self, size: int, scale_range: tuple[float, float]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        rng = self.rng
        centred = rng.random() < _CENTRED
        class_id = int(rng.choice(self.class_ids, p=self.class_odds))
        index = int(rng.choice(self.showing[class_id])) if centred else int(rng.integers(len(self.pictures)))
        picture = self.pictures[index]
        image, class_map, weight = self._crop(picture, class_id if centred else None, size, scale_range)
        if self.cutouts and rng.random() < _PASTED:
            self._paste(image, class_map, weight)
        if rng.random() < 0.5:
            image, class_map, weight = image[:, ::-1], class_map[:, ::-1], weight[:, ::-1]
        return _jitter_colour(image, rng), np.ascontiguousarray(class_map), np.ascontiguousarray(weight)

    def _crop(
        self, picture: Picture, class_id: int | None, size: int, scale_range: tuple[float, float]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        rng = self.rng
        h, w = picture.semantic.shape
        zoom = _LONG_SIDE_PX / max(h, w) * np.exp(rng.uniform(*np.log(scale_range)))
        zoom_y, zoom_x = zoom * np.exp(rng.uniform(-0.12, 0.12, 2))
        if class_id is None:
            y, x = rng.uniform(0, h), rng.uniform(0, w)
        else:
            ys, xs = np.nonzero(picture.semantic == class_id)
            k = rng.integers(len(ys))
            y, x = float(ys[k]), float(xs[k])
        to_crop = np.array(
            [
                [zoom_x, 0, size / 2 - zoom_x * x + rng.uniform(-0.3, 0.3) * size],
                [0, zoom_y, size / 2 - zoom_y * y + rng.uniform(-0.3, 0.3) * size],
            ]
        )
        for axis, (side, scale) in enumerate(((w, zoom_x), (h, zoom_y))):  # show as much picture as there is
            low, high = sorted((0.0, size - scale * side))
            to_crop[axis, 2] = np.clip(to_crop[axis, 2], low, high)
        if zoom < 0.7:  # shrink by area first, as cameras and cv2.INTER_AREA do
            small = cv2.resize(
                picture.image,
                (max(1, round(w * zoom_x)), max(1, round(h * zoom_y))),
                interpolation=cv2.INTER_AREA,
            )
            shift = np.array([[1, 0, to_crop[0, 2]], [0, 1, to_crop[1, 2]]])
            image = cv2.warpAffine(
                small, shift, (size, size), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127)
            )
        else:
            image = cv2.warpAffine(
                picture.image, to_crop, (size, size), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127)
            )
        class_map = cv2.warpAffine(
            picture.semantic, to_crop, (size, size), flags=cv2.INTER_NEAREST, borderValue=IGNORE
        )
        ch, cw = picture.confidence.shape
        from_confidence = to_crop @ np.array([[w / cw, 0, 0], [0, h / ch, 0], [0, 0, 1]])
        sure = cv2.warpAffine(picture.confidence, from_confidence, (size, size), flags=cv2.INTER_LINEAR)
        return (
            np.asarray(image, np.uint8),
            np.asarray(class_map, np.uint8),
            np.asarray(sure, np.float32) / np.float32(255),
        )

    def _paste(
        self, image: NDArray[np.uint8], class_map: NDArray[np.uint8], weight: NDArray[np.float32]
    ) -> None:
        rng, size = self.rng, image.shape[0]
        class_id = int(rng.choice(list(self.cutouts)))
        cutout = self.cutouts[class_id][rng.integers(len(self.cutouts[class_id]))]
        target = size * np.exp(rng.uniform(np.log(0.15), np.log(0.6)))
        zoom = min(target / max(cutout.mask.shape), 2.0)
        w, h = (max(4, round(s * zoom)) for s in cutout.mask.shape[::-1])
        patch = cv2.resize(
            cutout.image, (w, h), interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        )
        alpha = cv2.resize(cutout.mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            patch, alpha = patch[:, ::-1], alpha[:, ::-1]
        y, x = int(rng.integers(-h // 4, size - 3 * h // 4)), int(rng.integers(-w // 4, size - 3 * w // 4))
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + h, size), min(x + w, size)
        if y1 <= y0 or x1 <= x0:
            return
        patch, alpha = patch[y0 - y : y1 - y, x0 - x : x1 - x], alpha[y0 - y : y1 - y, x0 - x : x1 - x]
        alpha = cv2.GaussianBlur(alpha, (3, 3), 0)
        spot = image[y0:y1, x0:x1]
        spot[:] = (spot + alpha[..., None] * (patch.astype(np.float32) - spot)).astype(np.uint8)
        inside = alpha > 0.5
        class_map[y0:y1, x0:x1][inside] = class_id
        weight[y0:y1, x0:x1][inside] = 1.0


def _jitter_colour(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    x = image.astype(np.float32)
    x = (x - 127) * rng.uniform(0.7, 1.3) + 127 + rng.uniform(-25, 25)
    grey = x.mean(2, keepdims=True)
    x = grey + (x - grey) * rng.uniform(0.5, 1.4)
    x *= rng.uniform(0.93, 1.07, 3).astype(np.float32)
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.random() < 0.2:
        x = x + rng.normal(0, rng.uniform(2, 8), x.shape).astype(np.float32)
    return np.clip(x, 0, 255).astype(np.uint8)


class CropStream(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """An endless stream of crops for a DataLoader: each worker draws from its own seed."""

    def __init__(self, sampler: CropSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = get_worker_info()
        self.sampler.rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            image, class_map, weight = self.sampler.draw()
            yield torch.from_numpy(image), torch.from_numpy(class_map), torch.from_numpy(weight)
