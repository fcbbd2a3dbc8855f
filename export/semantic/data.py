"""Training crops for a semantic network: balanced by class, centered on objects, with pasted objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
_LONG_SIDE_PX = 400  # long side of images at scale 1; the network runs at 384
_SCALE_RANGE = (0.5, 1.8)
_SMALL_SCALE_RANGE = (0.22, 0.7)  # of crops with four views
_MIN_PRESENT = 0.01  # minimum share of an image for crops to be centered on a class
_PASTE_AREA_PX = (600, 60_000)
_PASTE_CONFIDENCE = 0.75
_CENTERED = 0.6  # share of crops centered on a random class; the others are anywhere in any scene
_PASTED = 0.4  # share of crops with a pasted object
_FOUR_VIEWS = 0.25  # share of crops of four small views, from which the network learns small objects
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


@dataclass(frozen=True)
class Picture:
    """A training image with its class map."""

    name: str  # file name without extension
    image: NDArray[np.uint8]  # uint8 (H, W, 3) BGR
    semantic: NDArray[np.uint8]  # class map, uint8 (H, W), 255 = ignore
    confidence: NDArray[np.uint8]  # of the class map, uint8 (h, w), 0..255
    pseudo_labeled: bool = False  # a network predicted the class map
    # a teacher network's class probabilities, uint8 (g, k, C), 255 = certain, in a grid over the whole image;
    # ``None``: no teacher
    teacher: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Crop:
    """A training crop of S x S pixels."""

    image: NDArray[np.uint8]  # uint8 (S, S, 3) BGR
    class_map: NDArray[np.uint8]  # uint8 (S, S), 255 = ignore
    weight: NDArray[np.float32]  # confidence of the class map, float32 (S, S), 0..1
    teacher: NDArray[np.uint8]  # class probabilities, uint8 (S / 4, S / 4, C), 255 = certain
    teacher_weight: NDArray[np.float32]  # float32 (S / 4, S / 4), 0..1

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the attributes in their order."""
        return self.image, self.class_map, self.weight, self.teacher, self.teacher_weight


def full_confidence(picture: Picture) -> NDArray[np.uint8]:
    """Return the confidence at the image's size, uint8 (H, W)."""
    return np.asarray(
        cv2.resize(picture.confidence, picture.semantic.shape[::-1], interpolation=cv2.INTER_LINEAR), np.uint8
    )


@dataclass(frozen=True)
class _Cutout:
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    class_id: int


def load_pictures(
    images: Path,
    semantic: Path,
    confidence: Path | None = None,
    more: Sequence[Path] = (),
    classes: int | None = None,
) -> list[Picture]:
    """Load the images that have a class map of the same name, sorted by name.

    Args:
        images: folder of NAME.jpg or NAME.png.
        semantic: folder of class maps NAME.png, uint8, 255 = ignore.
        confidence: folder of NAME.png, uint8 of any size; default: all class maps are certain.
        more: further folders, each with ``images``, ``semantic`` and, optionally, ``confidence`` in it.
        classes: number of classes of the network; default: any class ID is accepted.

    Raises:
        InputError: a folder is missing, a class map does not fit its image or the network, or nothing is
            found.
    """
    pictures = _load_folder(images, semantic, confidence)
    for folder in more:
        maps = folder / "confidence"
        found = _load_folder(folder / "images", folder / "semantic", maps if maps.is_dir() else None)
        pictures += [replace(picture, name=f"{folder.name}/{picture.name}") for picture in found]
    if classes is not None:
        _check_class_ids(pictures, classes)
    return pictures


def _check_class_ids(pictures: list[Picture], classes: int) -> None:
    for picture in pictures:
        unknown = np.setdiff1d(picture.semantic, [*range(classes), IGNORE])
        if unknown.size:
            raise InputError(
                f"the class map of {picture.name} has class {unknown[0]}: the network has the classes 0 to "
                f"{classes - 1}, and {IGNORE} is ignored"
            )


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
                f"{path}: its class map {maps[0]} must be one 8-bit channel of the image's size "
                f"{image.shape[:2]}, got {class_map.dtype} {class_map.shape}"
            )
        certainty = read_image(maps[1])[..., 0] if len(maps) > 1 else np.full((1, 1), 255, np.uint8)
        image, class_map, certainty = (np.asarray(a, np.uint8) for a in (image, class_map, certainty))
        pictures.append(
            Picture(path.stem, image, class_map, certainty, pseudo_labeled=confidence is not None)
        )
    if not pictures:
        raise InputError(f"no image in {images} has a class map of its name (NAME.png) in {semantic}")
    return pictures


