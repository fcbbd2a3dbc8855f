"""Test our calls of TensorRT against the Python bindings of each version for Jetsons and desktops.

`make test-engines` unpacks the wheels of the bindings. The tests do not need TensorRT, because a library with
empty entry points is enough to import the bindings. mypy checks our calls with stubs of their signatures.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WHEELS = os.environ.get("TFISEG_TENSORRT_BINDINGS")
ROOT = Path(__file__).parents[3]
VERSIONS = {
    "10.3.0": "Jetson Orin, JetPack 6.1 and 6.2",
    "10.13.3.9": "Jetson Thor, JetPack 7.0 and 7.1",
    "10.16.1.11": "Jetson, JetPack 7.2",
    "11.4.0.106": "desktop",
}
FILES = ("export/engine/tensorrt_builder.py", "runtime/networks/tensorrt_plan.py")
# stubs from signatures lack the buffer protocol and have SupportsInt for every integer
IMPRECISE = (
    'type "IHostMemory"; expected "Buffer"',
    "SupportsInt",
    'of "dict" matches argument types "DataType"',
)

pytestmark = pytest.mark.skipif(not WHEELS, reason="TensorRT's bindings are not unpacked (make test-engines)")


def run(*command, cwd=None, **environment):
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def remove_invalid_parameters(stub):
    """Replace signatures that Python cannot parse, because a parameter is called `in`."""
    lines = stub.read_text().split("\n")
    for _ in lines:
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
    stub.write_text("\n".join(lines))


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: f"TensorRT {version}")
def bindings(request, tmp_path_factory) -> Path:
    """Return a folder with an importable `tensorrt` and its stubs."""
    folder = tmp_path_factory.mktemp("bindings")
    package = folder / "tensorrt_bindings"
    shutil.copytree(Path(WHEELS) / request.param / "tensorrt_bindings", package)
    undefined = run("nm", "-D", "-u", package / "tensorrt.so").stdout.split("\n")
    entry_points = [
        name for line in undefined if (name := line.strip().removeprefix("U ")) and name.isidentifier()
    ]
    entry_points = [name for name in entry_points if not name.startswith(("Py", "_Py"))]
    source = folder / "entry_points.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in entry_points))
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{library}.so.{request.param.split('.')[0]}"
        done = run("cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", package / name)
        assert done.returncode == 0, done.stderr
    (folder / "tensorrt").mkdir()
    exports = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (folder / "tensorrt" / "__init__.py").write_text(exports)
    command = [sys.executable, "-m", "pybind11_stubgen", "tensorrt_bindings", "--ignore-all-errors"]
    run(*command, "-o", folder / "stubs", PYTHONPATH=folder)
    stub = folder / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
    remove_invalid_parameters(stub)
    (folder / "stubs" / "tensorrt").mkdir()
    stub.rename(folder / "stubs" / "tensorrt" / "__init__.pyi")
    return folder


def call_errors(bindings, folder, cache):
    """Return mypy's errors in the two modules that call TensorRT."""
    modules = [f"tfiseg.{file.removesuffix('.py').replace('/', '.')}" for file in FILES]
    packages = [word for module in modules for word in ("-p", module)]
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "setup.cfg", "--cache-dir", cache]
    text = run(*command, *packages, cwd=folder, MYPYPATH=bindings / "stubs").stdout
    errors = [line for line in text.splitlines() if line.startswith(tuple(f"tfiseg/{f}:" for f in FILES))]
    assert "checked" in text, text  # mypy ran to the end
    return [
        line for line in errors if "error:" in line and not any(imprecise in line for imprecise in IMPRECISE)
    ]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "build", "tests", "samples", "*.so", "*.onnx", "tfiseg-*")
    shutil.copytree(ROOT, folder / "tfiseg", ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_each_call_exists_in_each_version(bindings, package, cache):
    assert call_errors(bindings, package, cache) == []


@pytest.mark.parametrize(
    ("file", "call", "invalid_call"),
    [
        (FILES[0], "create_builder_config", "make_builder_config"),
        (FILES[1], "get_tensor_mode", "tensor_mode"),
    ],
)
def test_an_invalid_call_is_found(bindings, package, cache, file, call, invalid_call):
    path = package / "tfiseg" / file
    text = path.read_text()
    path.write_text(text.replace(call, invalid_call))
    try:
        assert any(invalid_call in line for line in call_errors(bindings, package, cache))
    finally:
        path.write_text(text)


PROGRAM = """
from tfiseg import EngineError
from tfiseg.export.engine import tensorrt_builder
from tfiseg.export.engine.precision_proof import LayerReport
from tfiseg.export.engine.tensorrt_flavors import find_flavor
from tfiseg.runtime.networks import tensorrt_plan

kind = find_flavor("tensorrt")
print(kind.version)
settings = tensorrt_builder.BuildSettings()
try:
    tensorrt_builder.build_plan(b"", kind, settings)
except EngineError as wrong:
    print(wrong)
logger = tensorrt_builder._logger(LayerReport())
logger.log(kind.module.ILogger.ERROR, "an error")
assert tensorrt_plan._dtype(kind.module, kind.module.float16).itemsize == 2
"""


def test_a_tensorrt_that_cannot_start_raises_an_error(bindings):
    done = run(
        sys.executable, "-c", PROGRAM, PYTHONPATH=f"{bindings}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    assert done.returncode == 0, done.stderr
    version, error = done.stdout.splitlines()
    assert version in VERSIONS
    assert error.startswith(f"tensorrt {version} can't start here: ")
    assert "tfiseg doctor" in error
