"""Export a trained semantic network as ONNX, from frames of any size to logits.

The preprocessing (``frame_graph``) is inserted before the network. The result is checked against torch on
photos.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from ...errors import InputError, ModelError
from ...runtime.networks.model_info import FORMAT_VERSION, METADATA_KEY, weights_digest
from ...runtime.networks.onnx_runtime import start_session
from ..checkpoint import read_checkpoint
from ..frame_graph import PixelFormat, frame_value, long_side_nodes, pixel_nodes
from ..half_weights import store_as_half
from ..model_file import write_whole_model
from ..onnx_import.agreement import MIN_AGREEMENT, check_frames
from ..onnx_import.class_lists import VOC21
from ..tracing import model_of, simplify_model, trace
from .backbones import PIXEL_MEAN, PIXEL_STD
from .network import SIDE_MULTIPLE, SegmentationNetwork
from .train import LONG_SIDE_PX, add_background_bias, network_size_hw, predict_logits

CHECKPOINT = "a checkpoint of `tfiseg train semantic`"
OPSET = 18
STRIDE = 4


def load_checkpoint(path: Path) -> tuple[SegmentationNetwork, list[str] | None]:
    """Load the averaged network of a checkpoint and its class names, if they are stored.

    Raises:
        ModelError: the file is no checkpoint of a semantic network.
    """
    state = read_checkpoint(path, CHECKPOINT)
    if "recipe" not in state:
        raise ModelError(
            f"{path} is no checkpoint of `tfiseg train semantic`: it has no recipe. For weights of another "
            f"network: tfiseg export python:module:function --weights {path}"
        )
    try:
        recipe = state["recipe"]
        outputs = {"logits": int(recipe["classes"])}
        network = SegmentationNetwork(outputs, backbone=recipe.get("backbone", "lite0"))
        network.load_state_dict(state["average"])
        add_background_bias(network, float(state.get("background_bias", 0)))
        names = [str(name) for name in state.get("class_names", ())]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as wrong:
        raise ModelError(f"{path} is no checkpoint of `tfiseg train semantic`: {wrong}") from wrong
    return network.eval(), names or None


def export_semantic(
    checkpoint: Path,
    output: Path,
    photos: str | Path | None = None,
    long_side_px: int = LONG_SIDE_PX,
    half_weights: bool = True,
    class_names: Sequence[str] | None = None,
    training_data: str = "not stated",
    licence: str = "not stated",
) -> dict[str, Any]:
    """Write the ONNX model of a checkpoint and check it against torch.

    Args:
        checkpoint: written by ``tfiseg train semantic``.
        output: NAME.onnx, written atomically.
        photos: source of photos for the check, see ``open_source``; default: 4 synthetic frames.
        long_side_px: the longer side of the network's input.
        half_weights: store weights as float16 and cast them when the model is loaded. Arithmetic stays
            float32.
        class_names: names of all class IDs, background first; default: those of the checkpoint, else
            PASCAL's with 21 classes, else "class N".
        training_data, licence: sentences for the metadata.

    Returns:
        Size in bytes, number of photos, ``label_agreement`` (lowest share of pixels with the same class),
        metadata.

    Raises:
        ModelError: torch and ONNX Runtime agree on less than 99.5 % of the pixels of a photo.
    """
    network, stored_names = load_checkpoint(checkpoint)
    classes = int(network.heads["logits"].out_channels)  # type: ignore[arg-type]
    names = _check_class_names(class_names or stored_names, classes)
    model = _assemble(_trace(network), classes, long_side_px, half_weights)
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
        "weights_sha256": weights_digest(model.graph.initializer),
    }
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    with write_whole_model(model, output) as part:
        agreement, count = _agreement(network, part, photos, long_side_px)
        if agreement < MIN_AGREEMENT:
            raise ModelError(
                f"ONNX Runtime agrees with torch on {agreement:.3%} of the pixels of a photo, expected at "
                f"least {MIN_AGREEMENT:.1%}: train for longer, or store weights as float32 (--fp32-weights)"
            )
    return {
        "bytes": output.stat().st_size,
        "photos": count,
        "label_agreement": agreement,
        "metadata": metadata,
    }


def _check_class_names(names: Sequence[str] | None, classes: int) -> Sequence[str]:
    if names is None:
        return VOC21 if classes == len(VOC21) else ("background", *(f"class {i}" for i in range(1, classes)))
    if len(names) != classes:
        raise InputError(
            f"the network has {classes} classes (background first), got {len(names)} names: "
            f"{', '.join(names)}"
        )
    return names


class _Logits(torch.nn.Module):
    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(image)["logits"]
        return logits


def _trace(network: SegmentationNetwork) -> onnx.ModelProto:
    """Trace the network for an ``image`` with sides that are multiples of ``SIDE_MULTIPLE``."""
    example = torch.zeros(1, 3, 8 * SIDE_MULTIPLE, 12 * SIDE_MULTIPLE)
    rows, columns = torch.export.Dim("rows", min=1, max=128), torch.export.Dim("columns", min=1, max=128)
    sides = {2: SIDE_MULTIPLE * rows, 3: SIDE_MULTIPLE * columns}
    return simplify_model(trace(_Logits(network), (example,), ["image"], ["logits"], (sides,), OPSET))


def _assemble(
    network: onnx.ModelProto, classes: int, long_side_px: int, half_weights: bool
) -> onnx.ModelProto:
    sizing, size_constants = long_side_nodes(long_side_px, SIDE_MULTIPLE)
    pixels, pixel_constants = pixel_nodes(PixelFormat((PIXEL_MEAN,) * 3, (PIXEL_STD,) * 3, scale=1))
    graph = network.graph
    casts, weights = store_as_half(graph.initializer) if half_weights else ([], list(graph.initializer))
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, [1, classes, "grid_height", "grid_width"]
    )
    nodes, constants = [*sizing, *pixels, *casts, *graph.node], [*size_constants, *pixel_constants, *weights]
    whole = helper.make_graph(nodes, "tfiseg", [frame_value()], [logits], constants)
    return model_of(whole, OPSET)


def _agreement(
    network: SegmentationNetwork, model: Path, photos: str | Path | None, long_side_px: int
) -> tuple[float, int]:
    """Return the lowest share of pixels of a photo with the same class in torch, and the number of photos."""
    session = start_session(model)
    shares = []
    for _, image in check_frames(photos):
        (actual,) = session.run(["logits"], {"frame": image[None]})
        h, w = network_size_hw(image.shape[0], image.shape[1], long_side_px)
        expected = predict_logits(network, image, (h, w)).numpy()
        shares.append(float((expected.argmax(1) == np.asarray(actual).argmax(1)).mean()))
    return min(shares), len(shares)
