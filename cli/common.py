"""What the program's verbs share: how one is declared, how a report is printed, how a missing package is
named."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
from typing import Any

from ..errors import MissingDependencyError


def add_verb(verbs: Any, name: str, text: str, handler: Any, reports: bool = True) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(handler=handler)
    if reports:
        verb.add_argument("--json", action="store_true", help="print the report as JSON, and no progress bar")
    return verb


def as_json(report: dict[str, Any]) -> str:
    """The report as JSON; NaN, which JSON hasn't, becomes null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(clean(report))


def need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(f'this verb needs {module}: pip install ".[{extra}]" in the repository')


def size_hw(text: str) -> tuple[int, int]:
    """(height, width) in pixels from text like 480x640."""
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if found is None or not 16 <= min(sides := (int(found[1]), int(found[2]))) <= max(sides) <= 8192:
        raise argparse.ArgumentTypeError(
            f"wanted HEIGHTxWIDTH in pixels, 16 to 8192 each, like 512x1024, got {text!r}"
        )
    return sides
