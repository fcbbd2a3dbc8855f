"""``tfiseg``: one program with verbs. ``tfiseg VERB --help`` describes each."""

from __future__ import annotations

import argparse
import sys

from .. import __version__
from ..errors import InputError
from .build import add_build
from .compare import add_compare
from .demo import add_demo
from .evaluate import add_bench, add_eval
from .export import add_export
from .live import add_run, add_view
from .parser import Example, Parser
from .plugin import add_plugin
from .segmenter_options import segmenter_settings
from .shutdown import (
    INTERRUPTED,
    Shutdown,
    error_message,
    finish_output,
    handle_signals,
    open_missing_streams,
    open_output,
    print_error,
)
from .tools import add_tools
from .train import add_train


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: words of the command line without the program's name; default: those of this process.

    Returns:
        Exit status: 0 on success; 1 after an error; 2 without a verb; 130 after Ctrl-C.

    Raises:
        SystemExit: status 0 after ``--help``; status 2 if the command line is wrong.
    """
    if argv is None:
        open_missing_streams()
        open_output()
    words = sys.argv[1:] if argv is None else argv
    verb = words[0] if words else ""
    with handle_signals(verb, is_program=argv is None) as shutdown:
        try:
            status = _run(words, verb, shutdown)
        except SystemExit as ended:  # --help, --version, a wrong command line
            raise SystemExit(finish_output(verb, int(ended.code or 0))) from None
        return finish_output(verb, status)


def _run(words: list[str], verb: str, shutdown: Shutdown) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(words)
        args.argv, args.shutdown = words, shutdown
        if not hasattr(args, "handler"):
            parser.print_help()
            return 2
        _read_settings(args)
        if not getattr(args, "opens_first", False):
            shutdown.start_work()
        return int(args.handler(args))
    except KeyboardInterrupt:
        print_error(f"tfiseg {verb}: interrupted")
        return INTERRUPTED
    except Exception as wrong:
        if wrong is getattr(sys.stdout, "failed", None):
            return 1  # finish_output reports it
        message = error_message(wrong)
        if message is None:
            raise
        print_error(f"tfiseg {verb}: {message}")
        return 1


def _read_settings(args: argparse.Namespace) -> None:
    """Set ``args.settings`` from segmenter options, before a source or network is opened."""
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
