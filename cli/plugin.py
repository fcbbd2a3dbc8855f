"""``tfiseg plugin``: build, describe or find the plugin library."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import add_verb, as_json


def add_plugin(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "plugin",
        "Build, describe or find libtfiseg_plugin.so: the operator for TensorRT and CUDA.",
        _plugin,
    )
    verb.add_argument(
        "what",
        choices=("build", "info", "path"),
        help="compile it; show build information; print the library's path",
    )
    verb.add_argument(
        "--arch",
        action="append",
        metavar="CC",
        help='build: compute capability, like 87 or "native"; repeatable (default: 87 89 90 110 120)',
    )
    verb.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="build: output file (default: in the cache folder, where tfiseg searches for it)",
    )
    verb.add_argument(
        "--without-tensorrt", action="store_true", help="build: the C API only; needs no TensorRT headers"
    )
    verb.add_argument("--force", action="store_true", help="build: even if it exists")


def _plugin(args: argparse.Namespace) -> int:
    from ..plugins.plugin_build import ARCHITECTURES, build_plugin
    from ..plugins.plugin_library import default_path, describe, plugin_info, plugin_path

    if args.what == "build":
        path = args.output or default_path()
        asked = bool(args.force or args.arch or args.without_tensorrt)
        if asked or not path.is_file():
            build_plugin(args.arch or ARCHITECTURES, path, not args.without_tensorrt)
        info = plugin_info(path)
        print(as_json(info) if args.json else describe(info))
    elif args.what == "info":
        info = plugin_info()
        print(as_json(info) if args.json else describe(info))
    else:
        path = plugin_path()
        print(as_json({"path": str(path)}) if args.json else path)
    return 0
