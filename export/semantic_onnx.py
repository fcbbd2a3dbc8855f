"""A trained semantic network as ``NAME.onnx``: frames of any size in, logits out, checked against torch on real photos.

The preprocessing (resize, channel order, normalisation) is written as plain ONNX nodes in front of the exported network, so that
a graph without shape arithmetic in Python is left: ONNX Runtime and TensorRT both read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from onnx import TensorProto, helper, numpy_helper

from ..errors import InputError, ModelError
from ..runtime.sessions import FORMAT_VERSION, METADATA_KEY
from ..runtime.sources import IMAGE_SUFFIXES
from .network import PIXEL_MEAN, PIXEL_STD, SIDE_MULTIPLE, SegmentationNetwork
from .train_semantic import LONG_SIDE_PX, network_size_hw, predict_logits

OPSET = 18
STRIDE = 4
MIN_AGREEMENT = 0.995
PASCAL_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def load_checkpoint(path: Path) -> SegmentationNetwork:
    """The averaged network of a checkpoint that ``tfiseg train semantic`` wrote."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = SegmentationNetwork({"logits": int(state["recipe"]["classes"])})
        network.load_state_dict(state["average"])
    except (OSError, KeyError, RuntimeError) as wrong:
        raise ModelError(f"{path} is no checkpoint of `tfiseg train semantic`: {wrong}") from wrong
    return network.eval()


