"""The verb ``doctor``."""

from __future__ import annotations

import argparse
from typing import Any

from .cli_common import add_verb, as_json


def add_doctor(verbs: Any) -> None:
    add_verb(verbs, "doctor", "Check this machine: what is here, what is missing, what is wrong, and the command that mends it.", _doctor)


def _doctor(args: argparse.Namespace) -> int:
    from .runtime.doctor import as_dict, describe, examine, failed, look

    facts = look()
    checks = examine(facts)
    print(as_json(as_dict(facts, checks)) if args.json else describe(facts, checks))
    return 1 if failed(checks) else 0
