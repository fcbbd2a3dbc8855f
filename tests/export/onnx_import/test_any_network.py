"""Export of ONNX files of all layouts and tails, and errors."""

import json

import cv2
import numpy as np
import onnxruntime
import pytest
import tfiseg
from onnx import helper
from random_networks import (
    FLOAT,
    HALF,
    INT64,
    MAP,
    UINT8,
    UP,
    UP_CORNERS,
    C,
    H,
    W,
    export,
    node,
    two_outputs,
    upsampling,
    write,
)
from tfiseg.cli.main import main
from tfiseg.export.frame_graph import PixelFormat
from tfiseg.export.onnx_import.agreement import compare_labels, labels_of, network_input
from tfiseg.export.onnx_import.class_lists import CLASS_LISTS, read_class_names, things_of
from tfiseg.export.onnx_import.network_tail import class_axis_of
from tfiseg.runtime.inspect.model_file import inspect_file
from tfiseg.runtime.networks.onnx_session import OnnxSession

pytest.importorskip("onnxsim", reason="the extra `export` is not installed (make test-export)")

from tfiseg.export.engine.batching import with_batch
from tfiseg.export.onnx_import.any_network import export_default

TAILS = {
    "nothing": ([], "scores", {}, []),
    "upsampled": ([UP], "up", {}, ["Resize"]),
    "softmax": ([UP, node("Softmax", ["up"], ["y"], axis=1)], "y", {}, ["Softmax", "Resize"]),
    "log-softmax": ([node("LogSoftmax", ["scores"], ["y"], axis=-3)], "y", {}, ["LogSoftmax"]),
    "argmax": ([UP, node("ArgMax", ["up"], ["y"], axis=1, keepdims=0)], "y", MAP, ["ArgMax", "Resize"]),
    "argmax, squeeze, cast": (
        [
            UP,
            node("ArgMax", ["up"], ["m"], axis=1),
            node("Squeeze", ["m", "one"], ["s"]),
            node("Cast", ["s"], ["y"], to=UINT8),
        ],
        "y",
        {"out_type": UINT8, "out_shape": (None,) * 3, "extra": {"one": np.array([1])}.items()},
        ["Cast", "Squeeze", "ArgMax", "Resize"],
    ),
    "channels last": ([node("Transpose", ["scores"], ["y"], perm=[0, 2, 3, 1])], "y", {}, ["Transpose"]),
    "channels last softmax": (
        [node("Transpose", ["scores"], ["t"], perm=[0, 2, 3, 1]), node("Softmax", ["t"], ["y"], axis=3)],
        "y",
        {},
        ["Softmax", "Transpose"],
    ),
    "channels last argmax": (
        [
            node("Transpose", ["scores"], ["t"], perm=[0, 2, 3, 1]),
            node("ArgMax", ["t"], ["y"], axis=3, keepdims=1),
        ],
        "y",
        {"out_type": INT64},
        ["ArgMax", "Transpose"],
    ),
}


