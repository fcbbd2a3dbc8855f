"""Composites for the one question: neighbors that touch or stand at a gap, rows of many small things,
stretched objects, occluders of every kind, masks as the default network draws them."""

from typing import NamedTuple

import cv2
import numpy as np
import tfiseg
from class_maps import ClassMaskNetwork
from contact import near_groups, touching_place
from tfiseg.export.instance.bank import Bank
from tfiseg.export.instance.composites import Composer
from tfiseg.export.instance.mask_noise import smooth_noise
from tfiseg.export.instance.pasting import OTHER_CLASS, draw_cells, paste
from tfiseg.export.neck.composites import ellipse
from tfiseg.runtime.refine.view import make_view

_ALONE, _IN_PLACE = 0.5, 0.68  # cumulative: photos show single components several times as often as groups


class Arrangements(NamedTuple):
    """Cumulative shares of arrangements; the rest is the package's, whose objects overlap anywhere."""

    touching: float
    apart: float
    rows: float
    scattered: float


_TO_CUT, _TO_JOIN = Arrangements(0.6, 0.7, 0.78, 0.85), Arrangements(0.15, 0.7, 0.8, 0.9)
_CELLS = 0.2  # of what is pasted on an empty ground
_MANY_CELLS, _TOUCHING_CELLS = 0.4, 0.8  # of these, cumulative
_CELL_SIZES = (0.03, 0.1)  # of many cells, in units of the canvas
_STRETCHED = 0.12
_CUTS_OFF = 0.6  # of occluders: a thin bar that parts one object, most often near its end
_GRIDS, _LIMBS, _FOLIAGE = 0.12, 0.42, 0.6  # of the other occluders, cumulative; the rest is the package's
_TRUE_MASKS = 0.45  # of composites; faults leave a few of the others true
_LEAST_IOU = 0.35  # of a predicted mask with the truth; a lower one shows something else
_OWN_VIEWS = 0.85  # of composites: views as at run time, of a component to cut or of a group to join


