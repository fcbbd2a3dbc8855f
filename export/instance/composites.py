"""Composites: single objects pasted to touch and overlap, with identities known by construction.

There are three kinds. The first shows an object alone in its own image, from which the network learns not to
split, or a group that the teacher split. The second adds objects of the same class to such an image. The
third has objects pasted on an image without their class; some are drawn cells. The mask is then perturbed
like a predicted one (``mask_noise.py``) and rendered as a view (``runtime/refine/view.py``), as at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.refine.view import VIEW_PX, View, make_view, render_mask, render_view, sample_labels
from ..semantic.data import IGNORE
from .bank import Bank, BankObject
from .mask_noise import assign_owners, perturb_mask
from .pasting import OTHER_CLASS, Label, draw_cells, paste, place
from .picture_effects import Canvas, change_light, erase_class, imitate_camera

_FAULTS_PX = 160  # side of the views to which the sizes of mask faults refer
_CANVAS = 1.35  # side of a composite over that of its view
_ALONE, _IN_PLACE = 0.22, 0.45  # cumulative shares of the first two kinds
_COMPANY = 0.35  # share of these that show an object among others, if there is a teacher
_CELLS = 0.12  # share of the third kind that are cells
_SPREAD, _WIDE_SPREAD = 0.22, 0.6  # standard deviation of log(size) in a composite
_WIDE = 0.3  # share of composites with the wide spread, for objects at different distances
# shares of composites, or of pasted objects
_CROWD = 0.75  # objects next to one another instead of anywhere
_LOOKALIKES = 0.3  # the same object several times
_ONE_PICTURE, _SEVERAL = (
    0.6,
    4,
)  # all objects from the background's image, if it has this many (one stain of cells)
_RELIT = (
    0.5  # each object with its own light; without it, only edges and shapes separate objects, as in one photo
)
_OCCLUDED = 0.35  # an occluder of another class
_BEHIND = 0.25  # a pasted object goes behind the others
_OTHERS_KNOWN = 0.6  # the class map shows the other classes, including occluders
_COMPONENT_VIEW, _CLASS_VIEW = (
    0.5,
    0.8,
)  # cumulative shares of views of a component or class; the rest: the canvas
_PEOPLE_BOOST = 1.8  # most users count people
_PERSON = 15


@dataclass(frozen=True)
class Composite:
    """A training sample.

    Attributes:
        image: uint8 (S, S, 3) BGR.
        mask: uint8 (S, S) 0/1, the class mask as a network would predict it.
        owner: int32 (S, S), the object of each mask pixel, 1..; 0 = outside of the mask, -1 = unknown.
        other: uint8 (S, S) 0/1, pixels that it would predict as another class.
        class_id: the class.
        truth: uint8 (S, S) 0/1, the true class mask.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    owner: Label
    other: NDArray[np.uint8]
    class_id: int
    truth: NDArray[np.uint8]


