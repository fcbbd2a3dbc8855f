"""Export third-party networks, build them in fp16 and int8 with TensorRT-RTX, and compare results."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tfiseg
from onnx import TensorProto, helper, numpy_helper
from tfiseg.cli.main import main

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (make test-engines)")
# `make demo` installs TensorRT-RTX without onnxsim
pytest.importorskip("onnxsim", reason="the extra export is not installed (make test-engines)")

NODE = helper.make_node
# file, class names, photos, minimum agreement of labels in int8 with four calibration frames
NETWORKS = [
    ("deeplabv3_mnv2_pascal_quant.lowres", "voc21", "voc2007", 97),
    ("deeplab_mobilenet_edgetpu_slim_cityscapes_quant.lowres", "cityscapes19", "pennfudan", 80),
    ("selfie_segmentation", "person2", "pennfudan", 90),
]


def build_engine(model: Path, precision: str, frames: Path, gate: list[str]) -> dict:
    engine = model.with_name(f"{model.stem}-{precision}.engine")
    command = ["build", str(model), "-o", str(engine), "--target", "rtx", "--precision", precision]
    assert main([*command, "--frames", str(frames), *gate, "--json"]) == 0
    return json.loads(Path(f"{engine}.json").read_text())


def link_photos(folder: Path, photos: Path, count: int) -> Path:
    folder.mkdir()
    for path in sorted(photos.iterdir())[:count]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.shared
@pytest.mark.parametrize(("file", "names", "photos", "min_agreement"), NETWORKS, ids=lambda v: str(v)[:12])
def test_every_network_is_built_in_both_precisions(file, names, photos, min_agreement, tmp_path, shared):
    frames = link_photos(tmp_path / "frames", shared / "data" / "eval" / photos / "images", 8)
    model = tmp_path / "net.onnx"
    command = ["export", str(shared / "models" / f"{file}.onnx"), "-o", str(model), "--class-names", names]
    assert main([*command, "--photos", str(frames), "--json"]) == 0
    found = tfiseg.Segmenter(model)(sorted(frames.iterdir())[0])
    assert found.semantic_map.any()
    half = build_engine(model, "fp16", frames, ["--gate-frames", "4"])
    assert half["precision"]["layers"]["fp16"] == sum(half["precision"]["layers"].values()) > 50
    assert half["gate"]["label_agreement"] > 99.5
    gate = ["--calibration-frames", "4", "--gate-frames", "4", "--auto-exclude", "0"]
    thresholds = ["--min-agreement", str(min_agreement), "--min-pq", "0"]
    int8 = build_engine(model, "int8", frames, [*gate, *thresholds])
    assert int8["precision"]["layers"]["int8"] > 40
    assert int8["gate"]["label_agreement"] >= min_agreement


@pytest.mark.parametrize("end", ["Cast", "DequantizeLinear"])
def test_network_with_uint8_input_is_built(end, frames, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(3, 3, 4, 4)).astype(np.float32) / 64,
        "s": np.float32(0.5),
        "z": np.uint8(128),
    }
    first = {
        "Cast": NODE("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        "DequantizeLinear": NODE("DequantizeLinear", ["x", "s", "z"], ["f"]),
    }[end]
    graph = helper.make_graph(
        [
            NODE("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
            NODE(first.op_type, ["t", *first.input[1:]], ["f"], **{a.name: a.i for a in first.attribute}),
            NODE("Conv", ["f", "w"], ["y"], strides=[4, 4]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64, 96, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 16, 24])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    given = tmp_path / "given.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), given)
    model = tmp_path / "net.onnx"
    command = ["export", str(given), "-o", str(model), "--class-names", "a,b,c", "--output", "logits"]
    assert main([*command, "--photos", str(frames)]) == 0
    record = build_engine(model, "fp16", frames, ["--no-gate"])
    assert record["precision"]["layers"]["fp16"] == 1
