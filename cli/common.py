"""Shared code of all verbs: add a verb, print a report, check packages and options."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import InputError, MissingDependencyError
from .parser import Example, Parser


def add_verb(
    verbs: Any, name: str, text: str, handler: Any, examples: Sequence[Example] = (), reports: bool = True
) -> Parser:
    """Add a verb to the program.

    Args:
        text: one sentence for its help.
        handler: function from the parsed arguments to the exit status.
        reports: add ``--json``.
    """
    verb: Parser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(handler=handler, parser=verb)
    verb.set_examples(examples)
    if reports:
        verb.output.add_argument(
            "--json", action="store_true", help="print the report as JSON, without progress bars"
        )
    return verb


def require(args: argparse.Namespace, *options: str) -> None:
    """Raise InputError for required options that are missing.

    argparse would report them before a missing file; handlers call this after they checked the files.
    ``options``: long options with their values, e.g. "--output NAME.onnx".
    """
    missing = [
        option for option in options if getattr(args, option.split()[0].lstrip("-").replace("-", "_")) is None
    ]
    if missing:
        raise InputError(f"required: {' '.join(missing)}")


def command_line(*words: object) -> str:
    """Return a command line that can be pasted into a shell."""
    return shlex.join(str(word) for word in words)


def options_given(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Return those options that differ from their defaults, as on the command line, e.g. "--long-side"."""
    given = [name for name in names if getattr(args, name) != args.parser.get_default(name)]
    return [f"--{name.replace('_', '-')}" for name in given]


def reject_options(args: argparse.Namespace, names: Iterable[str], when: str) -> None:
    """Raise InputError if one of the options was given; ``when``: in which case they have no effect."""
    if given := options_given(args, names):
        raise InputError(f"{', '.join(given)}: no effect {when}; omit it")


def need(extra: str, *modules: str) -> None:
    """Raise MissingDependencyError if a module is not installed; ``extra`` installs all of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f'this verb needs {module}: pip install ".[{extra}]" in the repository'
            )
