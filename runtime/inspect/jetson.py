"""What ``tfiseg doctor`` knows of Jetsons: what each JetPack contains, and what conflicts with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .check import OK, OPTIONAL, WRONG, Check
from .installation import Facts


@dataclass(frozen=True)
class JetPack:
    """A release and the versions that it installs.

    ``l4t`` is the start of its L4T version, None if that alone doesn't identify it.
    """

    version: str
    l4t: str | None
    tensorrt: str
    cuda: str
    python: str


# docs/guide/jetson.md
JETPACKS = (
    JetPack("6.1", "36.4.0", "10.3", "12.6", "3.10"),
    JetPack("6.2", "36.4", "10.3", "12.6", "3.10"),
    JetPack("7.0", "38.2", "10.13", "13.0", "3.12"),
    JetPack("7.1", "38.4", "10.13", "13.0", "3.12"),
    JetPack("7.2", None, "10.16", "13.2", "3.12"),
)
OLDEST = (6, 1)
OLDEST_L4T = (36, 4)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: "36.4.3" is (36, 4, 3)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def jetpack_of(l4t: str, jetpack: str | None) -> JetPack | None:
    """Return the release by the package nvidia-jetpack if it is installed, else by L4T; None if unknown."""
    for one in JETPACKS:
        known, found = numbers(one.version), numbers(jetpack or "")
        by_l4t = one.l4t is not None and numbers(l4t)[: len(numbers(one.l4t))] == numbers(one.l4t)
        if found[:2] == known if jetpack else by_l4t:
            return one
    return None


def jetson_checks(facts: Facts) -> Iterator[Check]:
    """Judge a Jetson's release and what was installed beside it."""
    machine = facts.machine
    if machine.l4t is None:
        return
    installed = f"JetPack {machine.jetpack}" if machine.jetpack else "package nvidia-jetpack not installed"
    found = f"L4T {machine.l4t}, {installed}"
    release = jetpack_of(machine.l4t, machine.jetpack)
    if numbers(machine.jetpack)[:2] < OLDEST if machine.jetpack else numbers(machine.l4t)[:2] < OLDEST_L4T:
        older = f"{found}; its TensorRT is older than 10.3, which tfiseg needs for engines"
        yield Check("Jetson", WRONG, older, "flash JetPack 6.2 or later (docs/guide/jetson.md)")
        return
    if release is None:
        yield Check("Jetson", OK, f"{found}, which tfiseg has no notes on; it knows JetPack 6.1 to 7.2")
        return
    yield Check(
        "Jetson", OK, found, "" if machine.jetpack else "sudo apt install nvidia-jetpack (TensorRT, CUDA)"
    )
    if numbers(machine.python)[:2] != numbers(release.python):
        yield Check(
            "Jetson's Python",
            OPTIONAL,
            f"this is {machine.python}; TensorRT of JetPack {release.version} is for Python {release.python}",
            "/usr/bin/python3 -m venv --system-site-packages .venv",
        )
    yield from _tensorrt_beside(facts, release)


def _tensorrt_beside(facts: Facts, release: JetPack) -> Iterator[Check]:
    """TensorRT's wheels for servers hide the one that JetPack brings, and JetPack 6 can't run them."""
    wheels = sorted(name for name in facts.packages if re.match(r"tensorrt-cu\d+", name))
    if wheels and release.version.startswith("6"):
        yield Check(
            "Jetson's TensorRT",
            WRONG,
            f"{', '.join(wheels)} from PyPI hides JetPack's TensorRT {release.tensorrt} and can't run on a "
            f"Jetson with JetPack {release.version}",
            f"pip uninstall -y tensorrt {' '.join(wheels)}",
        )
