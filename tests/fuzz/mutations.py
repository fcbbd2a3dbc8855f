"""Random changes of valid files: of bytes, and of values in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

_RUNS = (b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\xff\xff\xff\x7f" * 2)
HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2,
    255,
    65_536,
    2**31 - 1,
    -(2**31),
    2**40,
    2**70,
    10**30,
    0.5,
    -0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "auto",
    "\ud800",
    "\x1b[31m\x00\n",
    "<img src=x onerror=alert(1)>",
    "../../../etc/passwd",
    "a" * 100_000,
    [],
    [1],
    [[]],
    [None] * 20,
    [0.5] * 913,
    [1e39] * 20,
    [[2**31 - 1, -(2**31)]] * 14,
    {},
    {"a": 1},
    {"15": 0.5},
)


def mutated(rng: np.random.Generator, data: bytes, spans: Sequence[tuple[int, int]] = ()) -> bytes:
    """Change bytes: flip bits, set values, truncate, delete or repeat.

    Args:
        rng: random generator.
        data: valid content.
        spans: ranges (start, stop) that get most changes; default: the whole content.
    """
    changed, kind = bytearray(data), int(rng.integers(0, 10))

    def position() -> int:
        if spans and rng.random() < 0.85:
            start, stop = spans[int(rng.integers(0, len(spans)))]
            return int(rng.integers(start, max(start + 1, min(stop, len(data)))))
        return int(rng.integers(0, max(1, len(data))))

    if kind <= 3:
        for _ in range(int(rng.choice([1, 1, 2, 5, 30]))):
            changed[position()] ^= 1 << int(rng.integers(0, 8))
    elif kind <= 5:
        for _ in range(int(rng.choice([1, 2, 5]))):
            changed[position()] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(0, 256))]))
    elif kind == 6:
        return bytes(changed[: position()])
    elif kind == 7:
        at = position()
        del changed[at : at + int(rng.choice([1, 2, 8, 100]))]
    elif kind == 8:
        at = position()
        changed[at:at] = changed[at : at + int(rng.choice([1, 4, 64]))]
    else:
        at, count = position(), int(rng.choice([4, 8]))
        changed[at : at + count] = _RUNS[int(rng.integers(0, len(_RUNS)))][:count]
    return bytes(changed)


def mutated_json(rng: np.random.Generator, value: Any) -> bytes:
    """Change a JSON value: replace one to three values, remove keys, or change bytes of its text."""
    kind = int(rng.integers(0, 10))
    if kind == 0:
        return mutated(rng, json.dumps(value).encode())
    if kind == 1:
        depth = int(rng.choice([20, 900, 100_000]))
        deep = rng.choice(["[", '{"a":'])
        return (deep * depth).encode()
    copy = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        places = [*_places(copy)]
        if not places:
            break
        container, key = places[int(rng.integers(0, len(places)))]
        if kind == 2 and isinstance(container, dict):
            container.pop(key)
        else:
            container[key] = deepcopy(HOSTILE_VALUES[int(rng.integers(0, len(HOSTILE_VALUES)))])
    return json.dumps(copy).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of each nested value; of a list, of the first three values."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield value, key
            yield from _places(one)
    elif isinstance(value, list):
        for k, one in enumerate(value[:3]):
            yield value, k
            yield from _places(one)
