"""The clustering operator inside an engine, whose settings are fixed when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_INSTANCES = 256  # default of `tfiseg build`, for older engines whose metadata has no value


@dataclass(frozen=True)
class BuiltInOperator:
    """Settings of the operator inside an engine."""

    things: tuple[int, ...]  # classes that it clusters
    split: Any  # "auto", a ratio, or ratios by class id
    min_area: int  # minimum area of an instance in pixels
    max_instances: int  # maximum number of instances per frame
    heads: bool  # whether it uses instance heads

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> BuiltInOperator:
        """Read the settings from an engine's metadata, or the model's for older ones."""
        model = record["model"]
        settings = model.get("clustering", {})
        given = record.get("operator") or {}
        return BuiltInOperator(
            tuple(given.get("things", model["things"])),
            given.get("split", settings.get("split", "auto")),
            given.get("min_area", settings.get("min_area", 0)),
            given.get("max_instances", MAX_INSTANCES),
            given.get("heads", "without_heads" in model or "merge_rule" in settings),
        )
