"""Class names of public networks, and which of them are countable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError, ModelError, did_you_mean
from ...files import printable
from ...plugins.settings import IGNORE
from .output_reading import BACKGROUND_NAMES, CHOICES, OutputReading

_MAX_CLASSES = IGNORE - 1
_MAX_NEGATIVE = 0.05  # share of pixels; the highest of trained logits is rarely negative


def _parse_list(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Parse names separated by commas; ``*`` marks countable classes."""
    marked = [name.strip() for name in text.replace("\n", " ").split(",")]
    return tuple(name.strip("*") for name in marked), frozenset(
        name.strip("*") for name in marked if name.endswith("*")
    )


_VOC = """background, aeroplane*, bicycle*, bird*, boat*, bottle*, bus*, car*, cat*, chair*, cow*,
diningtable*, dog*, horse*, motorbike*,
person*, pottedplant*, sheep*, sofa*, train*, tvmonitor*"""

_CITYSCAPES = """road, sidewalk, building, wall, fence, pole, traffic light*, traffic sign*, vegetation,
terrain, sky, person*, rider*,
car*, truck*, bus*, train*, motorcycle*, bicycle*"""

_COCO = """background, person*, bicycle*, car*, motorcycle*, airplane*, bus*, train*, truck*, boat*, traffic
light*, fire hydrant*,
stop sign*, parking meter*, bench*, bird*, cat*, dog*, horse*, sheep*, cow*, elephant*, bear*, zebra*,
giraffe*, backpack*, umbrella*, handbag*, tie*, suitcase*, frisbee*, skis*, snowboard*, sports ball*, kite*,
baseball bat*, baseball glove*, skateboard*, surfboard*, tennis racket*, bottle*, wine glass*, cup*, fork*,
knife*, spoon*, bowl*, banana*, apple*, sandwich*, orange*, broccoli*, carrot*, hot dog*, pizza*, donut*,
cake*, chair*, couch*, potted plant*, bed*, dining table*, toilet*, tv*, laptop*, mouse*, remote*, keyboard*,
cell phone*, microwave*, oven*, toaster*, sink*, refrigerator*, book*, clock*, vase*, scissors*, teddy bear*,
hair drier*, toothbrush*"""

# the 100 classes of the benchmark's instance track are countable
_ADE20K = """wall, building, sky, floor, tree, ceiling, road, bed*, windowpane*, grass, cabinet*, sidewalk,
person*, earth, door*, table*,
mountain, plant, curtain*, chair*, car*, water, painting*, sofa*, shelf*, house, sea, mirror*, rug, field,
armchair*, seat*, fence*, desk*, rock, wardrobe*, lamp*, bathtub*, railing*, cushion*, base, box*, column*,
signboard*, chest of drawers*, counter*, sand, sink*, skyscraper, fireplace*, refrigerator*, grandstand,
path, stairs*, runway, case*, pool table*, pillow*, screen door*, stairway, river, bridge, bookcase*, blind,
coffee table*, toilet*, flower*, book*, hill, bench*, countertop*, stove*, palm*, kitchen island*, computer*,
swivel chair*, boat*, bar, arcade machine*, hovel, bus*, towel*, light*, truck*, tower, chandelier*, awning*,
streetlight*, booth*, television receiver*, airplane*, dirt track, apparel*, pole*, land, bannister*,
escalator, ottoman*, bottle*,
buffet, poster, stage, van*, ship*, fountain*, conveyer belt, canopy, washer*, plaything*, swimming pool,
stool*, barrel*,
basket*, waterfall, tent, bag*, minibike*, cradle, oven*, ball*, food*, step*, tank, trade name*,
microwave*, pot*, animal*, bicycle*, lake,
dishwasher*, screen*, blanket, sculpture*, hood*, sconce*, vase*, traffic light*, tray*, ashcan*, fan*,
pier, crt screen, plate*, monitor*,
bulletin board*, shower, radiator*, glass*, clock*, flag*"""

_LISTS = {
    "voc21": _parse_list(_VOC),
    "cityscapes19": _parse_list(_CITYSCAPES),
    "coco81": _parse_list(_COCO),
    "ade20k150": _parse_list(_ADE20K),
    "person2": _parse_list("background, person*"),
}
CLASS_LISTS = {name: names for name, (names, _) in _LISTS.items()}
VOC21 = CLASS_LISTS["voc21"]