class QuestionComposer(Composer):
    """Composites by number, as ``Composer``, with other arrangements, occluders, masks and views.

    Attributes:
        joins: whether the next composite is for joins instead of cuts.
    """

    def __init__(self, bank: Bank, seed: int, view_px: int) -> None:
        super().__init__(bank, seed, view_px, _ALONE, _IN_PLACE)
        self.joins = False
        self._network: ClassMaskNetwork | None = None

    def class_mask(self, image, label, rng):
        if rng.random() < _TRUE_MASKS:
            return (label > 0).astype(np.uint8)
        if self._network is None:
            self._network = ClassMaskNetwork()
        mask = self._network(image, label > 0, rng)
        if (mask & (label > 0)).sum() > _LEAST_IOU * (mask | (label > 0)).sum():
            return mask
        return super().class_mask(image, label, rng)

    def _view(self, mask, rng):
        """Choose a view as at run time: of a component to cut, or of a group of components to join."""
        if rng.random() > _OWN_VIEWS:
            return super()._view(mask, rng)
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        boxes, areas = stats[1:, :4], stats[1:, cv2.CC_STAT_AREA].astype(np.float64)
        if self.joins:
            group = near_groups(boxes, areas)
            several = [g for g in np.unique(group) if (group == g).sum() > 1]
            chosen = boxes[group == rng.choice(several)] if several else boxes
        else:
            chosen = boxes[[rng.choice(len(areas), p=areas / areas.sum())]]
        low, high = chosen[:, :2].min(0), (chosen[:, :2] + chosen[:, 2:]).max(0)
        return make_view((*low.tolist(), *high.tolist()), mask.shape, self.view_px)

    def _warp_object(self, o, size, relit, rng):
        colours, opacity = super()._warp_object(o, size, relit, rng)
        if rng.random() < _STRETCHED:
            ratio = float(np.exp(rng.normal(0, 0.5)))
            h, w = opacity.shape
            target = (max(4, round(w * ratio)), max(4, round(h / ratio)))
            colours, opacity = (
                cv2.resize(a, target, interpolation=cv2.INTER_AREA) for a in (colours, opacity)
            )
        return colours, opacity

    def paste_objects(self, canvas, label, class_id, count, size, rng, shown=-1):
        if not (label > 0).any() and rng.random() < _CELLS:
            kind = rng.random()
            draw = (
                self._many_cells
                if kind < _MANY_CELLS
                else self._touching_cells
                if kind < _TOUCHING_CELLS
                else draw_cells
            )
            canvas[:], label[:] = draw(self.canvas_px, rng)
            return
        kind, shares = rng.random(), _TO_JOIN if self.joins else _TO_CUT
        if kind < shares.touching:
            self._paste_touching(canvas, label, class_id, min(count, 4), size, rng, shown)
        elif kind < shares.apart:
            few = min(max(2, count), 4)
            self._paste_in_row(canvas, label, class_id, few, size * 0.7, (0.03, 0.6), rng)
        elif kind < shares.rows:
            many, small = int(rng.integers(5, 14)), self.canvas_px * rng.uniform(0.08, 0.2)
            self._paste_in_row(canvas, label, class_id, many, small, (-0.1, 0.3), rng)
        elif kind < shares.scattered:
            self._scatter(canvas, label, class_id, rng)
        else:
            super().paste_objects(canvas, label, class_id, count, size, rng, shown)

    def _paste_touching(self, canvas, label, class_id, count, size, rng, shown):
        """Objects that slide towards those before them until the masks touch or overlap by a few pixels."""
        pool, relit = self._whole.get(class_id) or self._whole[self.classes[0]], rng.random() < 0.3
        beside = self._whole_in.get((shown, class_id), [])
        if len(beside) > 1 and rng.random() < 0.6:
            pool, relit = beside, False
        size, spread, again = min(size, 0.55 * self.canvas_px), rng.uniform(0.02, 0.35), rng.random() < 0.25
        o = pool[int(rng.integers(len(pool)))]
        if not (label > 0).any():
            count = max(2, count)
        for _ in range(count):
            if not again:
                o = pool[int(rng.integers(len(pool)))]
            colours, opacity = self._warp_object(o, size * float(np.exp(rng.normal(0, spread))), relit, rng)
            x, y = touching_place(label, opacity, rng)
            number = max(int(label.max()), 0) + 1
            paste(canvas, label, colours, opacity, x, y, number, rng.random() < 0.5, rng)

    def _touching_cells(self, canvas_px, rng):
        """2 to 10 round objects of one stain that touch, canvas and label."""
        canvas, label = draw_cells(canvas_px, rng)
        ground, colour = (np.median(canvas[mask], axis=0) for mask in (label == 0, label > 0))
        canvas[:], label[:] = cv2.GaussianBlur(canvas, (0, 0), canvas_px / 4) * 0.2 + 0.8 * ground, 0
        size, spread = canvas_px * rng.uniform(0.1, 0.35), rng.uniform(0.05, 0.35)
        for _ in range(int(rng.integers(2, 11))):
            opacity = ellipse(rng, size * float(np.exp(rng.normal(0, spread)))).astype(np.float32)
            texture = cv2.GaussianBlur(rng.normal(0, 20, opacity.shape).astype(np.float32), (0, 0), 1.5)
            tint = colour + rng.normal(0, 12, 3) + texture[..., None]
            x, y = touching_place(label, opacity, rng, sideways=0.5)
            number = max(int(label.max()), 0) + 1
            paste(canvas, label, tint.astype(np.float32), opacity, x, y, number, rng.random() < 0.5, rng)
        return canvas, label

    def _scatter(self, canvas, label, class_id, rng):
        """10 to 40 small objects of a class, most of them apart: pieces of a whole class are seldom one."""
        pool = self._whole.get(class_id) or self._whole[self.classes[0]]
        again, relit = rng.random() < 0.5, rng.random() < 0.3
        size, spread = self.canvas_px * rng.uniform(0.05, 0.14), rng.uniform(0.02, 0.4)
        o = pool[int(rng.integers(len(pool)))]
        for _ in range(int(rng.integers(10, 41))):
            if not again:
                o = pool[int(rng.integers(len(pool)))]
            colours, opacity = self._warp_object(o, size * float(np.exp(rng.normal(0, spread))), relit, rng)
            self._paste_apart(canvas, label, colours, opacity, rng)

    def _paste_apart(self, canvas, label, colours, opacity, rng):
        """Paste an object anywhere, at the freest of a few places."""
        h, w = opacity.shape
        places = rng.uniform(0, 1, (4, 2)) * np.maximum((self.canvas_px - h, self.canvas_px - w), 1)
        taken = [int((label[int(y) : int(y) + h, int(x) : int(x) + w] > 0).sum()) for y, x in places]
        y, x = places[int(np.argmin(taken))].astype(int).tolist()
        paste(canvas, label, colours, opacity, x, y, max(int(label.max()), 0) + 1, False, rng)

    def _many_cells(self, canvas_px, rng):
        """12 to 60 small round objects of one stain, canvas and label."""
        canvas, label = draw_cells(canvas_px, rng)
        ground, colour = (np.median(canvas[mask], axis=0) for mask in (label == 0, label > 0))
        canvas[:], label[:] = cv2.GaussianBlur(canvas, (0, 0), canvas_px / 4) * 0.2 + 0.8 * ground, 0
        size, spread = canvas_px * rng.uniform(*_CELL_SIZES), rng.uniform(0.05, 0.4)
        for _ in range(int(rng.integers(12, 61))):
            opacity = ellipse(rng, size * float(np.exp(rng.normal(0, spread)))).astype(np.float32)
            tint = colour + rng.normal(0, 10, 3) + rng.normal(0, 8, (*opacity.shape, 1))
            self._paste_apart(canvas, label, tint.astype(np.float32), opacity, rng)
        return canvas, label

    def _paste_in_row(self, canvas, label, class_id, count, size, gaps, rng):
        """Objects side by side along a line, ``gaps`` (least, most) in units of their width apart."""
        pool = self._whole.get(class_id) or self._whole[self.classes[0]]
        again, relit = rng.random() < 0.5, rng.random() < 0.3
        upright, slope, spread = rng.random() < 0.25, rng.normal(0, 0.12), rng.uniform(0.02, 0.25)
        along, across = rng.uniform(-0.1, 0.35) * self.canvas_px, rng.uniform(0.25, 0.75) * self.canvas_px
        o = pool[int(rng.integers(len(pool)))]
        for _ in range(count):
            if not again:
                o = pool[int(rng.integers(len(pool)))]
            colours, opacity = self._warp_object(o, size * float(np.exp(rng.normal(0, spread))), relit, rng)
            h, w = opacity.shape
            length = h if upright else w
            middle = across + slope * along + rng.normal(0, 0.05) * size
            x, y = (middle - w / 2, along) if upright else (along, middle - h / 2)
            number = max(int(label.max()), 0) + 1
            paste(canvas, label, colours, opacity, int(x), int(y), number, rng.random() < 0.25, rng)
            along += length * (1 + rng.uniform(*gaps))
            if along > self.canvas_px:
                break

    def occlude(self, canvas, label, class_id, size, rng):
        if rng.random() < _CUTS_OFF:
            opacity = cut_off_opacity(label, rng)
            paste(canvas, label, self._material(rng), opacity, 0, 0, OTHER_CLASS, False, rng)
            return
        kind = rng.random()
        if kind < _GRIDS:
            opacity = grid_opacity(self.canvas_px, size, rng)
        elif kind < _LIMBS:
            opacity = limb_opacity(label, size, rng)
        elif kind < _FOLIAGE:
            opacity = foliage_opacity(label, size, rng)
        else:
            super().occlude(canvas, label, class_id, size, rng)
            return
        paste(canvas, label, self._material(rng), opacity, 0, 0, OTHER_CLASS, False, rng)

    def _material(self, rng):
        """Colors (S, S, 3) of an occluder: one tint with some texture, or a part of any picture."""
        shape = (self.canvas_px, self.canvas_px)
        if rng.random() < 0.5:
            texture = smooth_noise(shape, float(rng.uniform(3, 30)), rng)[..., None] * rng.uniform(2, 18)
            return np.asarray(rng.uniform(10, 245, 3) + texture, np.float32)
        image = self.bank.pictures[int(rng.integers(len(self.bank.pictures)))].image
        part = int(min(image.shape[:2]) * rng.uniform(0.2, 1))
        y, x = (int(rng.integers(0, n - part + 1)) for n in image.shape[:2])
        return cv2.resize(image[y : y + part, x : x + part], shape).astype(np.float32)

    def one_behind_grid(self, rng):
        """A test: an object in its own picture behind a grid, canvas and label; None where it stays in one
        piece."""
        lone = [o for o in self.bank.objects if o.isolated and o.whole]
        canvas, label, size = self._own_image_scene(lone[int(rng.integers(len(lone)))], True, rng)
        opacity = grid_opacity(self.canvas_px, size, rng)
        paste(canvas, label, self._material(rng), opacity, 0, 0, OTHER_CLASS, False, rng)
        return (canvas, label) if _pieces(label) > 1 else None

    def two_behind_bar(self, rng):
        """A test: two objects side by side behind one bar, canvas and label; None where it parts neither."""
        class_id = int(rng.choice(self.classes, p=self.odds))
        canvas, label, _, _ = self._background_scene(class_id, rng)
        size = self.canvas_px * float(rng.uniform(0.2, 0.45))
        self._paste_in_row(canvas, label, class_id, 2, size, (0.05, 0.5), rng)
        if label.max() < 2:
            return None
        opacity = np.zeros(label.shape, np.float32)
        middle, half = int(np.median(np.nonzero(label > 0)[0])), max(2, int(size * rng.uniform(0.03, 0.1)))
        opacity[middle - half : middle + half] = 1
        paste(canvas, label, self._material(rng), opacity, 0, 0, OTHER_CLASS, False, rng)
        return (canvas, label) if label.max() == 2 and _pieces(label) > 2 else None


