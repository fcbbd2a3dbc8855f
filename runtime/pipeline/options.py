"""Checks of a pipeline's options."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from ...errors import InputError

POLICIES = ("latest", "all", "every_nth")
MAX_WORKERS = 64  # each has a thread, a frame and a network's working memory


def check_options(policy: str | None, nth: int, workers: int, max_frames: int | None) -> None:
    """Raise InputError if an option is out of range, or has no effect with the other options."""
    if policy is not None and policy not in POLICIES:
        raise InputError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if not _is_whole(nth) or nth < 1 or (nth > 1 and policy != "every_nth"):
        raise InputError(
            f'nth must be an integer, at least 1, and needs policy="every_nth" if above 1; got {nth!r} '
            f"with policy={policy!r}"
        )
    if not _is_whole(workers) or not 1 <= workers <= MAX_WORKERS:
        raise InputError(f"workers must be an integer in 1..{MAX_WORKERS}, got {workers!r}")
    if max_frames is not None and (not _is_whole(max_frames) or max_frames < 1):
        raise InputError(f"max_frames must be an integer, at least 1, got {max_frames!r}")


def check_callables(segmenter: Any, tracker: Any, sinks: Any) -> None:
    """Raise InputError if the segmenter, the tracker or a sink is not callable."""
    for name, value in (("segmenter", segmenter), ("tracker", tracker)):
        if value is not None and not callable(value):
            raise InputError(f"{name} must be callable, got {type(value).__name__}")
    if not isinstance(sinks, Sequence) or not all(callable(getattr(sink, "write", None)) for sink in sinks):
        raise InputError(f"sinks must be a list of objects with write(result), got {sinks!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
