"""The parser of every verb: option groups, examples, suggestions for typing errors, and value types."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import SourceError, did_you_mean
from ..files import printable

# the input; quality of the result; output files and reports; what few users need
GROUPS = ("source", "quality", "output", "expert")
_ALIGNED = 70  # maximum length of a command with its comment on the same line


@dataclass(frozen=True)
class Example:
    """A command line for a verb's help."""

    command: str  # complete command, as a user types it
    comment: str = ""
    # what the command needs besides tfiseg and its input files, e.g. "a camera"; None: nothing
    needs: str | None = None


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions, but keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class _Group(argparse._ArgumentGroup):
    """A group whose arguments are written as in the help: name and value in one text, "--steps N"."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        *aliases, last = names
        name, _, value = last.partition(" ")
        if value:
            settings["metavar"] = value
        return super().add_argument(*aliases, name, **settings)


class Parser(argparse.ArgumentParser):
    """Parser of the program or of one verb, with the same option groups everywhere: ``GROUPS``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Formatter, **kwargs})
        self.examples: tuple[Example, ...] = ()
        self.source, self.quality, self.output, self.expert = map(self.add_argument_group, GROUPS)

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        group = _Group(self, *args, **kwargs)
        self._action_groups.append(group)
        return group

    def set_examples(self, examples: Sequence[Example]) -> None:
        """Show examples at the end of the help."""
        self.examples = tuple(examples)
        width = max((len(one.command) for one in examples if len(one.command) <= _ALIGNED), default=0)
        lines = []
        for one in examples:
            if one.comment and len(one.command) > _ALIGNED:
                lines.append(f"  # {one.comment}")
            aligned = one.comment and len(one.command) <= _ALIGNED
            lines.append(f"  {one.command:<{width}}  # {one.comment}" if aligned else f"  {one.command}")
        self.epilog = "\n".join(["examples:", *lines]) if lines else None

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line; unknown options end the program with a suggestion."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            verb = getattr(parsed, "parser", self)
            known = [option for action in verb._actions for option in action.option_strings]
            unknown = [word.partition("=")[0] for word in rest if word.startswith("-")]
            if unknown:
                verb.error(f"unknown option {unknown[0]}.{did_you_mean(unknown[0], known)}")
            verb.error(f"unexpected argument {rest[0]!r}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(
            action, f"expected one of {', '.join(known)}; got {value!r}.{did_you_mean(str(value), known)}"
        )

    def error(self, message: str) -> NoReturn:
        """Print the message and a hint to the help, and exit with status 2."""
        text = message.removeprefix("argument ")
        self.exit(2, f"{self.prog}: {text}\nRun `{self.prog} --help` for its options.\n")


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser type for integers in low..high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected an integer, {limit}, got {text!r}")
        return value

    return parse


def number(low: float, high: float | None = None, above: bool = False) -> Callable[[str], float]:
    """Return a parser type for numbers in low..high; ``above``: low itself is excluded."""

    def parse(text: str) -> float:
        limit = f"{'above' if above else 'at least'} {low:g}" if high is None else f"from {low:g} to {high:g}"
        wrong = argparse.ArgumentTypeError(f"expected a number, {limit}, got {text!r}")
        try:
            value = float(text)
        except ValueError:
            raise wrong from None
        if not low <= value <= (float("inf") if high is None else high) or (above and value == low):
            raise wrong
        return value

    return parse


def size(order: str, low: int = 16, high: int = 8192) -> Callable[[str], tuple[int, int]]:
    """Return a parser type for two sides in pixels like 640x480; ``order``: "HxW" or "WxH", for messages."""

    example = "640x480" if order == "WxH" else "480x640"

    def parse(text: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)[xX](\d+)", text)
        if found is None or not low <= min(sides := (int(found[1]), int(found[2]))) <= max(sides) <= high:
            raise argparse.ArgumentTypeError(
                f"expected {order} in pixels, {low} to {high} each, e.g. {example}, got {text!r}"
            )
        return sides

    return parse


def path(text: str) -> Path:
    """Parser type: a path. An empty text, as an unset variable of a shell gives it, is an error."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def existing_file(text: str) -> Path:
    """Parser type: a file that exists. Raises SourceError, so that a missing file is reported first."""
    if not Path(text).is_file():
        shown = printable(text)
        raise SourceError(
            f"{shown} is a folder, not a file" if Path(text).is_dir() else f"there is no file {shown}"
        )
    return Path(text)


def existing_network(text: str) -> Path:
    """Parser type: a network's file that exists. Raises SourceError, which names the command to get one."""
    if not Path(text).is_file():
        raise SourceError(
            f"there is no network {printable(text)}: `tfiseg export default -o net.onnx` writes the one "
            "that comes with tfiseg"
        )
    return Path(text)


def existing_folder(text: str) -> Path:
    """Parser type: a folder that exists. Raises SourceError, so that a missing folder is reported first."""
    if not text or not Path(text).is_dir():
        raise SourceError(f"there is no folder {printable(text) or '(an empty text)'}")
    return Path(text)