def _pieces(label: np.ndarray) -> int:
    """Connected components of a label map's objects, those of specks left out."""
    return len(tfiseg.cluster((label > 0).astype(np.uint8), split=0.0))


def grid_opacity(canvas_px: int, size: float, rng: np.random.Generator) -> np.ndarray:
    """Parallel bars, often crossed by others: fences, grids, climbing frames; float32 (S, S), 0 or 1."""
    out = np.zeros((canvas_px, canvas_px), np.float32)
    thickness = max(2, round(size * rng.uniform(0.02, 0.08)))
    spacing = max(3 * thickness, size * rng.uniform(0.2, 0.7))
    tilt = rng.normal(0, 0.12) if rng.random() < 0.8 else rng.uniform(0, np.pi)
    families = (0.0, np.pi / 2) if rng.random() < 0.6 else (rng.choice([0.0, np.pi / 2]),)
    for family in families:
        angle, shift = family + tilt, rng.uniform(0, spacing)
        normal, direction = (
            np.array([-np.sin(angle), np.cos(angle)]),
            np.array([np.cos(angle), np.sin(angle)]),
        )
        for k in range(-int(canvas_px / spacing) - 1, int(canvas_px / spacing) + 2):
            middle = canvas_px / 2 + normal * (k * spacing + shift)
            ends = [
                tuple(np.round(middle + s * 2 * canvas_px * direction).astype(int).tolist()) for s in (-1, 1)
            ]
            cv2.line(out, *ends, 1.0, thickness)
    return out