@pytest.mark.parametrize("tail", TAILS)
def test_tails_are_cut(tail, tmp_path):
    nodes, output, settings, removed = TAILS[tail]
    report, model = export(write(tmp_path / "x.onnx", nodes, output, **settings), tmp_path)
    assert report["removed"] == removed
    assert report["grid_hw"] == [H // 4, W // 4]
    assert inspect_file(tmp_path / "out.onnx")["weights_unchanged"]
    assert report["stride"] == 4
    assert report["labels_seen"] > 2
    assert report["label_agreement"] > 0.999
    assert [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        "height",
        "width",
        3,
    ]
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, C, H // 4, W // 4]
    names = [i.name for i in model.graph.input] + [o.name for o in model.graph.output]
    assert names == ["frame", "logits"]
    assert not {"Softmax", "LogSoftmax", "ArgMax"} & {n.op_type for n in model.graph.node}


@pytest.mark.parametrize(
    ("shape", "element", "pixels"),
    [
        ((1, 3, H, W), FLOAT, "float32 RGB NCHW"),
        ((1, H, W, 3), FLOAT, "float32 RGB NHWC"),
        ((1, H, W, 3), UINT8, "uint8 RGB NHWC"),
        ((1, 3, H, W), UINT8, "uint8 RGB NCHW"),
        ((1, 3, H, W), HALF, "float32 RGB NCHW"),
        (("n", 3, "h", "w"), FLOAT, "float32 RGB NCHW"),
    ],
)
def test_layouts(shape, element, pixels, tmp_path):
    path = write(
        tmp_path / "x.onnx",
        [],
        "scores",
        shape=shape,
        element=element,
        out_type=HALF if element == HALF else FLOAT,
    )
    report, model = export(path, tmp_path, input_size_hw=(H, W) if "h" in shape else None)
    assert report["pixels"].startswith(pixels)
    assert report["label_agreement"] > 0.995
    assert model.graph.output[0].type.tensor_type.elem_type == FLOAT
    assert "image" in {o for n in model.graph.node for o in n.output}
    assert onnxruntime.InferenceSession(with_batch(model, 2).SerializeToString()).run(
        None, {"frame": np.zeros((2, 30, 40, 3), np.uint8)}
    )


def test_preprocessing_is_the_requested_one(tmp_path):
    path = write(tmp_path / "x.onnx", [], "scores")
    stated = {"mean": (10.0, 20.0, 30.0), "std": (1.0, 2.0, 3.0), "scale": 1.0, "rgb": False}
    report, model = export(path, tmp_path, **stated)
    assert "BGR" in report["pixels"]
    frame = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    model.graph.output.append(helper.make_tensor_value_info("image", FLOAT, None))
    (actual,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["image"], {"frame": frame[None]})
    expected_input = network_input(frame, (H, W), PixelFormat(**stated))
    assert np.abs(actual - expected_input).max() < 1e-3
    scaled = cv2.resize(frame.astype(np.float32), (2 * W, 2 * H)).reshape(H, 2, W, 2, 3).mean((1, 3))
    assert np.allclose(expected_input[0, 2], (scaled[..., 2] - 30) / 3, atol=1e-4)


def test_corner_aligned_upsampling_keeps_labels(tmp_path):
    report, model = export(write(tmp_path / "x.onnx", [UP_CORNERS], "up"), tmp_path)
    assert report["removed"] == ["Resize"]
    assert report["label_agreement"] > 0.995
    assert {"MatMul"} <= {n.op_type for n in model.graph.node}
    half_pixel, _ = export(write(tmp_path / "y.onnx", [UP], "up"), tmp_path)
    assert half_pixel["grid_hw"] != report["grid_hw"]


def test_nearest_upsampling_is_kept(tmp_path):
    nearest = upsampling("nearest", "asymmetric")
    report, _ = export(write(tmp_path / "x.onnx", [nearest], "up"), tmp_path)
    assert report["removed"] == []
    assert report["grid_hw"] == [H, W]


@pytest.mark.parametrize(("tail", "kind"), [([], "raw"), ([node("Sigmoid", ["scores"], ["y"])], "sigmoid")])
def test_one_channel_gives_two_classes(tail, kind, tmp_path):
    path = write(tmp_path / "x.onnx", tail, "y" if tail else "scores", channels=1)
    report, model = export(path, tmp_path, class_names="person2")
    assert report["class_names"] == ["background", "person"]
    assert report["label_agreement"] > 0.999
    frame = np.full((1, 20, 20, 3), 200, np.uint8)
    logits = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"frame": frame})[0]
    finer = 3 if tail else 1  # cells per cell of probabilities at stride 4; logits keep their grid
    assert logits.shape == (1, 2, finer * H // 4, finer * W // 4)
    assert not logits[:, 0].any()


RESIZED_TAILS = {  # the network interpolates probabilities; logits between them would move outlines
    "softmax": (["Softmax", "Resize"], "softmax", ["Resize", "Softmax"]),
    "softmax, argmax": (["Softmax", "Resize", "ArgMax"], "class-map", ["ArgMax", "Resize", "Softmax"]),
    "sigmoid": (["Sigmoid", "Resize"], "sigmoid", ["Resize", "Sigmoid"]),
    "sigmoid, argmax": (["Sigmoid", "Resize", "ArgMax"], "class-map", ["ArgMax", "Resize", "Sigmoid"]),
}


@pytest.mark.parametrize("geometry", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("tail", RESIZED_TAILS)
def test_probabilities_that_the_network_resizes(tail, geometry, tmp_path):
    steps, kind, removed = RESIZED_TAILS[tail]
    settings = {
        "Resize": {"mode": "linear", "coordinate_transformation_mode": geometry},
        "Softmax": {"axis": 1},
        "ArgMax": {"axis": 1, "keepdims": 1},
    }
    names = ["scores", *(f"y{k}" for k in range(len(steps)))]
    nodes = [
        node(
            step,
            [names[k]] + ["none", "none", "hw_sizes"] * (step == "Resize"),
            [names[k + 1]],
            **settings.get(step, {}),
        )
        for k, step in enumerate(steps)
    ]
    out_type = INT64 if "ArgMax" in steps else FLOAT
    path = write(tmp_path / "x.onnx", nodes, names[-1], out_type=out_type)
    report, model = export(path, tmp_path, class_names="a,b,c,d,e")
    assert (report["reading"]["kind"], report["removed"]) == (kind, removed)
    assert report["label_agreement"] > 0.996  # with interpolated logits: 95.5 % (softmax), 98.6 % (sigmoid)
    assert report["grid_hw"] == ([3 * H // 4, 3 * W // 4] if geometry == "half_pixel" else [H, W])
    frames = np.stack([np.full((40, 50, 3), 90 * k, np.uint8) for k in range(2)])
    batched = onnxruntime.InferenceSession(with_batch(model, 2).SerializeToString())
    assert batched.run(None, {"frame": frames})[0].shape[0] == 2


def test_other_probabilities_are_converted_to_logarithms(tmp_path):
    power = [
        node("Softmax", ["scores"], ["p"], axis=1),
        node("Mul", ["p", "keep"], ["y"]),  # not part of a tail
    ]
    report, model = export(
        write(
            tmp_path / "x.onnx", power, "y", extra={"keep": np.full((1, C, 1, 1), 0.999, np.float32)}.items()
        ),
        tmp_path,
    )
    assert report["removed"] == []
    assert "Log" in {n.op_type for n in model.graph.node}


def test_other_class_maps_are_converted_to_one_hot(tmp_path):
    top = [node("TopK", ["scores", "k"], ["v", "i"], axis=1), node("Squeeze", ["i", "k"], ["y"])]
    path = write(tmp_path / "x.onnx", top, "y", **MAP, extra={"k": np.array([1])}.items())
    with pytest.raises(tfiseg.InputError, match="give --class-names"):
        export(path, tmp_path)
    report, model = export(path, tmp_path, class_names="background,a,b,c,d")
    assert "Equal" in {n.op_type for n in model.graph.node}
    assert report["label_agreement"] > 0.999
    assert report["labels_seen"] > 2


def test_background_is_prepended_to_a_countable_class_0(tmp_path):
    report, model = export(
        write(tmp_path / "x.onnx", [], "scores"), tmp_path, class_names="person,car,road,sky,tree"
    )
    assert report["class_names"][:2] == ["background", "person"]
    assert report["things"] == [1, 2]
    assert report["label_agreement"] > 0.999
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == C + 1


def test_reserved_names_are_renamed(tmp_path):
    path = write(
        tmp_path / "x.onnx",
        [node("Relu", ["scores"], ["logits"]), node("Neg", ["logits"], ["frame"])],
        "frame",
    )
    report, model = export(path, tmp_path)
    assert report["label_agreement"] > 0.999
    assert [i.name for i in model.graph.input] == ["frame"]


def test_old_opsets_are_converted(tmp_path):
    report, _ = export(write(tmp_path / "x.onnx", [], "scores", opset=11), tmp_path)
    assert report["opset"] == 18
    report, _ = export(write(tmp_path / "x.onnx", [], "scores", opset=15), tmp_path)
    assert report["opset"] == 15


def test_result_runs_and_has_metadata(tmp_path, capsys):
    out = tmp_path / "net.onnx"
    argv = [
        "export",
        str(write(tmp_path / "x.onnx", [UP], "up")),
        "-o",
        str(out),
        "--class-names",
        "background,cat,dog,sky,tree",
    ]
    assert main([*argv, "--licence", "CC0", "--training-data", "none", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["things"] == [1, 2]
    segmenter = tfiseg.Segmenter(out)
    assert segmenter.class_names == ("background", "cat", "dog", "sky", "tree")
    assert segmenter.session.info.stride == 4
    assert segmenter.session.info.extra["licence"] == "CC0"
    assert segmenter(np.zeros((100, 80, 3), np.uint8)).label_map.shape == (100, 80)
    assert main([*argv, "--things", "tree"]) == 0
    assert "as in the original" in capsys.readouterr().out
    assert tfiseg.Segmenter(out).things == (4,)
    assert not list(tmp_path.glob("*.part"))


def test_default_network(tmp_path, capsys):
    assert export_default(tmp_path / "d.onnx")["class_names"][15] == "person"
    assert main(["export", "default", "-o", str(tmp_path / "e.onnx")]) == 0
    assert tfiseg.Segmenter(tmp_path / "e.onnx").class_names[0] == "background"


@pytest.mark.parametrize(("source", "cells"), [("default-semantic", [96, 128]), ("default", [192, 256])])
def test_default_networks_at_another_size(tmp_path, source, cells):
    frame = np.zeros((480, 640, 3), np.uint8)
    seen = []
    for more in ([], ["--long-side", "512"]):
        assert main(["export", source, "-o", str(tmp_path / "n.onnx"), *more]) == 0
        report = inspect_file(tmp_path / "n.onnx")
        assert report["problems"] == []
        assert report["weights_unchanged"]
        session = OnnxSession(tmp_path / "n.onnx")
        assert session.has("affinity") == (source == "default")
        seen.append((max(session.infer(frame)["logits"].shape[2:]), session.info.extra["long_side_px"]))
    assert seen == [(cells[0], 384), (cells[1], 512)]


def test_output_can_be_selected(tmp_path):
    path = two_outputs(tmp_path / "x.onnx")
    a, _ = export(path, tmp_path, output_name="scores")
    assert a["label_agreement"] > 0.999
    with pytest.raises(tfiseg.InputError, match="no output 'nonsense', but scores, other"):
        export(path, tmp_path, output_name="nonsense")


def test_disagreement_is_drawn(tmp_path):
    frame = np.full((20, 30, 3), 100, np.uint8)
    right = np.zeros((10, 15), np.int64)
    wrong = right.copy()
    wrong[2:5, 3:9] = 1
    picture = tmp_path / "where.png"
    with pytest.raises(tfiseg.ModelError, match=r"88\.00% of the pixels of b.*where\.png shows where"):
        compare_labels(
            lambda _: right,
            lambda f: wrong if f[0, 0, 0] else right,
            [("a", 0 * frame), ("b", frame)],
            picture,
            quiet=True,
        )
    red = (cv2.imread(str(picture)) == (0, 0, 255)).all(-1)
    assert np.array_equal(red, wrong > 0)


def test_labels_of_all_layouts():
    scores = np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype(np.float32)
    labels = labels_of(scores, (6, 8))
    assert np.array_equal(labels, scores[0].argmax(0))
    assert np.array_equal(labels_of(scores.transpose(0, 2, 3, 1), (6, 8), 3), labels)
    assert np.array_equal(labels_of(labels[None], class_axis=None), labels)
    assert np.array_equal(labels_of(scores[:, :1]), scores[0, 0] > 0)
    corners = labels_of(scores, (11, 15), corner_aligned=True)
    assert np.array_equal(corners[::2, ::2], labels)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 21, 12, 16), 1),
        ((1, 12, 16, 21), 3),
        ((1, 12, 16, 12), 3),
        ((1, 16, 12, 16), 1),
        ((1, 48, 64), 0),
        ((1, 1, 48, 64), 1),
    ],
)
def test_class_axis(shape, axis):
    assert class_axis_of(shape, (48, 64), "NCHW") == axis


def test_class_lists(tmp_path):
    assert {name: len(names) for name, names in CLASS_LISTS.items()} == {
        "voc21": 21,
        "cityscapes19": 19,
        "coco81": 81,
        "ade20k150": 150,
        "person2": 2,
    }
    assert all(len(set(names)) == len(names) for names in CLASS_LISTS.values())
    assert len(things_of(CLASS_LISTS["ade20k150"])) == 100
    (tmp_path / "names.txt").write_text("road\ncar\n\nperson\n")
    assert read_class_names(str(tmp_path / "names.txt")) == ("road", "car", "person")
    assert things_of(("road", "Car", "person")) == (1, 2)
    assert things_of(("weed", "crop", "soil")) == (1, 2)
    assert things_of(("weed", "crop", "soil"), "0, soil") == (0, 2)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "names", "removed"),
    [
        ("deeplabv3_mnv2_pascal_quant.lowres", "voc21", ["Resize"]),
        ("deeplab_mobilenet_edgetpu_slim_cityscapes_quant.lowres", "cityscapes19", ["Resize"]),
        ("selfie_segmentation", "person2", ["Sigmoid", "Transpose"]),
    ],
)
def test_real_networks_on_real_photos(file, names, removed, tmp_path, shared):
    path = shared / "models" / f"{file}.onnx"
    report, _ = export(
        path, tmp_path, class_names=names, photos=str(shared / "data" / "eval" / "pennfudan" / "images")
    )
    assert report["removed"] == removed
    assert report["photos"] == 24
    assert report["label_agreement"] > 0.996
