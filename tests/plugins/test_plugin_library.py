"""libtfiseg_plugin.so without a GPU: compilation, loading by TensorRT, and its interface.

Needs nvcc and TensorRT's headers (``make test-plugin`` installs them). Without them, the tests are skipped
unless TFISEG_TEST_PLUGIN is set.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tfiseg import MissingDependencyError, TfisegError, load_plugin
from tfiseg.cli.main import main
from tfiseg.plugins import plugin_build, plugin_library
from tfiseg.plugins.native import problem_struct
from tfiseg.plugins.plugin_build import build_plugin, find_nvcc, find_tensorrt_headers, kernel_report
from tfiseg.plugins.problem import problem_of

HERE = Path(__file__).parent
NO_CUDA, CUDA_ERROR = 8, 9


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    log: list[str] = []
    try:
        return build_plugin(output=tmp_path_factory.mktemp("plugin") / "libtfiseg_plugin.so", say=log.append)
    except MissingDependencyError as missing:
        if os.environ.get("TFISEG_TEST_PLUGIN"):
            raise
        pytest.skip(str(missing))


@pytest.fixture
def in_use(library, monkeypatch) -> Path:
    monkeypatch.setenv("TFISEG_PLUGIN", str(library))
    return library


def test_library_compiles_for_every_architecture_without_spills(library):
    facts = json.loads(library.with_suffix(".json").read_text())
    assert facts["architectures"] == ["87", "89", "90", "110", "120", "PTX"]
    kernels = {k["kernel"] for k in facts["kernels"]}
    assert {
        "section_kernel<MergeSection>",
        "section_kernel<GridSection>",
        "each_kernel<FindClasses>",
        "tiles_kernel<FitTiles>",
    } <= kernels
    assert len(facts["kernels"]) == 5 * len(kernels)
    assert [k for k in facts["kernels"] if k["spill_bytes"]] == []
    assert max(k["registers"] for k in facts["kernels"]) <= 128
    assert "warning" not in library.with_suffix(".log").read_text().lower()


def test_library_exports_its_api_only(library):
    done = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {n for n in names if not n.startswith("tfiseg_")} == {"getCreators", "setLoggerFinder"}
    needs = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "nvinfer" not in needs
    assert "cudart" not in needs


def test_autoregister_library_exports_the_c_api_only(library):
    twin = library.with_name(plugin_library.AUTOREGISTER_LIBRARY)
    done = subprocess.run(["nm", "-D", "--defined-only", twin], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    assert names
    assert {n for n in names if not n.startswith("tfiseg_")} == set()
    needs = subprocess.run(["ldd", twin], capture_output=True, text=True, check=True).stdout
    assert "nvinfer" not in needs


@pytest.fixture
def registry_program(tmp_path) -> Path:
    """Compile a program with a plugin registry that opens the library."""
    program = tmp_path / "plugin_autoregister"
    flags = ("-std=c++17", "-O1", "-Xcompiler=-Wall,-Wextra,-Werror,-Wno-deprecated-declarations,-rdynamic")
    headers = ("-isystem", find_tensorrt_headers())
    subprocess.run(
        [find_nvcc(), *flags, *headers, HERE / "plugin_autoregister.cpp", "-o", program, "-ldl"], check=True
    )
    return program


def test_opening_the_library_registers_the_plugin(library, registry_program):
    """trtexec --staticPlugins and Triton only call dlopen."""
    twin = library.with_name(plugin_library.AUTOREGISTER_LIBRARY)
    done = subprocess.run([registry_program, twin], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tfiseg::DisplacementFieldClustering 1, creates plugins\n"
    # the other library is for the registry's loader and does not register itself
    done = subprocess.run([registry_program, library], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_major_version_of_tensorrt_is_rejected(library, registry_program):
    twin = library.with_name(plugin_library.AUTOREGISTER_LIBRARY)
    done = subprocess.run([registry_program, twin, "80601"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "was built for TensorRT 10, this process has version 8" in done.stderr


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("pass", "found no TensorRT in this process"),
        ("import tensorrt_rtx", "was built for TensorRT 10, this process has version 1"),
    ],
)
def test_process_without_tensorrt_continues(library, first, message):
    if "import" in first:
        pytest.importorskip("tensorrt_rtx")
    twin = library.with_name(plugin_library.AUTOREGISTER_LIBRARY)
    code = f"import ctypes, sys; {first}; print(ctypes.CDLL(sys.argv[1]).tfiseg_api_version())"
    done = subprocess.run([sys.executable, "-c", code, twin], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert message in done.stderr


def test_plugin_interface(library, tmp_path):
    """A C++ program drives clones, formats, shapes, workspace and serialization like TensorRT."""
    program = tmp_path / "plugin_interface"
    always = ("-std=c++17", "-O1", "-Xcompiler=-Wall,-Wextra,-Werror", "-isystem", find_tensorrt_headers())
    subprocess.run([find_nvcc(), *always, HERE / "plugin_interface.cpp", "-o", program, "-ldl"], check=True)
    done = subprocess.run([program, library], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("checks passed\n")


def test_c_api_reports_a_missing_gpu(library):
    loaded = ctypes.CDLL(str(library))
    loaded.tfiseg_workspace_size.restype = ctypes.c_int64
    problem = problem_of(np.ones((40, 50), np.uint8))
    struct = problem_struct(problem)
    assert loaded.tfiseg_workspace_size(ctypes.byref(struct), 1) > 40 * 50 * 20
    struct.struct_size = 3
    assert loaded.tfiseg_workspace_size(ctypes.byref(struct), 1) == 0


def test_tensorrt_loads_the_plugin(in_use, capfd):
    """TensorRT-RTX's registry loads the library, lists the creator, creates plugins, rejects bad fields."""
    trt = pytest.importorskip("tensorrt_rtx")
    assert load_plugin(trt) == in_use
    assert load_plugin(trt) == in_use
    registry = trt.get_plugin_registry()
    assert plugin_library.creators(registry).count("tfiseg::DisplacementFieldClustering (1)") == 1
    creator = registry.get_creator("DisplacementFieldClustering", "1", "tfiseg")
    number = trt.PluginFieldType.INT32

    def created(**fields):
        given = trt.PluginFieldCollection(
            [trt.PluginField(k, np.array(v, np.int32), number) for k, v in fields.items()]
        )
        return creator.create_plugin("node", given, trt.TensorRTPhase.BUILD)

    assert created(min_area=[40], output_size=[480, 640], things=[15]) is not None
    capfd.readouterr()
    assert created(min_area=[-1]) is None
    assert "min_area must not be negative, got -1" in capfd.readouterr().err


