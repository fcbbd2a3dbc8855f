"""Composites for the one question: whole neighbors at a gap, rows of many small things, stretched objects,
occluders of every kind."""

import cv2
import numpy as np
import tfiseg
from tfiseg.export.instance.bank import Bank
from tfiseg.export.instance.composites import Composer
from tfiseg.export.instance.mask_noise import smooth_noise
from tfiseg.export.instance.pasting import OTHER_CLASS, draw_cells, paste
from tfiseg.export.neck.composites import ellipse

_ALONE, _IN_PLACE = 0.5, 0.68  # cumulative: photos show single components several times as often as groups
_APART, _ROWS, _SCATTERED = 0.3, 0.42, 0.54  # cumulative shares of arrangements; the rest is the package's
_CELLS = 0.2  # of what is pasted on an empty ground
_MANY_CELLS = 0.5  # of these
_CELL_SIZES = (0.03, 0.1)  # of many cells, in units of the canvas
_STRETCHED = 0.12
_GRIDS, _LIMBS, _FOLIAGE = 0.25, 0.42, 0.55  # cumulative shares of occluders; the rest is the package's


class QuestionComposer(Composer):
    """Composites by number, as ``Composer``, with other arrangements and occluders."""

    def __init__(self, bank: Bank, seed: int, view_px: int) -> None:
        super().__init__(bank, seed, view_px, _ALONE, _IN_PLACE)

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
            draw = self._many_cells if rng.random() < _MANY_CELLS else draw_cells
            canvas[:], label[:] = draw(self.canvas_px, rng)
            return
        kind = rng.random()
        if kind < _APART:
            self._paste_in_row(canvas, label, class_id, max(2, count), size * 0.7, (0.03, 0.6), rng)
        elif kind < _ROWS:
            many, small = int(rng.integers(5, 14)), self.canvas_px * rng.uniform(0.08, 0.2)
            self._paste_in_row(canvas, label, class_id, many, small, (-0.1, 0.3), rng)
        elif kind < _SCATTERED:
            self._scatter(canvas, label, class_id, rng)
        else:
            super().paste_objects(canvas, label, class_id, count, size, rng, shown)

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
