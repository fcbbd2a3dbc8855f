"""The reading of a network's output is decided by evidence or by the user."""

import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import tfiseg
from onnx import TensorProto, helper, numpy_helper
from tfiseg.cli.main import main

pytest.importorskip("onnxsim", reason="the extra `export` is not installed (make test-export)")

from tfiseg.calibration.graph import session
from tfiseg.export.engine.fp16_graph import to_fp16
from tfiseg.export.frame.backbone_taps import find_taps
from tfiseg.export.onnx_import.any_network import ExportSettings, export_any, export_default
from tfiseg.export.onnx_import.output_layout import output_layout

S, G = 128, 16  # sides of the image and of the grid
FINER = 3  # factor by which coarse probabilities are resized
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
    folder,
    tail,
    *,
    weight,
    bias,
    out_type=FLOAT,
    out_shape=(None,) * 4,
    opset=17,
    extra=None,
    channels=3,
    stride=8,
):
    """Write a network: mean brightness of each 8x8 block, scaled and shifted per class; then ``tail``."""
    classes, block = len(weight), [stride, stride]
    kernel = np.broadcast_to(
        np.array(weight, np.float32).reshape(-1, 1, 1, 1) / (channels * stride**2),
        (classes, channels, *block),
    )
    constants = {"kernel": kernel.copy(), "bias": np.array(bias, np.float32), **(extra or {})}
    conv = node("Conv", ["x", "kernel", "bias"], ["grid"], strides=block, kernel_shape=block)
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


def resized_by_the_user(path, photo, one):
    """Return area and mean probability of the pixels above 0.5 after the user's own resize of channel 0."""
    picture = cv2.resize(photo, (S, S), interpolation=cv2.INTER_AREA)[..., ::-1] / np.float32(255)
    session = onnxruntime.InferenceSession(path)
    raw = session.run(None, {"x": np.ascontiguousarray(picture.transpose(2, 0, 1)[None])})[0]
    fine = cv2.resize(raw[0, 0].astype(np.float32), photo.shape[1::-1]) / one
    return int((fine > 0.5).sum()), float(fine[fine > 0.5].mean())


TIMES_255 = [node("Sigmoid", ["grid"], ["s"]), node("Mul", ["s", "k"], ["y"])]
RARE = {"weight": [10, 0, 0], "bias": [-8.0, -14, -14]}  # log-odds: -4 on gray, 2 on the disk


@pytest.mark.parametrize(
    ("tail", "rows", "kind"), [(SIGMOID, 3, "sigmoid"), (SIGMOID, 1, "binary"), (TIMES_255, 1, "binary")]
)
def test_outlines_and_scores_are_those_of_resized_probabilities(tail, rows, kind, tmp_path, photos):
    weights = {name: values[:rows] for name, values in RARE.items()}
    path = write(tmp_path, tail, **weights, extra={"k": np.float32(255)} if tail is TIMES_255 else None)
    names = "person,car,dog" if rows == 3 else "background,person"
    report = export(path, photos, class_names=names)
    assert report["reading"]["kind"] == kind
    assert report["grid_hw"] == [FINER * G, FINER * G]
    assert any("resized from 16x16 to 48x48" in note for note in report["notes"])
    assert report["label_agreement"] > 0.999
    photo = cv2.imread(f"{photos}/0.png")
    area, score = resized_by_the_user(path, photo, 255 if tail is TIMES_255 else 1)
    (person,) = tfiseg.Segmenter(path.with_name("out.onnx"))(photo)
    assert person.area == pytest.approx(area, rel=0.005)  # with interpolated log-odds: 5 % less
    assert person.score == pytest.approx(score, abs=0.01)  # a mean over grid cells, not over pixels


