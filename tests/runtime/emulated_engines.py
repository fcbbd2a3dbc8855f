"""Engines of the emulated GPU, which contain ONNX files, for tests of sessions and of view refinement."""

import gc
import json
from pathlib import Path

import emulated_gpu
import numpy as np
import onnxruntime
import pytest
from tfiseg.runtime.networks import engine_file, onnx_session
from tfiseg.runtime.networks.engine_file import write_engine
from tfiseg.runtime.networks.machine import Machine
from tfiseg.runtime.networks.model_info import METADATA_KEY

MACHINE = Machine(
    "linux-x86_64", "3.12.3", gpu="An RTX GPU", compute_capability="8.9", tensorrt_rtx="1.7.1.116"
)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_file, "this_machine", lambda: MACHINE)
    # engines preprocess in the graph, so for bit-exact comparison ONNX Runtime does the same
    monkeypatch.setattr(onnx_session, "split_preprocessing", lambda model: None)
    yield emulated_gpu.Gpu()
    gc.collect()  # frees sessions that a test did not close: half a gigabyte each


def engine_of(model, folder, name="net.engine"):
    """Write an engine whose plan is the ONNX file itself, which the emulated TensorRT reads."""
    metadata = json.loads(
        onnxruntime.InferenceSession(model).get_modelmeta().custom_metadata_map[METADATA_KEY]
    )
    if "view_px" in metadata:  # as in instance_engine.py
        metadata["outline_px"] = metadata["view_px"]
    record = {
        "built_from": {"onnx": str(model), "command": "tfiseg build net.onnx -o net.engine"},
        "built_with": {
            "flavour": "tensorrt_rtx",
            "version": "1.7.1.116",
            "platform": "linux-x86_64",
            "gpu": None,
            "compute_capability": None,
        },
        "precision": {},
        "model": {"class_names": [], "things": [], **metadata},
        "plugin": None,
    }
    path = folder / name
    write_engine(path, Path(model).read_bytes(), record)
    return path


def same(a, b):
    assert np.array_equal(a.label_map, b.label_map)
    assert np.array_equal(a.semantic_map, b.semantic_map)
    assert np.array_equal(a.class_id, b.class_id)
    assert np.array_equal(a.box_xyxy, b.box_xyxy)
    assert np.array_equal(a.area, b.area)
    np.testing.assert_allclose(a.score, b.score, atol=1e-6)