def test_creator_accepts_the_fields_of_the_onnx_node(in_use):
    trt, onnx = pytest.importorskip("tensorrt_rtx"), pytest.importorskip("onnx")
    from plain_model import PLAIN_MODEL
    from tfiseg.export.engine.clustering_node import graft_clustering
    from tfiseg.plugins.settings import ClusterSettings

    load_plugin(trt)
    creator = trt.get_plugin_registry().get_creator("DisplacementFieldClustering", "1", "tfiseg")
    types = {field.name: field.type for field in creator.field_names}
    grafted = graft_clustering(
        onnx.load(PLAIN_MODEL), ClusterSettings(things=[15], split={15: 0.5}), output_size_hw=(480, 640)
    )
    fields = []
    for attribute in grafted.graph.node[
        -1
    ].attribute:  # TensorRT's parser reads the fields that the creator lists
        if attribute.name in types:
            kind = np.float32 if types[attribute.name] == trt.PluginFieldType.FLOAT32 else np.int32
            value = np.atleast_1d(np.array(onnx.helper.get_attribute_value(attribute), kind))
            fields.append(trt.PluginField(attribute.name, value, types[attribute.name]))
    assert len(fields) == 10
    assert (
        creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD) is not None
    )


def test_rejected_library_raises_an_error(tmp_path):
    """Runs in another process, because a registry keeps loaded plugins."""
    pytest.importorskip("tensorrt_rtx")
    broken = tmp_path / "libtfiseg_plugin.so"
    broken.write_bytes(b"no library")
    code = (
        "import tfiseg, tensorrt_rtx\ntry: tfiseg.load_plugin(tensorrt_rtx)\n"
        "except tfiseg.TfisegError as e: print(e)"
    )
    environment = os.environ | {"TFISEG_PLUGIN": str(broken)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    for part in (
        str(broken),
        "Expected: tfiseg::DisplacementFieldClustering version 1; registered: ",
        "tfiseg plugin build --force",
    ):
        assert part in done.stdout


def test_verbs(in_use, capsys):
    assert main(["plugin", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(in_use)
    assert main(["plugin", "path", "--autoregister"]) == 0
    assert capsys.readouterr().out.strip() == str(in_use.with_name(plugin_library.AUTOREGISTER_LIBRARY))
    assert main(["plugin", "info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["is_of_this_source"]
    assert info["tensorrt_headers"]
    assert main(["plugin", "info"]) == 0
    assert "none spilling" in capsys.readouterr().out


def test_missing_library_raises_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFISEG_PLUGIN", str(tmp_path / "no.so"))
    for what in (["path"], ["path", "--autoregister"], ["info"]):
        assert main(["plugin", *what]) == 1
        assert "`tfiseg plugin build`" in capsys.readouterr().err


def test_missing_tools_are_named_with_a_fix(monkeypatch, tmp_path):
    monkeypatch.setattr(plugin_build.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(plugin_build.Path, "is_file", lambda _: False)
    for find, brings in (
        (plugin_build.find_cmake, "[plugin]"),
        (find_nvcc, "[plugin]"),
        (find_tensorrt_headers, "kernel-lens"),
    ):
        with pytest.raises(MissingDependencyError) as wrong:
            find()
        assert brings in str(wrong.value)


def test_invalid_architectures_raise_an_error(tmp_path):
    with pytest.raises(TfisegError, match="compute capabilities like 87"):
        build_plugin(["sm_90"], tmp_path / "x.so")


def test_compiler_report_is_parsed():
    entry = "'_ZN6tfiseg15cluster_cuda_cu11each_kernelINS_6LabelsEEEvT_l'"
    log = f"""ptxas info    : Compiling entry function {entry} for 'sm_90'
ptxas info    : Function properties for _ZN6tfiseg
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 16 registers, used 1 barriers, 4256 bytes smem
"""
    row = {
        "kernel": "each_kernel<Labels>",
        "architecture": "90",
        "registers": 16,
        "shared_bytes": 4256,
        "spill_bytes": 16,
    }
    assert kernel_report(log) == [row]


def test_kernel_name_after_digits_of_a_hash():
    name = "_ZN6tfiseg48_GLOBAL__N__2c45c6b3_15_cluster_cuda_cu_614bf79b11each_kernelINS_8UpsampleEEEvT_l"
    log = (
        f"ptxas info    : Compiling entry function '{name}' for 'sm_87'\nptxas info    : Used 20 registers\n"
    )
    assert [row["kernel"] for row in kernel_report(log)] == ["each_kernel<Upsample>"]
