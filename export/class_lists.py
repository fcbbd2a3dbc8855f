"""Class names of well-known sets, in the order in which networks number them, and which of them are countable."""

from __future__ import annotations

VOC21 = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CITYSCAPES19 = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
PERSON = ("background", "person")
LISTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "voc21": (VOC21, tuple(range(1, 21))),
    "cityscapes19": (CITYSCAPES19, (6, 7, *range(11, 19))),  # traffic lights and signs, people, vehicles
    "person": (PERSON, (1,)),
}


def guess(names: tuple[str, ...]) -> tuple[int, ...]:
    """Countable ids of a list of names: those of the known list that it is, else all but the first."""
    lowered = tuple(name.lower().replace("_", " ") for name in names)
    for known, things in LISTS.values():
        if lowered == known:
            return things
    return tuple(range(1, len(names)))