def test_fine_probabilities_are_not_resized(tmp_path, photos):
    path = write(tmp_path, SIGMOID, **RARE, stride=2)
    report = export(path, photos, class_names="person,car,dog")
    kinds = {n.op_type for n in onnx.load(path.with_name("out.onnx")).graph.node if n.name.startswith("post")}
    assert (report["grid_hw"], report["notes"], kinds) == ([S // 2, S // 2], [], {"Pad"})


def test_coarse_softmax_and_logits_are_not_resized(tmp_path, photos):
    for tail in ([], [node("Softmax", ["grid"], ["y"], axis=1)]):
        report = export(write(tmp_path, tail, **SCENE), photos)
        assert (report["grid_hw"], report["label_agreement"]) == ([G, G], 1.0)


def test_a_resize_before_the_sigmoid_stays_in_the_network(tmp_path, photos):
    tail = [node("Resize", ["grid", "", "scales"], ["up"], mode="linear"), node("Sigmoid", ["up"], ["y"])]
    extra = {"scales": np.array([1, 1, 2, 2], np.float32)}  # to stride 4, which its user resizes
    report = export(write(tmp_path, tail, **RARE, extra=extra), photos, class_names="person,car,dog")
    assert (report["removed"], report["grid_hw"]) == (["Sigmoid"], [2 * FINER * G, 2 * FINER * G])
    assert report["label_agreement"] > 0.999


def test_a_softmax_read_as_independent_channels(tmp_path, photos):
    path = write(tmp_path, [node("Softmax", ["grid"], ["y"], axis=1)], **SCENE)
    report = export(path, photos, class_names="sky,disk,road", output_kind="sigmoid")
    assert report["removed"] == []
    assert report["label_agreement"] > 0.999


def test_log_odds_stay_finite_in_half_precision(tmp_path, photos):
    path = write(tmp_path, SIGMOID, weight=[90, 0, 0], bias=[-60.0, -14, -14])  # 1 in float16 on the disk
    export(path, photos, class_names="person,car,dog")
    model = onnx.load(path.with_name("out.onnx"))
    frame = cv2.imread(f"{photos}/0.png")[None]
    single, half = (session(m).run(None, {"frame": frame})[0] for m in (model, to_fp16(model)))
    assert np.isfinite(half).all()
    assert (single.argmax(1) == half.argmax(1)).mean() > 0.999


def test_resized_probabilities_are_no_features_of_instance_heads(tmp_path, photos):
    path = write(tmp_path, SIGMOID, weight=[10] + [0] * 8, bias=[-8.0] + [-14] * 8, stride=4)
    export(path, photos, class_names="a,b,c,d,e,f,g,h,i")
    assert [tap.name for tap in find_taps(onnx.load(path.with_name("out.onnx")))] == ["grid"]


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


def test_independent_logits_without_a_background_are_ambiguous(tmp_path, photos):
    path = write(tmp_path, [], weight=[10, 0], bias=[-8, -2])
    with pytest.raises(tfiseg.ModelError, match=r"all channels are negative in \d+% .* independent sigmoids"):
        export(path, photos, class_names="lamp,ball", things="lamp,ball")
    report = export(path, photos, class_names="lamp,ball", output_kind="sigmoid")
    assert report["class_names"] == ["background", "lamp", "ball"]
    assert export(path, photos, class_names="lamp,ball", output_kind="logits")["reading"]["kind"] == "logits"
    assert export(path, photos, class_names="background,ball")["reading"]["kind"] == "logits"


def test_sigmoids_with_a_constant_sum_are_no_softmax(tmp_path, photos):
    """sigmoid(v) + sigmoid(-v) + sigmoid(-0.5) is 1.38 in every pixel."""
    path = write(tmp_path, SIGMOID, weight=[9, -9, 0], bias=[-6, 6, -0.5])
    assert export(path, photos, class_names="disk,wall,floor")["reading"]["kind"] == "sigmoid"


@pytest.mark.parametrize(
    ("factor", "is_softmax"), [(1, True), (100, True), (255, True), (2, False), (424, False)]
)
def test_only_usual_scales_of_probabilities_are_a_softmax(factor, is_softmax, tmp_path, photos):
    tail = [node("Softmax", ["grid"], ["p"], axis=1), node("Mul", ["p", "k"], ["y"])]
    path = write(tmp_path, tail, **SCENE, extra={"k": np.float32(factor)})
    if is_softmax:
        assert export(path, photos)["reading"]["kind"] == "softmax"
        return
    with pytest.raises(tfiseg.ModelError, match="ambiguous"):
        export(path, photos)


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


def test_unknown_choices_list_the_known_ones(tmp_path):
    with pytest.raises(tfiseg.InputError, match="'class-map', got 'mask'"):
        ExportSettings(output_kind="mask")
    with pytest.raises(tfiseg.InputError, match="source must be one of 'default', 'default-semantic', got"):
        export_default(tmp_path / "x.onnx", "defualt")


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
