"""What comes in from files: strict JSON, and rules that say which type, range and size a value must have.

A rule is a function ``(value, where) -> value`` that returns the value or raises ``FormatError``; ``where``
is the path of the value in its file, for the message. A format is a composition of rules:

    CAMERA = record({"name": text(80), "size_wh": list_of(whole(1, 8192), 2, 2)}, {"fps": number(0, 1000)})
    camera = parse(content, CAMERA)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import FormatError

MAX_BYTES = 1 << 24
MAX_DEPTH = 24
MAX_TEXT = 10_000  # characters
MAX_KEYS = 1000
MAX_ITEMS = 1_000_000
_SHOWN = 60  # characters of a wrong value in a message
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed: they change a terminal
_LINE_BREAK = re.compile(r"[\t\n\x85\u2028\u2029]")

Rule = Callable[[Any, str], Any]


def parse(content: bytes | str, rule: Rule, max_bytes: int = MAX_BYTES) -> Any:
    """Read JSON and check it against a rule.

    Args:
        content: UTF-8 or text.
        rule: of the whole.
        max_bytes: longer content is refused before it is read.

    Raises:
        FormatError: it is no JSON, or too long or too deep; it holds NaN, infinity, a lone surrogate or a key
            twice; or it breaks the rule. The message says where.
    """
    return rule(_strict_json(content, max_bytes), "")


def read_file(path: Path, rule: Rule, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file, see ``parse``.

    Raises:
        FormatError: as ``parse``, or it is no file that can be read.
    """
    return parse(bytes_of(path, max_bytes), rule, max_bytes)


def bytes_of(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file; raises FormatError for other kinds of files and where it is too long."""
    try:
        if not path.is_file():
            raise FormatError("it is no file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise FormatError(f"it can't be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > max_bytes:
        raise FormatError(f"it is longer than {max_bytes} bytes")
    return content


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _strict_json(content: bytes | str, max_bytes: int) -> Any:
    if len(content) > max_bytes:
        raise FormatError(f"it is longer than {max_bytes} bytes")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError(f"it is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise FormatError(f"it is no JSON ({error})") from error
    _check_tree(value)
    return value


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"{name} is no number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FormatError("an object has the same key twice")
    return found


def _check_tree(value: Any) -> None:
    """Depth, and texts and numbers that nothing below can use."""
    todo = [(value, 1)]
    while todo:
        one, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(one, str):
            _check_text(one, "a text")
        elif isinstance(one, float) and not math.isfinite(one):
            raise FormatError("a number is too large")
        elif isinstance(one, dict):
            for key in one:
                _check_text(key, "a key")
            todo += [(child, depth + 1) for child in one.values()]
        elif isinstance(one, list):
            todo += [(child, depth + 1) for child in one]


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where} is no valid text: {_shown(value)}") from None


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _refuse(where: str, expected: str, value: Any) -> NoReturn:
    raise FormatError(f"{where or 'it'} must be {expected}, got {_shown(value)}")


# -- rules


def text(most: int = MAX_TEXT, pattern: str | None = None, lines: bool = False) -> Rule:
    """Text of at most so many characters without control characters.

    Args:
        most: characters.
        pattern: regular expression that the whole text must match.
        lines: whether it may hold line feeds and tabs.
    """

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > most:
            _refuse(where, f"text of at most {most} characters", value)
        if _CONTROL.search(value) or (not lines and _LINE_BREAK.search(value)):
            _refuse(where, "text without control characters", value)
        if pattern is not None and re.fullmatch(pattern, value) is None:
            _refuse(where, f"text like {pattern}", value)
        return value

    return check


def whole(low: int, high: int) -> Rule:
    """An integer in low..high."""

    def check(value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            _refuse(where, f"an integer in {low}..{high}", value)
        return value

    return check


def number(low: float, high: float, above: bool = False) -> Rule:
    """A number in low..high; ``above``: low itself is excluded. Integers become floats."""
    expected = "a positive number" if above and low == 0 else f"a number in {low:g}..{high:g}"

    def check(value: Any, where: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            _refuse(where, expected, value)
        return float(value)

    return check


def boolean(value: Any, where: str) -> bool:
    """Rule: true or false."""
    if not isinstance(value, bool):
        _refuse(where, "true or false", value)
    return value


def only(*known: Any) -> Rule:
    """One of these values."""

    def check(value: Any, where: str) -> Any:
        if not any(type(value) is type(one) and value == one for one in known):
            _refuse(where, " or ".join(map(repr, known)), value)
        return value

    return check


def optional(rule: Rule) -> Rule:
    """null, or what the rule says."""
    return lambda value, where: None if value is None else rule(value, where)


def either(expected: str, *rules: Rule) -> Rule:
    """What one of several rules says; ``expected`` names them all in the message."""

    def check(value: Any, where: str) -> Any:
        for rule in rules:
            try:
                return rule(value, where)
            except FormatError:
                continue
        _refuse(where, expected, value)

    return check


def list_of(rule: Rule, least: int = 0, most: int = MAX_ITEMS) -> Rule:
    """A list of least..most items that the rule describes."""

    def check(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            count = f"{least}" if least == most else f"{least} to {most}"
            got = f"{len(value)} items" if isinstance(value, list) else value
            _refuse(where, f"a list of {count} items", got)
        return [rule(one, f"{where}[{k}]") for k, one in enumerate(value)]

    return check


def map_of(rule: Rule, key: Rule | None = None, most: int = MAX_KEYS) -> Rule:
    """An object whose values the rule describes, whatever its keys; ``key``: rule of these."""

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            _refuse(where, f"an object of at most {most} keys", value)
        for name in value if key is not None else ():
            assert key is not None
            key(name, f"a key of {where or 'it'}")
        return {name: rule(one, _inside(where, name)) for name, one in value.items()}

    return check


def record(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """An object with these keys. Others are kept as they are: a newer version may have written them."""
    rules = {**required, **(optional or {})}

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > MAX_KEYS:
            _refuse(where, "an object", value)
        missing = [_inside(where, name) for name in required if value.get(name) is None]
        clean = dict(value)
        for name in rules:
            if name not in value or (name in required and value[name] is None):
                continue
            try:
                clean[name] = rules[name](value[name], _inside(where, name))
            except _MissingError as inside:  # a message names all that is missing
                missing += inside.names
        if missing:
            raise _MissingError(missing)
        return clean

    return check


class _MissingError(FormatError):
    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"{', '.join(names)} missing")
        self.names = names

    def __reduce__(self) -> tuple[Any, ...]:
        return _MissingError, (self.names,)


def _inside(where: str, name: str) -> str:
    name = name if name.isidentifier() else _shown(name)
    return f"{where}.{name}" if where else name
