"""One line of ``tfiseg doctor``."""

from __future__ import annotations

from dataclasses import dataclass

OK, OPTIONAL, MISSING, WRONG = "ok", "optional", "missing", "wrong"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        state: "ok", "optional" (not installed and not required), "missing" or "wrong".
        fix: command or instruction that improves the state; "" if there is none.
    """

    name: str
    state: str
    found: str
    fix: str = ""