def preprocessing_nodes(long_side_px: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """frame uint8 (1, H, W, 3) BGR -> image float32 (1, 3, h, w) RGB normalised; the longer side becomes ``long_side_px``.

    The frame is first scaled to twice the size and then averaged 2 x 2: bilinear scaling alone skips pixels of large frames.
    """
    constants = {
        "pre.long_side": np.float32(long_side_px),
        "pre.multiple": np.float32(SIDE_MULTIPLE),
        "pre.one": np.float32(1),
        "pre.twice": np.array(2 * SIDE_MULTIPLE, np.int64),
        "pre.batch_and_channels": np.array([1, 3], np.int64),
        "pre.hw_start": np.array([1], np.int64),
        "pre.hw_end": np.array([3], np.int64),
        "pre.mean": np.float32(PIXEL_MEAN),
        "pre.scale": np.float32(1 / PIXEL_STD),
        "pre.rgb": np.array([2, 1, 0], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Shape", ["frame"], ["pre.shape"]),
        node("Slice", ["pre.shape", "pre.hw_start", "pre.hw_end"], ["pre.hw"]),
        node("Cast", ["pre.hw"], ["pre.hw_float"], to=TensorProto.FLOAT),
        node("ReduceMax", ["pre.hw_float"], ["pre.longer"], keepdims=0),
        node("Div", ["pre.long_side", "pre.longer"], ["pre.zoom"]),
        node("Mul", ["pre.hw_float", "pre.zoom"], ["pre.fitted"]),
        node("Div", ["pre.fitted", "pre.multiple"], ["pre.blocks"]),
        node("Round", ["pre.blocks"], ["pre.rounded"]),
        node("Max", ["pre.rounded", "pre.one"], ["pre.at_least_one"]),
        node("Cast", ["pre.at_least_one"], ["pre.blocks_int"], to=TensorProto.INT64),
        node("Mul", ["pre.blocks_int", "pre.twice"], ["pre.double_hw"]),
        node("Concat", ["pre.batch_and_channels", "pre.double_hw"], ["pre.sizes"], axis=0),
        node("Cast", ["frame"], ["pre.float"], to=TensorProto.FLOAT),
        node("Transpose", ["pre.float"], ["pre.nchw"], perm=[0, 3, 1, 2]),
        node(
            "Resize",
            ["pre.nchw", "", "", "pre.sizes"],
            ["pre.double"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("AveragePool", ["pre.double"], ["pre.small"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Gather", ["pre.small", "pre.rgb"], ["pre.colours"], axis=1),
        node("Sub", ["pre.colours", "pre.mean"], ["pre.centred"]),
        node("Mul", ["pre.centred", "pre.scale"], ["image"]),
    ]
    return nodes, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]


def export_semantic(
    checkpoint: Path,
    output: Path,
    photos: Path,
    long_side_px: int = LONG_SIDE_PX,
    half_weights: bool = True,
    class_names: Sequence[str] | None = None,
    training_data: str = "not stated",
    licence: str = "not stated",
) -> dict[str, Any]:
    """Write the ONNX model of a checkpoint and check it against torch.

    Args:
        checkpoint: written by ``tfiseg train semantic``.
        output: NAME.onnx, written whole or not at all.
        photos: folder of real photos; on each, label maps of torch and ONNX Runtime are compared.
        long_side_px: the longer side of what the network sees.
        half_weights: store weights as float16 and cast them when loaded: half the size, arithmetic stays float32.
        class_names: of every class id, background first; default: PASCAL's with 21 classes, else "class N".
        training_data, licence: sentences for the model's metadata: what it was trained on, and under which terms it may be used.

    Returns:
        bytes, photos, label_agreement (share of pixels), the metadata.

    Raises:
        ModelError: labels agree on less than 99.5 % of the pixels of a photo.
    """
    network = load_checkpoint(checkpoint)
    classes = int(network.heads["logits"].out_channels)  # type: ignore[arg-type]
    names = class_names or (
        PASCAL_CLASSES if classes == len(PASCAL_CLASSES) else ("background", *(f"class {i}" for i in range(1, classes)))
    )
    if len(names) != classes:
        raise InputError(f"the network has {classes} classes (background first), got {len(names)} names: {', '.join(names)}")
    example = torch.zeros(1, 3, 8 * SIDE_MULTIPLE, 12 * SIDE_MULTIPLE)
    rows, columns = torch.export.Dim("rows", min=1, max=128), torch.export.Dim("columns", min=1, max=128)
    program = torch.onnx.export(
        _Logits(network),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({2: SIDE_MULTIPLE * rows, 3: SIDE_MULTIPLE * columns},),
        verbose=False,
    )
    assert program is not None
    simple, sound = onnxsim.simplify(program.model_proto)
    if not sound:
        raise ModelError("onnxsim changed what the network computes: export with another onnxsim version")
    model = _assembled(simple, classes, long_side_px, half_weights)
    metadata = {
        "format_version": FORMAT_VERSION,
        "name": output.stem,
        "class_names": list(names),
        "things": list(range(1, classes)),
        "stride": STRIDE,
        "long_side_px": long_side_px,
        "clustering": {"split": "auto"},
        "training_data": training_data,
        "licence": licence,
        "weights_sha256": hashlib.sha256(b"".join(sorted(i.raw_data for i in model.graph.initializer))).hexdigest(),
    }
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(model, full_check=True)
    part = output.with_suffix(".part")
    onnx.save(model, part)
    try:
        agreement, count = _agreement(network, part, photos, long_side_px)
        if agreement < MIN_AGREEMENT:
            raise ModelError(f"ONNX Runtime agrees with torch on {agreement:.3%} of the pixels of {photos}, wanted {MIN_AGREEMENT:.1%}")
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return {"bytes": output.stat().st_size, "photos": count, "label_agreement": agreement, "metadata": metadata}


class _Logits(torch.nn.Module):
    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(image)["logits"]
        return logits


def _assembled(network: onnx.ModelProto, classes: int, long_side_px: int, half_weights: bool) -> onnx.ModelProto:
    nodes, constants = preprocessing_nodes(long_side_px)
    graph = network.graph
    casts, weights = [], []
    for tensor in graph.initializer:
        if half_weights and tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= 64:
            small = numpy_helper.to_array(tensor).astype(np.float16)
            weights.append(numpy_helper.from_array(small, f"{tensor.name}.half"))
            casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
        else:
            weights.append(tensor)
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "height", "width", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes, "grid_height", "grid_width"])
    whole = helper.make_graph([*nodes, *casts, *graph.node], "tfiseg", [frame], [logits], [*constants, *weights])
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tfiseg")
    model.ir_version = 10  # what ONNX Runtime 1.18 and TensorRT 10 read
    return model


def _agreement(network: SegmentationNetwork, model: Path, photos: Path, long_side_px: int, most: int = 24) -> tuple[float, int]:
    """Least share of pixels on which torch and ONNX Runtime name the same class, over up to ``most`` photos."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    paths = sorted(p for p in photos.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{photos} holds no photo to check the export on")
    shares = []
    for path in paths[:: max(1, len(paths) // most)][:most]:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            continue
        (theirs,) = session.run(["logits"], {"frame": image[None]})
        h, w = network_size_hw(image.shape[0], image.shape[1], long_side_px)
        ours = predict_logits(network, np.asarray(image, np.uint8), (h, w)).numpy()
        shares.append(float((ours.argmax(1) == np.asarray(theirs).argmax(1)).mean()))
    return min(shares), len(shares)
