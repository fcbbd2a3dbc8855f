"""Calls of TensorRT type-check against `tensorrt-stubs` (`make test-engines`; the library is not needed)."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STUBS = os.environ.get("TFISEG_TENSORRT_STUBS")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not STUBS, reason="tensorrt-stubs is not unpacked (make test-engines)")


def make_untyped(path):
    """Make signatures of the stubs untyped that are not valid Python (parameters called `in`)."""
    lines = path.read_text().split("\n")
    for _ in range(20):
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as wrong:
            line = lines[wrong.lineno - 1]
            name = re.match(r"( *)def (\w+)", line)
            assert name, line
            lines[wrong.lineno - 1] = (
                f"{name[1]}def {name[2]}(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
            )
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "call", "mistake"),
    [
        ("export/engine/tensorrt_builder.py", "create_builder_config", "make_builder_config"),
        ("runtime/networks/tensorrt_plan.py", "deserialize_cuda_engine", "deserialise_cuda_engine"),
    ],
)
def test_calls_of_tensorrt_match_its_stubs(tmp_path, file, call, mistake):
    for package in ("tensorrt", "tensorrt_bindings"):
        shutil.copytree(Path(STUBS) / package, tmp_path / package)
    make_untyped(tmp_path / "tensorrt_bindings" / "tensorrt.pyi")
    # a deliberate mistake must be reported; otherwise, unreadable stubs would pass
    text = (ROOT / file).read_text()
    for content, fine in ((text, True), (text.replace(call, mistake), False)):
        package = tmp_path / ("good" if fine else "bad") / "tfiseg"
        shutil.copytree(
            ROOT,
            package,
            ignore=shutil.ignore_patterns(".*", "build", "tests", "samples", "*.so", "*.onnx", "tfiseg-*"),
        )
        (package / file).write_text(content)
        module = "tfiseg." + file.removesuffix(".py").replace("/", ".")
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg"), "-p", module]
        environment = {**os.environ, "MYPYPATH": str(tmp_path)}
        run = subprocess.run(
            [*command, "--cache-dir", str(tmp_path / "cache")],
            cwd=package.parent,
            env=environment,
            capture_output=True,
            text=True,
        )
        ours = [
            line for line in run.stdout.splitlines() if line.startswith(f"tfiseg/{file}") and "error" in line
        ]
        assert (ours == []) == fine, run.stdout
        if not fine:
            assert mistake in ours[0]