def cut_off_opacity(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bar across one object that cuts off 2 to 50 % of it, most often little; float32 (S, S), 0 or 1."""
    out = np.zeros(label.shape, np.float32)
    its = label == rng.choice(np.unique(label[label > 0]))
    angle = rng.normal(0, 0.3) + (np.pi / 2 if rng.random() < 0.5 else 0)
    normal, direction = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    ys, xs = np.nonzero(its)
    share = float(np.exp(rng.uniform(np.log(0.03), np.log(0.5))))
    at = float(np.quantile(xs * normal[0] + ys * normal[1], share if rng.random() < 0.5 else 1 - share))
    middle = np.array([xs.mean(), ys.mean()])
    middle = middle + (at - middle @ normal) * normal
    reach = 2 * max(label.shape) if rng.random() < 0.6 else 0.8 * len(ys) ** 0.5
    ends = [tuple(np.round(middle + s * reach * direction).astype(int).tolist()) for s in (-1, 1)]
    cv2.line(out, *ends, 1.0, max(2, round(len(ys) ** 0.5 * float(np.exp(rng.uniform(-3.2, -1))))))
    return out


def limb_opacity(label: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """One to four bent, tapering bands across an object: legs, arms, branches; float32 (S, S), 0 or 1."""
    out = np.zeros(label.shape, np.float32)
    ys, xs = np.nonzero(label > 0)
    for _ in range(int(rng.integers(1, 5))):
        k = int(rng.integers(len(ys)))
        angle = rng.normal(np.pi / 2, 0.35) if rng.random() < 0.7 else rng.uniform(0, np.pi)
        half, width = size * rng.uniform(0.4, 1.2), size * rng.uniform(0.04, 0.14)
        at = np.array([xs[k], ys[k]]) - half * np.array([np.cos(angle), np.sin(angle)])
        for step in range(8):
            angle += rng.normal(0, 0.12)
            to = at + half / 4 * np.array([np.cos(angle), np.sin(angle)])
            ends = [tuple(np.round(p).astype(int).tolist()) for p in (at, to)]
            cv2.line(out, *ends, 1.0, max(2, round(width * (1 - 0.05 * step))))
            at = to
    return out


def foliage_opacity(label: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Leaves: blobs of noise in a patch around a place in an object; float32 (S, S), 0 or 1."""
    ys, xs = np.nonzero(label > 0)
    k = int(rng.integers(len(ys)))
    rows, columns = np.mgrid[: label.shape[0], : label.shape[1]]
    reach = size * rng.uniform(0.3, 0.9)
    near = 1.2 - np.hypot(rows - ys[k], columns - xs[k]) / reach
    leaves = smooth_noise(label.shape, max(3.0, size * float(rng.uniform(0.03, 0.12))), rng)
    return np.asarray((leaves + 1.5 * near > rng.uniform(0.8, 1.8)) & (near > 0), np.float32)