class CropSampler:
    """Draws training crops, deterministic by seed.

    Crops that are not centered on a class come from pseudo-labeled images, if there are any. These are
    scenes, while most images with human labels show one large object in the middle.
    """

    def __init__(self, pictures: list[Picture], classes: int, crop_px: int, seed: int) -> None:
        self.pictures = pictures
        self.classes = classes
        scenes = np.flatnonzero([p.pseudo_labeled for p in pictures])
        self.scenes = scenes if len(scenes) else np.arange(len(pictures))
        self.crop_px = crop_px
        self.rng = np.random.default_rng(seed)
        counts = np.stack(
            [np.bincount(p.semantic.ravel(), minlength=256)[:classes] / p.semantic.size for p in pictures]
        )
        self.showing = {c: np.flatnonzero(counts[:, c] >= _MIN_PRESENT) for c in range(1, classes)}
        self.showing = {c: indices for c, indices in self.showing.items() if len(indices)}
        if not self.showing:
            raise InputError(
                "no class map has a class other than 0 (background) on at least 1 % of its image"
            )
        # the exponent is a compromise between uniform classes and few repetitions of rare ones
        frequency = np.array([len(i) for i in self.showing.values()], float) ** 0.3
        self.class_odds = frequency / frequency.sum()
        self.class_ids = np.array(list(self.showing))
        self.cutouts = self._collect_cutouts()

    def _collect_cutouts(self) -> dict[int, list[_Cutout]]:
        found: dict[int, list[_Cutout]] = {}
        for picture in self.pictures:
            sure = full_confidence(picture)
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

    def draw(self) -> Crop:
        """Draw the next crop."""
        if self.rng.random() >= _FOUR_VIEWS:
            return self._draw_view(self.crop_px, _SCALE_RANGE)
        half = self.crop_px // 2
        views = [self._draw_view(half, _SMALL_SCALE_RANGE).arrays() for _ in range(4)]
        rows = [[np.concatenate(pair, 1) for pair in zip(*views[i : i + 2], strict=True)] for i in (0, 2)]
        return Crop(*(np.concatenate(pair) for pair in zip(*rows, strict=True)))

    def _draw_view(self, size: int, scale_range: tuple[float, float]) -> Crop:
        rng = self.rng
        centered = rng.random() < _CENTERED
        class_id = int(rng.choice(self.class_ids, p=self.class_odds))
        index = int(rng.choice(self.showing[class_id] if centered else self.scenes))
        picture = self.pictures[index]
        to_crop = self._placement(picture, class_id if centered else None, size, scale_range)
        image = _warp_image(picture, to_crop, size)
        class_map, weight = _warp_labels(picture, to_crop, size)
        teacher, teacher_weight = self._warp_teacher(picture, class_map, to_crop)
        if self.cutouts and rng.random() < _PASTED:
            pasted = self._paste(image, class_map, weight)
            teacher_weight[pasted.reshape(size // 4, 4, -1, 4).any((1, 3))] = 0
        crop = Crop(_jitter_color(image, rng), class_map, weight, teacher, teacher_weight)
        if rng.random() < 0.5:
            crop = Crop(*(np.ascontiguousarray(a[:, ::-1]) for a in crop.arrays()))
        return crop

    def _placement(
        self, picture: Picture, class_id: int | None, size: int, scale_range: tuple[float, float]
    ) -> NDArray[np.float64]:
        """Return the 2 x 3 matrix from the image's pixels to the crop's."""
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
        for axis, (side, scale) in enumerate(((w, zoom_x), (h, zoom_y))):  # avoid areas outside the image
            low, high = sorted((0.0, size - scale * side))
            to_crop[axis, 2] = np.clip(to_crop[axis, 2], low, high)
        return to_crop

    def _warp_teacher(
        self, picture: Picture, class_map: NDArray[np.uint8], to_crop: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the teacher's probabilities at every fourth pixel of the crop, and their weights.

        The weight is 0 where human labels differ, and at the teacher's outlines, which are coarser than
        labels.
        """
        side = len(class_map) // 4
        if picture.teacher is None:
            empty = np.zeros((side, side, self.classes), np.uint8)
            return empty, np.zeros((side, side), np.float32)
        h, w = picture.semantic.shape
        gh, gw = picture.teacher.shape[:2]
        from_grid = np.array([[w / gw, 0, w / gw / 2 - 0.5], [0, h / gh, h / gh / 2 - 0.5], [0, 0, 1]])
        to_quarter = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375], [0, 0, 1]])
        move = (to_quarter @ np.vstack([to_crop, [0, 0, 1]]) @ from_grid)[:2]
        shape = (side, side)
        teacher = cv2.warpAffine(picture.teacher, move, shape, flags=cv2.INTER_LINEAR)
        best = picture.teacher.argmax(2).astype(np.uint8)
        inner = (cv2.erode(best, _CROSS) == cv2.dilate(best, _CROSS)).astype(np.float32)
        weight = np.asarray(cv2.warpAffine(inner, move, shape, flags=cv2.INTER_LINEAR), np.float32)
        labels = class_map[1::4, 1::4]
        if not picture.pseudo_labeled:
            weight[(labels != IGNORE) & (labels != teacher.argmax(2))] = 0
        return np.asarray(teacher, np.uint8), weight

    def _paste(
        self, image: NDArray[np.uint8], class_map: NDArray[np.uint8], weight: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Paste an object; returns the mask of its pixels, bool (S, S)."""
        covered = np.zeros(class_map.shape, bool)
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
            return covered
        patch, alpha = patch[y0 - y : y1 - y, x0 - x : x1 - x], alpha[y0 - y : y1 - y, x0 - x : x1 - x]
        alpha = cv2.GaussianBlur(alpha, (3, 3), 0)
        spot = image[y0:y1, x0:x1]
        spot[:] = (spot + alpha[..., None] * (patch.astype(np.float32) - spot)).astype(np.uint8)
        covered[y0:y1, x0:x1] = alpha > 0.5
        class_map[covered] = class_id
        weight[covered] = 1.0
        return covered


def _warp_image(picture: Picture, to_crop: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    image, move = picture.image, to_crop
    if to_crop[0, 0] < 0.7:  # average areas first, because warpAffine does not
        h, w = picture.semantic.shape
        small = (max(1, round(w * to_crop[0, 0])), max(1, round(h * to_crop[1, 1])))
        image = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA), np.uint8)
        move = np.array([[1, 0, to_crop[0, 2]], [0, 1, to_crop[1, 2]]])
    gray = (127, 127, 127)
    warped = cv2.warpAffine(image, move, (size, size), flags=cv2.INTER_LINEAR, borderValue=gray)
    return np.asarray(warped, np.uint8)


def _warp_labels(
    picture: Picture, to_crop: NDArray[np.float64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    shape = (size, size)
    class_map = cv2.warpAffine(picture.semantic, to_crop, shape, flags=cv2.INTER_NEAREST, borderValue=IGNORE)
    (h, w), (ch, cw) = picture.semantic.shape, picture.confidence.shape
    from_confidence = to_crop @ np.array(
        [[w / cw, 0, w / cw / 2 - 0.5], [0, h / ch, h / ch / 2 - 0.5], [0, 0, 1]]
    )
    # replicate the border, because a confidence map may have a single pixel
    confidence = cv2.warpAffine(
        picture.confidence, from_confidence, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(class_map, np.uint8), np.asarray(confidence, np.float32) / np.float32(255)


def _jitter_color(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    contrast, brightness, saturation = rng.uniform(0.7, 1.3), rng.uniform(-25, 25), rng.uniform(0.5, 1.4)
    gain = rng.uniform(0.93, 1.07, 3)
    colors = np.eye(3) * saturation + (1 - saturation) / 3
    offset = 127 - 127 * contrast + brightness
    change = gain[:, None] * np.column_stack([contrast * colors, np.full(3, offset)])
    x = cv2.transform(image, change)
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.2)))
    if rng.random() < 0.2:
        x = x + np.asarray(rng.normal(0, rng.uniform(2, 8), x.shape), np.float32)
    return np.clip(x, 0, 255).astype(np.uint8)


class CropStream(IterableDataset[tuple[Tensor, ...]]):
    """An endless stream of ``Crop.arrays`` for a DataLoader; each worker has its own seed."""

    def __init__(self, sampler: CropSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        worker = get_worker_info()
        self.sampler.rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield tuple(torch.from_numpy(array) for array in self.sampler.draw().arrays())
