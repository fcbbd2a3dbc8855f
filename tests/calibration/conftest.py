"""A small network in tfiseg's format with a residual addition and channels of very unequal range."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `calibration` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def residual_network():
    rng = np.random.default_rng(3)
    nodes, weights = [], []

    def conv(name, x, outputs, inputs, kernel, groups=1, relu=True, stretch=None):
        w = rng.normal(0, (2 / (inputs * kernel * kernel)) ** 0.5, (outputs, inputs, kernel, kernel)).astype(
            np.float32
        )
        if stretch is not None:
            w *= stretch[:, None, None, None]
        weights.append(numpy_helper.from_array(w, f"{name}.weight"))
        weights.append(
            numpy_helper.from_array(rng.normal(0, 0.1, outputs).astype(np.float32), f"{name}.bias")
        )
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node(
                "Conv",
                [x, f"{name}.weight", f"{name}.bias"],
                [f"{name}.out"],
                name=name,
                pads=pads,
                group=groups,
            )
        )
        if not relu:
            return f"{name}.out"
        nodes.append(
            helper.make_node("Clip", [f"{name}.out", "zero", "six"], [f"{name}.relu"], name=f"{name}.clip")
        )
        return f"{name}.relu"

    weights += [
        numpy_helper.from_array(np.float32(v), k)
        for k, v in (("zero", 0), ("six", 6), ("mean", 127), ("scale", 1 / 64))
    ]
    nodes += [
        helper.make_node("Cast", ["frame"], ["pre.float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pre.float"], ["pre.nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["pre.nchw", "mean"], ["pre.centred"]),
        helper.make_node("Mul", ["pre.centred", "scale"], ["image"]),
    ]
    unequal = np.geomspace(0.05, 2, 16).astype(np.float32)
    x = conv("stem", "image", 16, 3, 3)
    a = conv("project_a", x, 16, 16, 1, relu=False, stretch=unequal)
    y = conv("expand", a, 32, 16, 1)
    y = conv("depthwise", y, 32, 1, 3, groups=32)
    b = conv("project_b", y, 16, 32, 1, relu=False, stretch=unequal)
    nodes.append(helper.make_node("Add", [a, b], ["sum"], name="add"))
    z = conv("head", "sum", 24, 16, 1)
    conv("classifier", z, 4, 24, 1, relu=False)
    nodes[-1].output[0] = "logits"
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "height", "width", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, "h", "w"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [frame], [logits], weights), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def model():
    return residual_network()


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """Twelve small frames of the synthetic camera as PNG files."""
    import cv2
    from tfiseg.calibration.frames import sample_frames
    from tfiseg.runtime.sources.synthetic import SyntheticCamera

    folder = tmp_path_factory.mktemp("frames")
    for k, frame in zip(range(0, 240, 20), iter(SyntheticCamera()), strict=False):
        cv2.imwrite(str(folder / f"{k:03}.png"), cv2.resize(frame.image, (160, 120)))
    return sample_frames(folder, 12)


def run(model, frame):
    from tfiseg.calibration.graph import session

    return session(model).run(None, {"frame": frame[None]})[0]


def snr_db(reference, candidate, frames):
    noise = sum(float(np.square(run(reference, f) - run(candidate, f)).sum()) for f in frames)
    signal = sum(float(np.square(run(reference, f)).sum()) for f in frames)
    return 10 * np.log10(signal / noise)


@pytest.fixture(scope="session")
def tools():
    return run, snr_db
