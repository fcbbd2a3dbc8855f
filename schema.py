"""Validation of JSON from files: rules for the type, range and size of each value.

A rule is a function ``(value, where) -> value`` that returns the value or raises ``FormatError``; ``where``
is the path of the value in its file, for the message. A format is a composition of rules:

    CAMERA = record({"name": text(80), "size_wh": list_of(integer(1, 8192), 2, 2)}, {"fps": number(0, 1000)})
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
_MAX_SHOWN = 60  # characters of an invalid value in a message
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # except tab and line feed; they control terminals
_LINE_BREAK = re.compile(r"[\t\n\x85\u2028\u2029]")

Rule = Callable[[Any, str], Any]


def parse(content: bytes | str, rule: Rule, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON and check it against a rule.

    Args:
        content: UTF-8 or text.
        max_bytes: maximum length.

    Raises:
        FormatError: the content is no JSON, is too long or too deep, contains NaN, infinity, a lone surrogate
            or a duplicate key, or violates the rule. The message states where.
    """
    return rule(_strict_json(content, max_bytes), "")


def read_file(path: Path, rule: Rule, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file, see ``parse``; raises FormatError."""
    return parse(bytes_of(path, max_bytes), rule, max_bytes)


def bytes_of(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file, or raise FormatError, also for longer files."""
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
    """Return standard JSON, in which NaN and infinity become null."""
    return json.dumps(_replace_nan(value), indent=indent, allow_nan=False)


def _replace_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return value


def _strict_json(content: bytes | str, max_bytes: int) -> Any:
    if len(content) > max_bytes:
        raise FormatError(f"it is longer than {max_bytes} bytes")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_make_object)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError(f"it is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise FormatError(f"it is no JSON ({error})") from error
    _check_tree(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise FormatError(f"{name} is no number in JSON")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FormatError("an object has the same key twice")
    return found


def _check_tree(value: Any) -> None:
    """Raise FormatError if a value is nested too deep, is infinite, or is no valid text."""
    todo = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(item, str):
            _check_text(item, "a text")
        elif isinstance(item, float) and not math.isfinite(item):
            raise FormatError("a number is too large")
        elif isinstance(item, dict):
            for key in item:
                _check_text(key, "a key")
            todo += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list):
            todo += [(child, depth + 1) for child in item]


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where} is no valid text: {_shorten(value)}") from None


def _shorten(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _refuse(where: str, expected: str, value: Any) -> NoReturn:
    raise FormatError(f"{where or 'it'} must be {expected}, got {_shorten(value)}")


# -- rules


def text(maximum: int = MAX_TEXT, pattern: str | None = None, lines: bool = False) -> Rule:
    """Return the rule of a text without control characters; ``pattern`` must match all of it."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > maximum:
            _refuse(where, f"text of at most {maximum} characters", value)
        if _CONTROL.search(value) or (not lines and _LINE_BREAK.search(value)):
            _refuse(where, "text without control characters", value)
        if pattern is not None and re.fullmatch(pattern, value) is None:
            _refuse(where, f"text like {pattern}", value)
        return value

    return check


def integer(low: int, high: int) -> Rule:
    """Return the rule of an integer in low..high."""

    def check(value: Any, where: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            _refuse(where, f"an integer in {low}..{high}", value)
        return value

    return check


def number(low: float, high: float, above: bool = False) -> Rule:
    """Return the rule of a float or integer in low..high; ``above`` excludes low."""
    expected = "a positive number" if above and low == 0 else f"a number in {low:g}..{high:g}"

    def check(value: Any, where: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            _refuse(where, expected, value)
        return float(value)

    return check


def boolean(value: Any, where: str) -> bool:
    """Check that a value is true or false (a rule)."""
    if not isinstance(value, bool):
        _refuse(where, "true or false", value)
    return value


def one_of(*allowed: Any) -> Rule:
    """Return the rule of a value that equals one of these."""

    def check(value: Any, where: str) -> Any:
        if not any(type(value) is type(item) and value == item for item in allowed):
            _refuse(where, " or ".join(map(repr, allowed)), value)
        return value

    return check


def optional(rule: Rule) -> Rule:
    """Return the rule of null or a value of the given rule."""
    return lambda value, where: None if value is None else rule(value, where)


def either(expected: str, *rules: Rule) -> Rule:
    """Return the rule of a value of any of these rules; ``expected`` describes it in the message."""

    def check(value: Any, where: str) -> Any:
        for rule in rules:
            try:
                return rule(value, where)
            except FormatError:
                continue
        _refuse(where, expected, value)

    return check


def list_of(rule: Rule, minimum: int = 0, maximum: int = MAX_ITEMS) -> Rule:
    """Return the rule of a list of minimum..maximum items of the given rule."""

    def check(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not minimum <= len(value) <= maximum:
            count = f"{minimum}" if minimum == maximum else f"{minimum} to {maximum}"
            got = f"{len(value)} items" if isinstance(value, list) else value
            _refuse(where, f"a list of {count} items", got)
        return [rule(item, f"{where}[{k}]") for k, item in enumerate(value)]

    return check


def map_of(rule: Rule, key: Rule | None = None, maximum: int = MAX_KEYS) -> Rule:
    """Return the rule of an object with any keys of rule ``key`` and values of rule ``rule``."""

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > maximum:
            _refuse(where, f"an object of at most {maximum} keys", value)
        for name in value if key is not None else ():
            assert key is not None
            key(name, f"a key of {where or 'it'}")
        return {name: rule(item, _path_of(where, name)) for name, item in value.items()}

    return check


def record(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """Return the rule of an object with these keys; other keys, of newer versions, are kept."""
    rules = {**required, **(optional or {})}

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > MAX_KEYS:
            _refuse(where, "an object", value)
        missing = [_path_of(where, name) for name in required if value.get(name) is None]
        clean = dict(value)
        for name in rules:
            if name not in value or (name in required and value[name] is None):
                continue
            try:
                clean[name] = rules[name](value[name], _path_of(where, name))
            except _MissingError as error:  # one message names all missing keys
                missing += error.names
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


def _path_of(where: str, name: str) -> str:
    name = name if name.isidentifier() else _shorten(name)
    return f"{where}.{name}" if where else name
