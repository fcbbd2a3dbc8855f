"""``tfiseg plugin``: build, describe or find the plugin library."""

from __future__ import annotations

import argparse
from typing import Any

from ..schema import to_json
from .common import add_verb, reject_options
from .parser import Example, path


def add_plugin(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "plugin",
        "Build, describe or find libtfiseg_plugin.so: the operator for TensorRT and CUDA.",
        _plugin,
        [
            Example(
                "tfiseg plugin build --arch native", "for the GPU of this machine", needs="nvcc and a GPU"
            ),
            Example("tfiseg plugin build --without-tensorrt", "the C API alone", needs="nvcc"),
            Example("tfiseg plugin info", "", needs="a built plugin"),
        ],
    )
    verb.source.add_argument(
        "what",
        choices=("build", "info", "path"),
        help="build: compile it; info: show build information; path: print the library's path",
    )
    verb.expert.add_argument(
        "--arch CC",
        action="append",
        help='build: compute capability, e.g. 87 or "native"; repeatable (default: 87 89 90 110 120)',
    )
    verb.output.add_argument(
        "--output FILE",
        type=path,
        help="build: path of the library (default: a cache folder, where tfiseg looks for it)",
    )
    verb.expert.add_argument(
        "--without-tensorrt", action="store_true", help="build: only the C API; needs no TensorRT headers"
    )
    verb.expert.add_argument(
        "--autoregister",
        action="store_true",
        help="path: of the library that registers the plugin when it is opened, for trtexec and Triton",
    )
    verb.expert.add_argument("--force", action="store_true", help="build: even if the library exists")


def _plugin(args: argparse.Namespace) -> int:
    from ..plugins.plugin_build import ARCHITECTURES, build_plugin
    from ..plugins.plugin_library import autoregister_path, default_path, describe, plugin_info, plugin_path

    effect = f"with `tfiseg plugin {args.what}`"
    if args.what != "path":
        reject_options(args, ("autoregister",), effect)
    if args.what == "build":
        path = args.output or default_path()
        if args.force or args.arch or args.without_tensorrt or not path.is_file():
            build_plugin(args.arch or ARCHITECTURES, path, not args.without_tensorrt)
        info = plugin_info(path)
        print(to_json(info) if args.json else describe(info))
        return 0
    reject_options(args, ("arch", "output", "without_tensorrt", "force"), effect)
    if args.what == "info":
        info = plugin_info()
        print(to_json(info) if args.json else describe(info))
    else:
        path = autoregister_path() if args.autoregister else plugin_path()
        print(to_json({"path": str(path)}) if args.json else path)
    return 0
