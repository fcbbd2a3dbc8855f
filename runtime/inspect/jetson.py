"""The checks of ``tfiseg doctor`` on a Jetson: the JetPack release, and conflicts with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .check import OK, OPTIONAL, WRONG, Check
from .installation import Facts


@dataclass(frozen=True)
class JetPack:
    """A release and the versions that it installs."""

    version: str
    l4t: str | None  # start of its L4T version; None if this does not identify the release
    tensorrt: str
    cuda: str
    python: str  # version of the system's Python


# docs/guide/jetson.md
JETPACKS = (
    JetPack("6.1", "36.4.0", "10.3", "12.6", "3.10"),
    JetPack("6.2", "36.4", "10.3", "12.6", "3.10"),
    JetPack("7.0", "38.2", "10.13", "13.0", "3.12"),
    JetPack("7.1", "38.4", "10.13", "13.0", "3.12"),
    JetPack("7.2", None, "10.16", "13.2", "3.12"),
)
MIN_JETPACK = (6, 1)
MIN_L4T = (36, 4)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: "36.4.3" is (36, 4, 3)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def jetpack_of(l4t: str, jetpack: str | None) -> JetPack | None:
    """Return the release by the version of nvidia-jetpack if installed, else of L4T; None if unknown."""
    for release in JETPACKS:
        prefix = numbers(release.l4t or "")
        by_l4t = release.l4t is not None and numbers(l4t)[: len(prefix)] == prefix
        if numbers(jetpack)[:2] == numbers(release.version) if jetpack else by_l4t:
            return release
    return None


def jetson_checks(facts: Facts) -> Iterator[Check]:
    """Yield the checks of a Jetson; none on other machines."""
    machine = facts.machine
    if machine.l4t is None:
        return
    installed = f"JetPack {machine.jetpack}" if machine.jetpack else "package nvidia-jetpack not installed"
    found = f"L4T {machine.l4t}, {installed}"
    release = jetpack_of(machine.l4t, machine.jetpack)
    if numbers(machine.jetpack)[:2] < MIN_JETPACK if machine.jetpack else numbers(machine.l4t)[:2] < MIN_L4T:
        older = f"{found}; its TensorRT is older than 10.3, which tfiseg needs for engines"
        yield Check("Jetson", WRONG, older, "flash JetPack 6.2 or later (docs/guide/jetson.md)")
        return
    if release is None:
        yield Check("Jetson", OK, f"{found}, which is unknown to tfiseg; it knows JetPack 6.1 to 7.2")
        return
    yield Check(
        "Jetson", OK, found, "" if machine.jetpack else "sudo apt install nvidia-jetpack (TensorRT, CUDA)"
    )
    if numbers(machine.python)[:2] != numbers(release.python):
        yield Check(
            "Jetson's Python",
            OPTIONAL,
            f"{machine.python}; TensorRT of JetPack {release.version} is for Python {release.python}",
            "/usr/bin/python3 -m venv --system-site-packages .venv",
        )
    yield from _tensorrt_conflict(facts, release)


def _tensorrt_conflict(facts: Facts, release: JetPack) -> Iterator[Check]:
    """Yield a check if PyPI's TensorRT, which JetPack 6 cannot run, hides that of JetPack."""
    wheels = sorted(name for name in facts.packages if re.match(r"tensorrt-cu\d+", name))
    if wheels and release.version.startswith("6"):
        yield Check(
            "Jetson's TensorRT",
            WRONG,
            f"{', '.join(wheels)} from PyPI hides JetPack's TensorRT {release.tensorrt} and can't run on a "
            f"Jetson with JetPack {release.version}",
            f"pip uninstall -y tensorrt {' '.join(wheels)}",
        )