def read_class_names(text: str) -> tuple[str, ...]:
    """Return class names in order of their IDs.

    Args:
        text: a known list, a file with one name per line, or names separated by commas.

    Raises:
        InputError: the text is none of these.
    """
    if text in CLASS_LISTS:
        return CLASS_LISTS[text]
    if Path(text).is_file():
        try:
            content = Path(text).read_text(encoding="utf-8-sig")  # editors of Windows begin it with a mark
        except UnicodeDecodeError as error:
            raise InputError(
                f"{printable(text)} is no text in UTF-8 ({error.reason}): save it as UTF-8"
            ) from error
        return tuple(line.strip() for line in content.splitlines() if line.strip())
    if "," not in text:
        raise InputError(
            f"{text!r} is no file and none of the known lists "
            f"({', '.join(CLASS_LISTS)}).{did_you_mean(text, CLASS_LISTS)} "
            "Separate names by commas"
        )
    return tuple(name.strip() for name in text.split(","))


def read_names_with_background(text: str) -> tuple[str, ...]:
    """Return class names, see ``read_class_names``; raises InputError if the first is not the background."""
    names = read_class_names(text)
    if names[0].lower() not in BACKGROUND_NAMES:
        raise InputError(f"class 0 must be the background, got {names[0]!r}: put it first")
    return names


def things_of(names: Sequence[str], things: str | None = None) -> tuple[int, ...]:
    """Return the ids of the countable classes.

    Args:
        things: names or ids, separated by commas. Default: as in the known list of exactly these names; else
            each class by its name in any list; else, if no list has any of them, all but class 0.

    Raises:
        InputError: a class does not exist.
    """
    if things is not None:
        ids = set[int]()
        for one in (part.strip() for part in things.split(",") if part.strip()):
            if one in names:
                ids.update(i for i, name in enumerate(names) if name == one)  # several may have one name
            elif one.isdecimal() and int(one) < len(names):
                ids.add(int(one))
            else:
                raise InputError(
                    f"there is no class {one!r}; the network's classes are {', '.join(names)}."
                    f"{did_you_mean(one, names)}"
                )
        return tuple(sorted(ids))
    countable = next((known for listed, known in _LISTS.values() if tuple(names) == listed), None)
    if countable is None:
        countable = frozenset[str]().union(*(known for _, known in _LISTS.values()))
        known = set().union(*CLASS_LISTS.values()) - {"background"}
        if known.isdisjoint(name.lower() for name in names):
            return tuple(range(1, len(names)))
    return tuple(i for i, name in enumerate(names) if name.lower() in countable)


def exported_classes(
    reading: OutputReading, names: Sequence[str] | None, things: str | None
) -> tuple[tuple[str, ...], tuple[int, ...], bool]:
    """Return class names, countable ids, and whether a background class must be prepended."""
    added = int(reading.background_added)
    count = reading.classes or reading.layout.channels + added
    if names is None:
        names = ("background", *(f"class {i}" for i in range(1, count)))
    elif added and len(names) == count - 1:
        names = ("background", *names)
    if len(names) != count:
        start = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise InputError(
            f"the network has {count} classes, got {len(names)} names ({start}). Name all classes in order "
            f"of their ids"
        )
    countable = things_of(names, things)
    _check_background(reading, names, countable)
    background = 0 in countable
    if background:
        names, countable = ("background", *names), tuple(i + 1 for i in countable)
    if len(names) > _MAX_CLASSES:
        raise ModelError(
            f"the network has {len(names)} classes, the clustering operator supports at most {_MAX_CLASSES}"
        )
    return tuple(names), countable, background


def _check_background(reading: OutputReading, names: Sequence[str], countable: Sequence[int]) -> None:
    """Raise ModelError if logits without a background look like those of independent sigmoids.

    By an argmax, each pixel would belong to an object, or to class 0.
    """
    has_background = names[0].lower() in BACKGROUND_NAMES or len({0, *countable}) < len(names)
    if (
        reading.kind == "logits"
        and reading.origin == "frames"
        and not has_background
        and reading.negative > _MAX_NEGATIVE
    ):
        raise ModelError(
            f"the network's output is ambiguous: all channels are negative in {reading.negative:.0%} of the "
            f"pixels, and {', '.join(names[:3])} are objects, without a background. Perhaps they are "
            f"independent sigmoids: {CHOICES}"
        )
