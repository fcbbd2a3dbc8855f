"""The clustering operator inside an engine: it clusters as it was built to, whatever is asked for later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_INSTANCES = 256  # what `tfiseg build` gives it, if the record of an older engine doesn't say


@dataclass(frozen=True)
class BuiltInOperator:
    """How an operator inside an engine clusters.

    Args:
        things: classes that it clusters.
        split: "auto", a ratio, or ratios by class id.
        min_area: smallest instance in pixels that it gives.
        max_instances: largest number of instances that it gives.
        heads: whether it uses instance heads.
    """

    things: tuple[int, ...]
    split: Any
    min_area: int
    max_instances: int
    heads: bool

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> BuiltInOperator:
        """Read it from an engine's record; of older ones, from the model's metadata, as the build does."""
        model = record["model"]
        settings = model.get("clustering", {})
        said = record.get("operator") or {}
        return BuiltInOperator(
            tuple(said.get("things", model["things"])),
            said.get("split", settings.get("split", "auto")),
            said.get("min_area", settings.get("min_area", 0)),
            said.get("max_instances", MAX_INSTANCES),
            said.get("heads", "without_heads" in model or "merge_rule" in settings),
        )
