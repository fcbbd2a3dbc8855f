"""The reading of a network's output is decided by evidence or by the user."""

import json

import cv2
import numpy as np
import onnx
import pytest
import tfiseg
from onnx import TensorProto, helper, numpy_helper
from tfiseg.cli.main import main

pytest.importorskip("onnxsim", reason="the extra `export` is not installed (make test-export)")

from tfiseg.export.onnx_import.any_network import ExportSettings, export_any
from tfiseg.export.onnx_import.output_layout import output_layout

S, G = 128, 16  # sides of the image and of the grid
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
node = helper.make_node


@pytest.fixture
def photos(tmp_path):
    """Two images of a bright disk on gray at different positions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, center in enumerate(((128, 128), (90, 150))):
        picture = np.full((256, 256, 3), 100, np.uint8)
        cv2.circle(picture, center, 60, (255, 255, 255), -1)
        cv2.imwrite(str(folder / f"{k}.png"), picture)
    return str(folder)


def write(
    folder, tail, *, weight, bias, out_type=FLOAT, out_shape=(None,) * 4, opset=17, extra=None, channels=3
):
    """Write a network: mean brightness of each 8x8 block, scaled and shifted per class; then ``tail``."""
    classes = len(weight)
    kernel = np.broadcast_to(
        np.array(weight, np.float32).reshape(-1, 1, 1, 1) / (channels * 64), (classes, channels, 8, 8)
    )
    constants = {"kernel": kernel.copy(), "bias": np.array(bias, np.float32), **(extra or {})}
    conv = node("Conv", ["x", "kernel", "bias"], ["grid"], strides=[8, 8], kernel_shape=[8, 8])
    graph = helper.make_graph(
        [conv, *tail],
        "theirs",
        [helper.make_tensor_value_info("x", FLOAT, [1, channels, S, S])],
        [helper.make_tensor_value_info("y" if tail else "grid", out_type, out_shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def export(path, photos, **options):
    return export_any(
        str(path), path.with_name("out.onnx"), ExportSettings(photos=photos, **options), quiet=True
    )


DISK = {"weight": [10], "bias": [-6.0]}  # log-odds: about -2 on gray, 4 on the disk
SIGMOID = [node("Sigmoid", ["grid"], ["y"])]
SCENE = {"weight": [0, 10, -5], "bias": [0.0, -6, -1]}
THREE = {"weight": [10, 0, 0], "bias": [-6.0, -14, -14]}


def bright_share(path, photos):
    """Return the share of the first image that belongs to instances."""
    instances = tfiseg.Segmenter(path.with_name("out.onnx"), min_score=0)(cv2.imread(f"{photos}/0.png"))
    return float((instances.label_map > 0).mean()), [i.class_name for i in instances]


def test_independent_sigmoids_get_a_threshold_and_a_background(tmp_path, photos):
    path = write(tmp_path, SIGMOID, **THREE)
    report = export(path, photos, class_names="person,car,dog")
    assert report["reading"]["kind"] == "sigmoid"
    assert report["class_names"] == ["background", "person", "car", "dog"]
    assert set(report["shares"]) == {"background", "person"}
    share, names = bright_share(path, photos)
    assert names == ["person"]
    assert 0.1 < share < 0.2  # the disk covers 17 %


def test_sigmoids_of_separate_heads_and_their_resizing(tmp_path, photos):
    tail = [
        node("Split", ["grid", "parts"], ["a", "b", "c"], axis=1),
        *(node("Sigmoid", [n], [f"p{n}"]) for n in "abc"),
        node("Concat", ["pa", "pb", "pc"], ["all"], axis=1),
        node("Resize", ["all", "", "scales"], ["y"], mode="nearest"),
    ]
    extra = {"parts": np.array([1, 1, 1]), "scales": np.array([1, 1, 2, 2], np.float32)}
    path = write(tmp_path, tail, **THREE, extra=extra)
    report = export(path, photos, class_names="background,person,car,dog")
    assert report["reading"]["kind"] == "sigmoid"
    assert report["label_agreement"] > 0.995
    assert bright_share(path, photos)[1] == ["person"]


def test_background_channel_of_sigmoids_is_the_background(tmp_path, photos):
    path = write(tmp_path, SIGMOID, weight=[0, 10, 0], bias=[-1.0, -6, -14])
    report = export(path, photos, class_names="background,person,car")
    assert report["class_names"] == ["background", "person", "car"]
    assert set(report["shares"]) == {"background", "person"}


def test_thresholds_per_channel(tmp_path, photos):
    path = write(tmp_path, SIGMOID, **THREE)
    low = export(path, photos, class_names="person,car,dog")["shares"]
    high = export(path, photos, class_names="person,car,dog", thresholds=(0.9, 0.5, 0.5))["shares"]
    assert high["person"] < low["person"]
    with pytest.raises(tfiseg.InputError, match="doesn't fit 3 channels"):
        export(path, photos, thresholds=(0.1, 0.2))


def test_independent_logits_when_stated(tmp_path, photos):
    path = write(tmp_path, [], **THREE)
    with pytest.raises(tfiseg.ModelError, match="every pixel of 2 photos has the label 'background'"):
        export(path, photos)
    report = export(path, photos, class_names="person,car,dog", output_kind="sigmoid")
    assert set(report["shares"]) == {"background", "person"}


def test_a_mask_up_to_255(tmp_path, photos):
    tail = [node("Sigmoid", ["grid"], ["s"]), node("Mul", ["s", "k"], ["y"])]
    path = write(tmp_path, tail, **DISK, extra={"k": np.float32(255)})
    report = export(path, photos, class_names="background,person")
    assert report["reading"]["kind"] == "binary"
    assert "(value 127.5)" in report["reading"]["sentence"]
    assert 0.1 < bright_share(path, photos)[0] < 0.25
    tail = [*tail[:1], node("Mul", ["s", "k"], ["m"]), node("Cast", ["m"], ["y"], to=UINT8)]
    path = write(tmp_path, tail, **DISK, extra={"k": np.float32(255)}, out_type=UINT8)
    assert export(path, photos)["reading"]["kind"] == "binary"


ONE_CHANNEL_TAILS = {
    "depth": [node("Abs", ["grid"], ["a"]), node("Mul", ["a", "k"], ["y"])],
    "softplus": [node("Softplus", ["grid"], ["y"])],
    "heat map": [node("Mul", ["grid", "small"], ["a"]), node("Exp", ["a"], ["b"]), node("Neg", ["b"], ["c"]),
                 node("Exp", ["c"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("tail", ONE_CHANNEL_TAILS)
def test_one_channel_without_evidence_is_ambiguous(tail, tmp_path, photos):
    extra = {"k": np.float32(40), "small": np.float32(0.1)}
    path = write(tmp_path, ONE_CHANNEL_TAILS[tail], **DISK, extra=extra)
    with pytest.raises(tfiseg.ModelError, match=r"--output logits\|softmax\|sigmoid\|binary\|class-map"):
        export(path, photos, class_names="background,person")


def test_several_channels_without_evidence_are_ambiguous(tmp_path, photos):
    path = write(tmp_path, [node("Softplus", ["grid"], ["y"])], **SCENE)
    with pytest.raises(tfiseg.ModelError, match=r"ambiguous.*--output logits\|softmax"):
        export(path, photos)
    assert export(path, photos, output_kind="logits")["reading"]["origin"] == "--output"


ARGMAX = node("ArgMax", ["grid"], ["ids"], axis=1, keepdims=1)
TO_FLOAT = node("Cast", ["ids"], ["f"], to=FLOAT)


def resized(mode):
    return [ARGMAX, TO_FLOAT, node("Resize", ["f", "", "scales"], ["y"], mode=mode)]


def test_float_class_ids_after_a_resize(tmp_path, photos):
    extra = {"scales": np.array([1, 1, 4, 4], np.float32)}
    path = write(tmp_path, resized("nearest"), **SCENE, extra=extra)
    report = export(path, photos)
    assert report["reading"]["kind"] == "class-map"
    assert len(report["class_names"]) == 3
    assert report["label_agreement"] > 0.995
    path = write(tmp_path, resized("linear"), **SCENE, extra=extra)
    with pytest.raises(tfiseg.ModelError, match="mixes the ids of an argmax"):
        export(path, photos)
    assert export(path, photos, output_kind="class-map")["label_agreement"] > 0.99


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_flat_outputs(order, tmp_path, photos):
    tail = [node("Transpose", ["grid"], ["t"], perm=[0, 2, 3, 1])] if order == "NHWC" else []
    flat = np.array([1, G * G, 3] if tail else [1, 3, G * G], np.int64)
    tail += [node("Reshape", ["t" if tail else "grid", "flat"], ["y"])]
    path = write(tmp_path, tail, **SCENE, extra={"flat": flat}, out_shape=(None,) * 3)
    report = export(path, photos)
    assert report["grid_hw"] == [G, G]
    assert len(report["shares"]) == 2


def test_transposed_rows_and_columns_are_detected(tmp_path, photos):
    path = write(tmp_path, [node("Transpose", ["grid"], ["y"], perm=[0, 1, 3, 2])], **SCENE)
    with pytest.raises(tfiseg.ModelError, match="rows and columns exchanged"):
        export(path, None)


@pytest.mark.parametrize(
    ("shape", "found", "axis"),
    [
        ((1, 5, 768), (1, 5, 24, 32), 1),
        ((1, 768, 5), (1, 24, 32, 5), 3),
        ((5, 24, 32), (1, 5, 24, 32), 1),
        ((24, 32), (1, 24, 32), 0),
        ((1, 768), (1, 24, 32), 0),
        ((1, 5, 768, 1), (1, 5, 24, 32), 1),
    ],
)
def test_layouts_of_outputs(shape, found, axis):
    layout = output_layout(shape, (96, 128), "NCHW")
    assert (layout.shape, layout.class_axis) == (found, axis)


def test_nan_raises_an_error(tmp_path, photos):
    path = write(tmp_path, [node("Log", ["grid"], ["y"])], **SCENE)
    with pytest.raises(tfiseg.ModelError, match=r"output for [01] contains NaN"):
        export(path, photos)


def test_degenerate_results_raise_errors(tmp_path, photos):
    path = write(tmp_path, [], weight=[0, 1, 0], bias=[90.0, 0, 0])
    with pytest.raises(tfiseg.ModelError, match="every pixel of 2 photos has the label 'background'"):
        export(path, photos)
    path = write(tmp_path, [], weight=[0, 0, 0], bias=[1.0, -1, 0])
    with pytest.raises(tfiseg.ModelError, match="the same for 2 different frames"):
        export(path, photos)


def test_output_without_a_shape(tmp_path, photos):
    path = write(tmp_path, [node("Identity", ["grid"], ["y"])], **SCENE, out_shape=None)
    assert export(path, photos)["grid_hw"] == [G, G]


@pytest.mark.parametrize(("opset", "kind"), [(9, "Upsample"), (10, "Resize")])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resize_of_old_opsets_is_converted(opset, kind, mode, tmp_path, photos):
    extra = {"scales": np.array([1, 1, 8, 8], np.float32)}
    path = write(
        tmp_path, [node(kind, ["grid", "scales"], ["y"], mode=mode)], **SCENE, opset=opset, extra=extra
    )
    report = export(path, photos)
    assert report["label_agreement"] > 0.999
    assert any("opset 11 or later" in note for note in report["notes"]) == (mode == "linear")


def test_operators_of_onnx_runtime_are_named(tmp_path, photos):
    path = write(tmp_path, [node("Gelu", ["grid"], ["y"], domain="com.microsoft")], **SCENE)
    with pytest.raises(tfiseg.ModelError, match=r"Gelu, com\.microsoft.*from before that step"):
        export(path, photos)


@pytest.mark.parametrize(("channels", "message"), [(1, "takes gray images"), (4, "no alpha or depth")])
def test_other_numbers_of_input_channels(channels, message, tmp_path, photos):
    path = write(tmp_path, [], **SCENE, channels=channels)
    with pytest.raises(tfiseg.ModelError, match=message):
        export(path, photos)


def test_command_prints_the_reading(tmp_path, photos, capsys):
    path = write(tmp_path, [node("Softplus", ["grid"], ["y"])], **SCENE)
    argv = ["export", str(path), "-o", str(tmp_path / "out.onnx"), "--photos", photos]
    assert main(argv) == 1
    assert "--output logits|softmax|sigmoid|binary|class-map" in capsys.readouterr().err
    assert main([*argv, "--output", "logits"]) == 0
    text = capsys.readouterr().out
    assert "output read as: logits (as stated" in text
    assert "never seen: class 2" in text
    assert main([*argv, "--output", "logits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reading"]["kind"] == "logits"
