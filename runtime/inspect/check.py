"""One line of ``tfiseg doctor``."""

from __future__ import annotations

from dataclasses import dataclass

OK, OPTIONAL, MISSING, WRONG = "ok", "optional", "missing", "wrong"


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    state: str  # "ok", "optional" (not installed and not required), "missing" or "wrong"
    found: str
    fix: str = ""  # command or instruction that improves the state; "" if there is none
