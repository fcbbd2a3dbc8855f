"""Native preprocessing: equal maps, and models whose preprocessing stays in the graph."""

import cv2
import numpy as np
import pytest
from plain_model import PLAIN_MODEL
from tfiseg.errors import ModelError
from tfiseg.runtime.networks.native_preprocessing import SMALL, split_preprocessing
from tfiseg.runtime.networks.onnx_runtime import open_onnx
from tfiseg.runtime.networks.onnx_session import OnnxSession
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="module")
def picture():
    return next(iter(SyntheticCamera((480, 640), people=4))).image


@pytest.mark.parametrize("model", [PLAIN_MODEL, DEFAULT_MODEL], ids=lambda path: path.stem)
@pytest.mark.parametrize("size_hw", [(480, 640), (1080, 1920), (37, 90), (200, 200), (3, 500)])
def test_maps_equal_those_of_the_whole_graph(model, size_hw, picture):
    frame = cv2.resize(picture, size_hw[::-1])
    session = OnnxSession(model)
    assert [i.name for i in session.session.get_inputs()] == [SMALL]
    maps = session.infer(frame)
    whole = open_onnx(model, 0, ["CPUExecutionProvider"])
    for name, theirs in zip(maps, whole.run(list(maps), {"frame": frame[None]}), strict=True):
        assert maps[name].shape == theirs.shape
        assert np.abs(maps[name] - theirs).max() < 2e-4, name


def test_damaged_models(tmp_path):
    whole = PLAIN_MODEL.read_bytes()
    assert split_preprocessing(b"") is None
    for k, spoilt in enumerate(
        (b"no model at all", whole[: len(whole) // 2], whole[: len(whole) // 2] + b"\xff" * 500, bytes(2000))
    ):
        assert split_preprocessing(spoilt) is None
        (tmp_path / f"{k}.onnx").write_bytes(spoilt)
        with pytest.raises(ModelError, match=r"ONNX Runtime can't load|has no tfiseg metadata"):
            OnnxSession(tmp_path / f"{k}.onnx")


def test_a_file_of_ones_is_rejected_quickly():
    assert split_preprocessing(b"\xff" * 5_000_000) is None


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="ONNX Runtime can't load"):
        OnnxSession(tmp_path)


def model_of(size_hw=None, change=None):
    """Return a model: tfiseg's preprocessing, then twice the image as logits."""
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed (make test-export)")
    from tfiseg.export.frame_graph import (
        PixelFormat,
        fixed_size_nodes,
        frame_value,
        long_side_nodes,
        pixel_nodes,
    )

    sizing, size_constants = fixed_size_nodes(size_hw) if size_hw else long_side_nodes(64, 16)
    pixels, pixel_constants = pixel_nodes(PixelFormat())
    last = onnx.helper.make_node("Add", ["image", "image"], ["logits"])
    graph = onnx.helper.make_graph(
        [*sizing, *pixels, last],
        "tfiseg",
        [frame_value()],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])],
        [*size_constants, *pixel_constants],
    )
    if change is not None:
        change(onnx, graph)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def run(model, feeds):
    import onnxruntime

    return onnxruntime.InferenceSession(model).run(["logits"], feeds)[0]


@pytest.mark.parametrize("size_hw", [(48, 32), None])
def test_a_fixed_size_and_a_long_side(size_hw, picture):
    from tfiseg.plugins.native import fit_frame

    model = model_of(size_hw)
    front, rest = split_preprocessing(model)
    for frame in (picture, picture[:111, :50], picture[:5]):
        small = fit_frame(frame, front.size_hw(frame.shape[:2]))
        assert np.abs(run(rest, {SMALL: small[None]}) - run(model, {"frame": frame[None]})).max() < 1e-5


def reuse_the_frame(onnx, graph):
    graph.node.append(onnx.helper.make_node("Shape", ["frame"], ["frame_shape"]))
    graph.output.append(onnx.helper.make_tensor_value_info("frame_shape", onnx.TensorProto.INT64, [4]))


def align_corners_when_scaling(onnx, graph):
    resize = next(n for n in graph.node if n.op_type == "Resize")
    next(a for a in resize.attribute if a.name == "coordinate_transformation_mode").s = b"align_corners"


def scale_with_another_operator(onnx, graph):
    next(n for n in graph.node if n.op_type == "AveragePool").op_type = "MaxPool"


def store_weights_externally(onnx, graph):
    weight = graph.initializer.add(
        name="weight", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="weights.bin")


@pytest.mark.parametrize(
    "change",
    [reuse_the_frame, scale_with_another_operator, align_corners_when_scaling, store_weights_externally],
)
def test_models_that_keep_their_preprocessing(change):
    assert split_preprocessing(model_of(change=change)) is None
    assert split_preprocessing(model_of()) is not None
