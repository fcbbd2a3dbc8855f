"""One line of ``tfiseg doctor``."""

from __future__ import annotations

from dataclasses import dataclass

OK, OPTIONAL, MISSING, WRONG = "ok", "optional", "missing", "wrong"


@dataclass(frozen=True)
class Check:
    """One line: ``state`` is "ok", "optional" (not here, and nothing asks for it), "missing" or "wrong";
    ``mend`` what changes that."""

    name: str
    state: str
    found: str
    mend: str = ""
