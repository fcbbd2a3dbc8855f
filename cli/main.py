"""``tfiseg``: one program with verbs. ``tfiseg VERB --help`` says what each does."""

from __future__ import annotations

import argparse
import io
import os
import sys

from .. import __version__
from ..errors import TfisegError
from .build import add_build, add_compare
from .demo import add_demo
from .evaluate import add_bench, add_eval
from .export import add_export
from .live import add_run, add_view
from .plugin import add_plugin
from .tools import add_tools
from .train import add_train


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status is 0 only if what was asked was done."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names that aren't valid text are shown with escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    args = parser.parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    if not hasattr(args, "handler"):
        parser.print_help()
        return 2
    try:
        return int(args.handler(args))
    except TfisegError as wrong:
        print(f"tfiseg {args.verb}: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tfiseg {args.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `tfiseg ... | head`: nobody reads on
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - so that the interpreter's last flush finds an open file
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfiseg", description="Real-time instance masks from any semantic segmentation network."
    )
    parser.add_argument("--version", action="version", version=f"tfiseg {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_run(verbs)
    add_demo(verbs)
    add_view(verbs)
    add_eval(verbs)
    add_bench(verbs)
    add_train(verbs)
    add_export(verbs)
    add_build(verbs)
    add_compare(verbs)
    add_plugin(verbs)
    add_tools(verbs)
    return parser
