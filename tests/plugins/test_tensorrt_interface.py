"""The plugin's tables of virtual functions against those of each TensorRT version, 10.3 to 11.4.

TensorRT calls a plugin by the positions of its virtual functions. No package index has the headers of
TensorRT 11, but PyPI's Python bindings are compiled with them. Classes of the bindings implement the same
interfaces, and their symbols name the functions with argument types. Needs TensorRT's headers of one version
and the bindings (``make test-engines`` installs both).
"""

import os
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from tfiseg.plugins.plugin_build import find_tensorrt_headers

BINDINGS = os.environ.get("TFISEG_TENSORRT_BINDINGS")
HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "plugins" / "csrc"
VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
PLUGIN = "tfiseg::(anonymous namespace)::Plugin"
# class of the bindings, our class, and which of its tables: one for each base class
TABLES = {
    "IPluginV3": ("tensorrt::PyIPluginV3Impl", PLUGIN, 0),
    "IPluginV3OneCore": ("tensorrt::PyIPluginV3OneCoreImpl", PLUGIN, 1),
    "IPluginV3OneBuild": ("tensorrt::PyIPluginV3OneBuildImpl", PLUGIN, 2),
    "IPluginV3OneRuntime": ("tensorrt::PyIPluginV3OneRuntimeImpl", PLUGIN, 3),
    "IPluginCreatorV3One": ("tensorrt::IPluginCreatorV3OneImpl", "tfiseg::(anonymous namespace)::Creator", 0),
}

pytestmark = pytest.mark.skipif(not BINDINGS, reason="no TensorRT bindings (make test-engines)")


@lru_cache  # several tables are read from each library
def run(*command) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def virtual_functions(library: Path, name: str) -> list[list[str]]:
    """Return the functions of each table of a class, as ``name(argument types)``, in their order."""
    symbols = [line.split(maxsplit=3) for line in run("nm", "-SC", library).splitlines()]
    tables = [s for s in symbols if s[-1] == f"vtable for {name}"]
    assert len(tables) == 1, f"{library}: {len(tables)} tables of {name}"
    start, size = (int(number, 16) for number in tables[0][:2])
    names = {int(s[0], 16): s[3] for s in symbols if len(s) == 4 and s[2] in "tTwWdDV"}
    entries: dict[int, str] = {}
    for line in run("readelf", "-rWC", library).splitlines():
        if found := re.match(r"([0-9a-f]{16})  \S+ R_X86_64_(RELATIVE|64) +(.*)", line):
            at, kind, target = int(found[1], 16), found[2], found[3]
            if start <= at < start + size:
                entries[at] = names[int(target, 16)] if kind == "RELATIVE" else target.split(maxsplit=1)[1]
    functions: list[list[str]] = []
    for at in range(start, start + size, 8):
        if at not in entries:  # the offset of the table's base class starts a table
            functions.append([])
        elif not entries[at].startswith("typeinfo for"):
            functions[-1].append(plain(entries[at]))
    return functions


def plain(function: str) -> str:
    """Return a demangled function without its class."""
    signature = function.removeprefix("non-virtual thunk to ")
    if "~" in signature:
        return "destructor"
    found = re.match(r"(.*?)(\([^()]*\)(?: const)?)(?: \[| \+ |$)", signature)
    assert found, function
    # cudaStream_t in the headers of the emulated device
    arguments = found[2].replace("CUstream_st*", "void*")
    return found[1].rsplit("::", 1)[-1] + arguments


def bindings(version: str) -> Path:
    return Path(BINDINGS) / version / "tensorrt_bindings" / "tensorrt.so"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    library = tmp_path_factory.mktemp("plugin") / "plugin.so"
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-isystem", find_tensorrt_headers()]
    emulated = HERE / "cuda_on_cpu" / "include"  # of CUDA, only types of its headers are needed
    run(*command, "-I", emulated, CSRC / "tensorrt_plugin.cpp", "-o", library)
    return library


@pytest.mark.parametrize("interface", TABLES)
@pytest.mark.parametrize("version", VERSIONS)
def test_plugin_has_the_virtual_functions_of_each_version(plugin, version, interface):
    theirs, ours, base = TABLES[interface]
    expected = virtual_functions(bindings(version), theirs)[0]
    assert len(expected) > 4
    found = virtual_functions(plugin, ours)[base]
    # the first table of a class continues with the functions of its other base classes
    assert found[: len(expected)] == expected


def test_a_further_function_is_found(plugin):
    """IPluginV3OneBuildV2 has one more function than the interface that the plugin implements."""
    _, ours, base = TABLES["IPluginV3OneBuild"]
    found = virtual_functions(plugin, ours)[base]
    extended = virtual_functions(bindings(VERSIONS[-1]), "tensorrt::PyIPluginV3OneBuildV2Impl")[0]
    assert extended[: len(found)] == found
    assert extended[len(found) :] == ["getAliasedInput(int)"]
