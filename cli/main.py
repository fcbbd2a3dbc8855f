"""``tfiseg``: one program with verbs. ``tfiseg VERB --help`` describes each."""

from __future__ import annotations

import argparse
import sys

from .. import __version__
from ..errors import InputError
from .build import add_build
from .compare import add_compare
from .demo import add_demo
from .ending import INTERRUPTED, Ending, ended_by_signals, finish_output, open_output, say, sentence_of
from .evaluate import add_bench, add_eval
from .export import add_export
from .live import add_run, add_view
from .parser import Example, Parser
from .plugin import add_plugin
from .segmenter_options import segmenter_settings
from .tools import add_tools
from .train import add_train


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: words of the command line without the program's name; default: those of this process.

    Returns:
        Exit status: 0 only if what was asked for was done; 1 after an error; 2 without a verb; 130 after
        Ctrl-C.

    Raises:
        SystemExit: status 0 after ``--help``; status 2 if the command line is wrong.
    """
    if argv is None:
        open_output()
    words = sys.argv[1:] if argv is None else argv
    verb = words[0] if words else ""
    with ended_by_signals(verb, is_program=argv is None) as ending:
        try:
            status = _run(words, verb, ending)
        except SystemExit as ended:  # --help, --version, a wrong command line
            raise SystemExit(finish_output(verb, int(ended.code or 0))) from None
        return finish_output(verb, status)


def _run(words: list[str], verb: str, ending: Ending) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(words)
        args.argv, args.ending = words, ending
        if not hasattr(args, "handler"):
            parser.print_help()
            return 2
        _read_settings(args)
        if not getattr(args, "opens_first", False):
            ending.work_begins()
        return int(args.handler(args))
    except KeyboardInterrupt:
        say(f"tfiseg {verb}: interrupted")
        return INTERRUPTED
    except Exception as wrong:
        if wrong is getattr(sys.stdout, "failed", None):
            return 1  # finish_output says so
        sentence = sentence_of(wrong)
        if sentence is None:
            raise
        say(f"tfiseg {verb}: {sentence}")
        return 1


def _read_settings(args: argparse.Namespace) -> None:
    """Check segmenter options before a source or network is opened; they become ``args.settings``."""
    if getattr(args, "segments", False):
        try:
            args.settings = segmenter_settings(args)
        except InputError as wrong:
            args.parser.error(str(wrong))


def _parser() -> Parser:
    parser = Parser(
        prog="tfiseg", description="Turn any semantic segmentation model into a real-time instance segmenter."
    )
    parser.add_argument("--version", action="version", version=f"tfiseg {__version__}")
    parser.set_examples(
        [
            Example("tfiseg demo", "segment a clip that comes with tfiseg"),
            Example("tfiseg run street.jpg", "segment a photo"),
            Example("tfiseg run --help", "options and examples of one verb"),
        ]
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for add in (
        add_run,
        add_demo,
        add_view,
        add_eval,
        add_bench,
        add_train,
        add_export,
        add_build,
        add_compare,
        add_plugin,
        add_tools,
    ):
        add(verbs)
    return parser
