"""Composites to train instance heads: photos with instances of the instance network, plus pasted objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..instance.bank import Bank
from ..instance.composites import Composer
from ..instance.picture_effects import imitate_camera
from ..instance.teacher import PseudoLabels, remove_groups
from ..instance.train import select_held_pictures, split_bank

SAME_SIZE = 8  # consecutive composites of one size: a batch
_SIZES_HW = ((288, 384), (384, 288))
_PASTED = 0.6  # share of images with pasted objects
_OCCLUDED = 0.25  # share of images with an occluder, among those with pasted objects
_OWN_CLASS = 0.6  # share of pasted objects of a class that the image contains
_MIN_WINDOW = 0.5  # minimum share of the image in a composite

Label = NDArray[np.int32]


@dataclass(frozen=True)
class Material:
    """Material of composites: objects and images for training, and held-out ones."""

    used: Bank
    held: Bank
    labels: Sequence[PseudoLabels]
    used_pictures: Sequence[int]
    held_pictures: Sequence[int]

    def composer(self, seed: int) -> FrameComposer:
        """Return a composer for training."""
        return FrameComposer(self.used, self.labels, self.used_pictures, seed)

    def held_composer(self, seed: int) -> FrameComposer:
        """Return a composer of held-out material."""
        return FrameComposer(self.held, self.labels, self.held_pictures, seed)


@dataclass(frozen=True)
class FrameComposite:
    """A composite.

    ``image`` is uint8 (H, W, 3) BGR; ``owner`` int32 (H, W) is the object of each pixel, 0 = none or unknown;
    ``class_id`` is int32 (n,)."""

    image: NDArray[np.uint8]
    owner: Label
    class_id: NDArray[np.int32]

    def at(self, size_hw: tuple[int, int]) -> tuple[Label, NDArray[np.int32]]:
        """Return owner and class of each cell of a grid (h, w); 0 = none."""
        owner = np.asarray(cv2.resize(self.owner, size_hw[::-1], interpolation=cv2.INTER_NEAREST), np.int32)
        return owner, np.concatenate([[0], self.class_id])[owner].astype(np.int32)


def make_material(bank: Bank, labels: Sequence[PseudoLabels], held_out: float, seed: int) -> Material:
    """Split single objects and images of a bank into used and held-out ones.

    If there are too few images, both are the same.
    """
    used, held = split_bank(remove_groups(bank, labels), held_out, seed)
    is_held = select_held_pictures(bank, held_out, seed)
    if used is held:
        is_held[:] = False
    pictures = np.flatnonzero(~is_held).tolist()
    return Material(used, held, labels, pictures, np.flatnonzero(is_held).tolist() or pictures)


class FrameComposer:
    """Draws composites by number: eight in landscape format, then eight in portrait format."""

    def __init__(
        self, bank: Bank, labels: Sequence[PseudoLabels], pictures: Sequence[int], seed: int
    ) -> None:
        self.bank = bank
        self.labels = labels
        self.seed = seed
        self._composer = Composer(bank, seed)
        self._pictures = pictures
        self._with_instances = [k for k in pictures if len(labels[k].class_id)] or pictures

    def __call__(self, number: int) -> FrameComposite:
        rng = np.random.default_rng([self.seed, number])
        size_hw = _SIZES_HW[number // SAME_SIZE % 2]
        while True:
            composite = self._draw(size_hw, rng)
            if composite is not None:
                return composite

    def _draw(self, size_hw: tuple[int, int], rng: np.random.Generator) -> FrameComposite | None:
        pasted = rng.random() < _PASTED
        index = int(rng.choice(self._pictures if pasted else self._with_instances))
        canvas, label = self._window(index, size_hw, rng)
        visible = np.unique(label[label > 0])
        rank = np.zeros(len(self.labels[index].class_id) + 1, np.int32)
        rank[visible] = np.arange(1, len(visible) + 1)
        label, classes = rank[label], self.labels[index].class_id[visible - 1].tolist()
        if pasted:
            known = [c for c in classes if c in self._composer.classes]
            if known and rng.random() < _OWN_CLASS:
                class_id = int(rng.choice(known))
            else:
                class_id = int(rng.choice(self._composer.classes, p=self._composer.odds))
            size = min(size_hw) * float(np.exp(rng.uniform(np.log(0.12), np.log(0.7))))
            self._composer.paste_objects(canvas, label, class_id, int(rng.integers(1, 6)), size, rng)
            classes += [class_id] * (int(label.max()) - len(classes))
            if rng.random() < _OCCLUDED and label.any():
                self._composer.occlude(canvas, label, class_id, size, rng)
                np.maximum(label, 0, out=label)  # occluders are not objects
        if not label.any():
            return None
        image = imitate_camera(canvas, rng)
        return FrameComposite(image, label, np.array(classes, np.int32))

    def _window(
        self, index: int, size_hw: tuple[int, int], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], Label]:
        """Return a random part of an image, scaled to the canvas; half of the parts are mirrored."""
        picture, labels = self.bank.pictures[index], self.labels[index]
        h, w = picture.semantic.shape
        height, width = size_hw
        share = rng.uniform(_MIN_WINDOW, 1.0)
        stretch = float(np.exp(rng.normal(0, 0.08)))
        side = share * min(h / height, w / width * stretch)
        window_h = min(h, max(8, round(side * height)))
        window_w = min(w, max(8, round(side * width / stretch)))
        y, x = int(rng.integers(0, h - window_h + 1)), int(rng.integers(0, w - window_w + 1))
        spot = (slice(y, y + window_h), slice(x, x + window_w))
        how = cv2.INTER_AREA if window_h > height else cv2.INTER_LINEAR
        canvas = cv2.resize(picture.image[spot], (width, height), interpolation=how).astype(np.float32)
        label = cv2.resize(labels.label_map[spot], (width, height), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            canvas, label = canvas[:, ::-1], label[:, ::-1]
        return np.ascontiguousarray(canvas), np.ascontiguousarray(label)