class Composer:
    """Creates composites by number: ``composer(k)`` is the same in every process and in any order.

    ``alone`` and ``in_place`` are the cumulative shares of the first two kinds.
    """

    def __init__(
        self,
        bank: Bank,
        seed: int,
        view_px: int = VIEW_PX,
        alone: float = _ALONE,
        in_place: float = _IN_PLACE,
    ) -> None:
        self.bank = bank
        self.seed = seed
        self.alone, self.in_place = alone, in_place
        self.view_px = view_px
        self.fault_zoom = view_px / _FAULTS_PX
        self.canvas_px = ceil(_CANVAS * view_px)
        self._whole: dict[int, list[BankObject]] = {}
        for o in bank.objects:
            if o.whole:
                self._whole.setdefault(o.class_id, []).append(o)
        rich = {c: objects for c, objects in self._whole.items() if len(objects) >= 4}
        self._whole = rich or self._whole
        self.classes = sorted(self._whole)
        self._whole_in: dict[tuple[int, int], list[BankObject]] = {}  # by image and class
        for o in (o for objects in self._whole.values() for o in objects):
            self._whole_in.setdefault((o.picture, o.class_id), []).append(o)
        odds = np.array(
            [len(self._whole[c]) ** 0.6 * (_PEOPLE_BOOST if c == _PERSON else 1.0) for c in self.classes]
        )
        self.odds = odds / odds.sum()
        self._company = [o for o in bank.objects if not o.isolated] if bank.label_maps is not None else []
        self._alone = [o for o in bank.objects if o.isolated]
        self._in_place = [o for o in self._alone if o.whole]
        self._shows = [set(np.unique(p.semantic).tolist()) for p in bank.pictures]

    def __call__(self, number: int) -> Composite:
        rng = np.random.default_rng([self.seed, number])
        while True:
            composite = self._draw(rng)
            if composite is not None:
                return composite

    def _draw(self, rng: np.random.Generator) -> Composite | None:
        kind = rng.random()
        if kind < self.in_place and self._in_place:
            alone = kind < self.alone
            pool = self._alone if alone else self._in_place
            if self._company and rng.random() < _COMPANY:
                pool = self._company
            first = pool[int(rng.integers(len(pool)))]
            canvas, label, size = self._own_image_scene(first, alone, rng)
            class_id, count, background = (
                first.class_id,
                0 if alone else int(rng.integers(1, 4)),
                first.picture,
            )
        else:
            class_id = int(rng.choice(self.classes, p=self.odds))
            canvas, label, size, background = self._background_scene(class_id, rng)
            count = int(rng.integers(1, 7))
        if count and not (label > 0).any() and rng.random() < _CELLS:
            canvas, label = draw_cells(self.canvas_px, rng)
        elif count:
            self.paste_objects(canvas, label, class_id, count, size, rng, background)
        if not (label > 0).any():
            return None
        if rng.random() < _OCCLUDED:
            for _ in range(1 + int(rng.random() < 0.3)):
                self.occlude(canvas, label, class_id, size, rng)
        image = imitate_camera(canvas, rng)
        mask = self.class_mask(image, label, rng)
        if not mask.any():
            return None
        view = self._view(mask, rng)
        visible = sample_labels(label, view, self.view_px)
        owner = assign_owners(np.maximum(visible, 0), render_mask(mask, view, self.view_px))
        if (owner > 0).sum() < 64:
            return None
        other = (visible == OTHER_CLASS) & (owner == 0) & (rng.random() < _OTHERS_KNOWN)
        return Composite(
            render_view(image, view, self.view_px),
            (owner != 0).astype(np.uint8),
            owner,
            other.astype(np.uint8),
            class_id,
            (visible > 0).astype(np.uint8),
        )

    def class_mask(
        self, image: NDArray[np.uint8], label: Label, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Return the class mask as a network would predict it, uint8 (canvas, canvas) 0/1."""
        return perturb_mask(np.maximum(label, 0), rng, self.fault_zoom)

    def _own_image_scene(
        self, o: BankObject, alone: bool, rng: np.random.Generator
    ) -> tuple[Canvas, Label, float]:
        """Place an object's own image; returns canvas, label map and the object's side in pixels."""
        canvas_px = self.canvas_px
        side = float(np.sqrt(o.box_xywh[2] * o.box_xywh[3]))
        size = canvas_px * (rng.uniform(0.3, 1.2) if alone else rng.uniform(0.2, 0.75))
        zoom = min(size / side, 2.5)
        window = canvas_px / zoom
        x = o.box_xywh[0] + o.box_xywh[2] / 2 + rng.uniform(-0.3, 0.3) * window * (0.5 if alone else 0.9)
        y = o.box_xywh[1] + o.box_xywh[3] / 2 + rng.uniform(-0.3, 0.3) * window * 0.5
        to_canvas = np.array(
            [[zoom, 0, canvas_px / 2 - x * zoom], [0, zoom, canvas_px / 2 - y * zoom]], np.float32
        )
        if rng.random() < 0.5:
            to_canvas[0] = [-zoom, 0, canvas_px / 2 + x * zoom]
        picture, shape = self.bank.pictures[o.picture], (canvas_px, canvas_px)
        image = picture.image
        if zoom < 0.7:  # warpAffine does not average
            image = np.asarray(
                cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA), np.uint8
            )
            steps = np.diag(
                [picture.image.shape[1] / image.shape[1], picture.image.shape[0] / image.shape[0]]
            )
            warp = np.concatenate([to_canvas[:, :2] @ steps, to_canvas[:, 2:]], axis=1)
        else:
            warp = to_canvas
        canvas = cv2.warpAffine(
            image, warp, shape, flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127)
        ).astype(np.float32)
        mask = (picture.semantic == o.class_id).astype(np.int16)
        if not o.isolated and self.bank.label_maps is not None:
            _, rank = np.unique(np.where(mask > 0, self.bank.label_maps[o.picture], 0), return_inverse=True)
            mask = rank.reshape(mask.shape).astype(np.int16)
        mask[_other_classes(picture.semantic, o.class_id)] = OTHER_CLASS
        label = cv2.warpAffine(mask, to_canvas, shape, flags=cv2.INTER_NEAREST).astype(np.int32)
        return change_light(canvas, rng), label, zoom * side

    def _background_scene(self, class_id: int, rng: np.random.Generator) -> tuple[Canvas, Label, float, int]:
        """Crop an image without the class; returns canvas, label map, size of objects, image index."""
        canvas_px = self.canvas_px
        for _ in range(1000):
            index = int(rng.integers(len(self.bank.pictures)))
            if class_id not in self._shows[index]:
                image = self.bank.pictures[index].image
                break
        else:  # every image shows the class
            index = int(rng.integers(len(self.bank.pictures)))
            image = erase_class(self.bank.pictures[index], class_id)
        h, w = image.shape[:2]
        zoom = max(rng.uniform(0.9, 2.2) * 0.6, 1.0) * canvas_px / min(h, w)
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=how), np.uint8)
        h, w = image.shape[:2]
        others = _other_classes(self.bank.pictures[index].semantic, class_id).astype(np.uint8)
        others = np.asarray(cv2.resize(others, (w, h), interpolation=cv2.INTER_NEAREST), np.uint8)
        y, x = (
            int(rng.integers(0, max(h - canvas_px, 0) + 1)),
            int(rng.integers(0, max(w - canvas_px, 0) + 1)),
        )
        crop, others = (a[y : y + canvas_px, x : x + canvas_px] for a in (image, others))
        if crop.shape[:2] != (canvas_px, canvas_px):
            crop = np.asarray(cv2.resize(crop, (canvas_px, canvas_px)), np.uint8)
            others = np.asarray(
                cv2.resize(others, (canvas_px, canvas_px), interpolation=cv2.INTER_NEAREST), np.uint8
            )
        size = canvas_px * float(np.exp(rng.uniform(np.log(0.12), np.log(0.8))))
        return crop.astype(np.float32), np.where(others > 0, OTHER_CLASS, 0).astype(np.int32), size, index

    def _warp_object(
        self, o: BankObject, size: float, relit: bool, rng: np.random.Generator
    ) -> tuple[Canvas, NDArray[np.float32]]:
        """Return an object of about this size, slightly rotated and stretched.

        Returns:
            Colors (h, w, 3), opacity (h, w) in [0, 1]."""
        x, y, w, h = o.box_xywh
        stretch = float(np.exp(rng.normal(0, 0.08)))
        zoom = size / np.sqrt(w * h)
        target = (max(4, int(w * zoom * stretch)), max(4, int(h * zoom / stretch)))
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        image = cv2.resize(
            self.bank.pictures[o.picture].image[y : y + h, x : x + w], target, interpolation=how
        )
        opacity = cv2.resize(o.mask.astype(np.float32), target, interpolation=how)
        if rng.random() < 0.5:
            image, opacity = image[:, ::-1], opacity[:, ::-1]
        if rng.random() < 0.3 and not o.at_bottom:
            degrees = float(rng.normal(0, 8))
            room = int(abs(np.sin(np.radians(degrees))) * max(target) / 2) + 1
            image = cv2.copyMakeBorder(
                np.ascontiguousarray(image), room, room, room, room, cv2.BORDER_REPLICATE
            )
            opacity = np.pad(opacity, room)
            turn = cv2.getRotationMatrix2D((opacity.shape[1] / 2, opacity.shape[0] / 2), degrees, 1)
            image = cv2.warpAffine(image, turn, opacity.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
            opacity = cv2.warpAffine(opacity, turn, opacity.shape[::-1])
        colors = image.astype(np.float32)
        return change_light(colors, rng) if relit else colors, np.ascontiguousarray(opacity)

    def paste_objects(
        self,
        canvas: Canvas,
        label: Label,
        class_id: int,
        count: int,
        size: float,
        rng: np.random.Generator,
        background: int = -1,
    ) -> None:
        """Paste objects of a class on a canvas and number them in the label map.

        Args:
            canvas, label: changed in place.
            class_id, count: class and number of the objects.
            size: their approximate size in pixels.
            rng: random numbers.
            background: index of the image on the canvas, from which objects are preferred; -1: none.
        """
        crowd, repeat, relit = rng.random() < _CROWD, rng.random() < _LOOKALIKES, rng.random() < _RELIT
        spread = _WIDE_SPREAD if rng.random() < _WIDE else _SPREAD
        pool = self._whole.get(class_id) or self._whole[self.classes[0]]
        same_picture = self._whole_in.get((background, class_id), [])
        if len(same_picture) >= _SEVERAL and rng.random() < _ONE_PICTURE:
            pool, relit = same_picture, False
        o = pool[int(rng.integers(len(pool)))]
        for _ in range(count):
            if not repeat:
                o = pool[int(rng.integers(len(pool)))]
            colors, opacity = self._warp_object(o, size * float(np.exp(rng.normal(0, spread))), relit, rng)
            x, y = place(label, opacity.shape, o.at_bottom, crowd, rng)
            paste(
                canvas,
                label,
                colors,
                opacity,
                x,
                y,
                max(int(label.max()), 0) + 1,
                rng.random() < _BEHIND,
                rng,
            )

    def occlude(
        self, canvas: Canvas, label: Label, class_id: int, size: float, rng: np.random.Generator
    ) -> None:
        """Paste an occluder of another class: a bar across the canvas, or an object."""
        ys, xs = np.nonzero(label > 0)
        if rng.random() < 0.45:
            thickness = max(3, int(size * rng.uniform(0.04, 0.2)))
            length = 2 * max(label.shape)
            opacity = np.ones((length, thickness), np.float32)
            source = self.bank.pictures[int(rng.integers(len(self.bank.pictures)))].image
            colors = cv2.resize(source, opacity.shape[::-1]).astype(np.float32)
            degrees = float(rng.choice([0.0, 90.0])) + float(rng.normal(0, 6))
            turn = cv2.getRotationMatrix2D((thickness / 2, length / 2), degrees, 1)
            turn[0, 2] += length / 2 - thickness / 2
            room = (length, length)
            opacity = np.asarray(cv2.warpAffine(opacity, turn, room), np.float32)
            colors = np.asarray(
                cv2.warpAffine(colors, turn, room, borderMode=cv2.BORDER_REPLICATE), np.float32
            )
        else:
            other = [c for c in self.classes if c != class_id]
            if not other:
                return
            pool = self._whole[int(rng.choice(other))]
            colors, opacity = self._warp_object(
                pool[int(rng.integers(len(pool)))], size * rng.uniform(0.3, 0.9), True, rng
            )
        k = int(rng.integers(len(ys)))
        paste(
            canvas,
            label,
            colors,
            opacity,
            int(xs[k]) - opacity.shape[1] // 2,
            int(ys[k]) - opacity.shape[0] // 2,
            OTHER_CLASS,
            False,
            rng,
        )

    def _view(self, mask: NDArray[np.uint8], rng: np.random.Generator) -> View:
        """Choose a view as at run time, of a component or the whole class, or of most of the canvas."""
        kind = rng.random()
        if kind < _CLASS_VIEW:
            visible = mask
            if kind < _COMPONENT_VIEW:
                _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
                large = (
                    np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= 0.1 * stats[1:, cv2.CC_STAT_AREA].max()) + 1
                )
                visible = (labels == rng.choice(large)).astype(np.uint8)
            x, y, w, h = cv2.boundingRect(visible)
            return make_view((x, y, x + w, y + h), mask.shape, self.view_px)
        side = int(rng.integers(self.view_px, self.canvas_px + 1))
        x, y = (int(rng.integers(0, self.canvas_px - side + 1)) for _ in range(2))
        return View(x, y, side)


def _other_classes(semantic: NDArray[np.uint8], class_id: int) -> NDArray[np.bool_]:
    """Return a mask of the pixels that are neither this class nor background."""
    return (semantic != 0) & (semantic != IGNORE) & (semantic != class_id)
