"""Synthetic scenes with ground truth: moving objects for the tracker, and piles of discs."""

import cv2
import numpy as np

SIZE_HW = (240, 320)


class Mover:
    """A moving ellipse: ``where(t)`` returns x, y in pixels, or None if it is not visible."""

    def __init__(self, where, radii=(14, 34), class_id=1):
        self.where, self.radii, self.class_id = where, radii, class_id


def line(start, velocity, begin=0, end=10**9):
    return lambda t: (start[0] + velocity[0] * t, start[1] + velocity[1] * t) if begin <= t < end else None


def render(movers, t, walls=(), noise=0.0, rng=None):
    """Return a label map, int32, and a class map, uint8.

    Later movers occlude earlier ones, and walls (x0, x1) occlude all; ``noise`` varies the radii, in pixels.
    """
    ys, xs = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    label, classes = np.zeros(SIZE_HW, np.int32), np.zeros(SIZE_HW, np.uint8)
    for k, mover in enumerate(movers):
        place = mover.where(t)
        if place is None:
            continue
        rx, ry = np.array(mover.radii) + (rng.normal(0, noise, 2) if noise else 0)
        inside = ((xs - place[0]) / rx) ** 2 + ((ys - place[1]) / ry) ** 2 < 1
        label[inside], classes[inside] = k + 1, mover.class_id
    for x0, x1 in walls:
        label[:, x0:x1] = classes[:, x0:x1] = 0
    return label, classes


def crossing():
    """Two objects cross, one behind the other."""
    return [Mover(line((30, 120), (2.0, 0))), Mover(line((290, 125), (-2.0, 0)))], (), 130


def hidden():
    """One object passes behind a wall, and another one does not move."""
    return [Mover(line((30, 120), (2.0, 0))), Mover(line((60, 190), (0, 0)), (20, 20))], ((130, 175),), 130


def leaving():
    """One object leaves, another one enters, and a third one enters ten seconds later."""
    gone = Mover(line((160, 120), (3.0, 0), end=100))
    back = Mover(line((420, 120), (-3.0, 0), begin=0, end=10**9))
    return (
        [gone, Mover(line((-40, 60), (2.0, 0))), Mover(lambda t: back.where(t - 300) if t >= 300 else None)],
        (),
        400,
    )


def returning():
    """The network misses one object for a second."""
    return (
        [Mover(lambda t: None if 40 <= t < 70 else (40 + 1.5 * t, 120)), Mover(line((160, 60), (0, 0.5)))],
        (),
        120,
    )


def crowd(count=50):
    """Many small objects move in random directions."""
    rng = np.random.default_rng(3)
    start, velocity = rng.uniform((20, 20), (300, 220), (count, 2)), rng.normal(0, 0.6, (count, 2))
    return [Mover(line(s, v), (6, 8)) for s, v in zip(start, velocity, strict=True)], (), 90


SCENES = {f.__name__: f for f in (crossing, hidden, leaving, returning, crowd)}


def pile(side, radius, seed=0, gap=1.9):
    """Return an image of touching and overlapping discs, and their label map: one connected component."""
    rng = np.random.default_rng(seed)
    truth, image = np.zeros((side, side), np.int32), np.full((side, side, 3), 60, np.uint8)
    number, step = 0, gap * radius
    for row, y in enumerate(np.arange(radius + 20, side - radius - 20, 0.87 * step)):
        for x in np.arange(radius + 20 + row % 2 * step / 2, side - radius - 20, step):
            if rng.random() < 0.08:
                continue
            number += 1
            at = int(x + rng.normal() * radius / 15), int(y + rng.normal() * radius / 15)
            cv2.circle(truth, at, radius, number, -1)
            cv2.circle(image, at, radius, rng.integers(90, 220, 3).tolist(), -1)
            cv2.circle(image, at, radius, (40, 40, 40), 1)
    return cv2.GaussianBlur(image, (0, 0), 0.8), truth
