"""Export a semantic network with instance heads as one ONNX model in tfiseg's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ...errors import ModelError
from ...plugins.settings import AFFINITY_OFFSETS, SHARPEN
from ...runtime.networks.model_info import METADATA_KEY, weights_digest
from ...runtime.networks.model_variants import HEADS_PREFIX, WITHOUT_HEADS
from ..half_weights import store_as_half
from ..model_file import check_difference, round_to_float32, write_whole_model
from ..onnx_import.agreement import check_frames
from ..onnx_import.onnx_network import with_opset
from ..tracing import simplify_model, trace
from .backbone_taps import FeatureReader, Tap, start_model_session
from .heads import InstanceHeads

OPSET = 18  # or the network's own, if it is newer
_MAX_ROWS = 128
FINER = 2  # cells of the logits per cell of the heads; small objects need the finer grid


class _Probabilities(torch.nn.Module):
    """Computes affinity and boundary in [0, 1] from features.

    Displacement is for training only: regions come from the masks' shapes."""

    def __init__(self, heads: InstanceHeads) -> None:
        super().__init__()
        self.heads = heads
        self.eval()

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor]:
        _, affinity, boundary = self.heads(*features)
        return affinity.sigmoid(), boundary.sigmoid()


def export_frame(
    model: onnx.ModelProto,
    taps: Sequence[Tap],
    heads: InstanceHeads,
    output: Path,
    rules: Mapping[str, NDArray[np.float32]] | None = None,
    photos: str | Path | None = None,
    training_data: str = "not stated",
    min_area: int | None = None,
) -> dict[str, Any]:
    """Write the network with its heads, and check it against torch.

    Args:
        model: the semantic network in tfiseg's format; its own part is not changed.
        taps, heads: see ``find_taps`` and ``train_frame``.
        output: NAME.onnx, written atomically.
        rules: "merge" and "part" rules of these heads (``rule_fitting.py``); None: the mean affinity decides,
            without a second pass.
        photos: source of photos for the check, see ``open_source``; default: 4 synthetic frames.
        training_data: sentence for the metadata on the training data of the heads.
        min_area: minimum area in pixels of the objects that they are for; None: any.

    Returns:
        Size in bytes, largest difference of a probability from torch's, and metadata.

    Raises:
        ModelError: probabilities differ by more than 0.02 from torch, or the logits from the network's own.
    """
    opset = max(OPSET, *(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))
    base, _ = with_opset(model, opset)
    frames = [image for _, image in check_frames(photos)]
    whole = _append_heads(base, taps, _head_graph(heads, taps, base, opset))
    metadata = json.loads(next(p.value for p in model.metadata_props if p.key == METADATA_KEY))
    own = {key: metadata[key] for key in ("stride", "clustering", "weights_sha256") if key in metadata}
    metadata |= {
        WITHOUT_HEADS: own,
        "name": output.stem,
        "stride": taps[0].stride // FINER,
        "instance_training_data": training_data,
    }
    offsets = [list(o) for o in AFFINITY_OFFSETS]
    metadata["clustering"] = {
        **metadata.get("clustering", {}),
        "affinity_offsets": offsets,
        "affinity_stride": FINER,
    }
    metadata["clustering"]["sharpen"] = SHARPEN
    metadata["clustering"].pop("score_rule", None)  # a score calibration without heads does not apply
    metadata["clustering"] |= {f"{name}_rule": round_to_float32(rule) for name, rule in (rules or {}).items()}
    if min_area is not None:
        metadata["clustering"]["min_area"] = min_area
    metadata["weights_sha256"] = weights_digest(whole.graph.initializer)
    del whole.metadata_props[:]
    helper.set_model_props(whole, {METADATA_KEY: json.dumps(metadata)})
    with write_whole_model(whole, output) as part:
        difference = _difference(base, taps, heads, part, frames)
        check_difference(difference)
    return {"bytes": output.stat().st_size, "largest_difference": round(difference, 5), "metadata": metadata}


def _head_graph(
    heads: InstanceHeads, taps: Sequence[Tap], model: onnx.ModelProto, opset: int
) -> onnx.GraphProto:
    """Export the heads; their sizes are dynamic if the network's are."""
    wide = np.zeros((256, 384, 3), np.uint8)
    features_of = FeatureReader(model, taps)
    at_two_sizes = [features_of(wide), features_of(np.ascontiguousarray(wide[:, :256]))]
    example = [torch.from_numpy(np.ascontiguousarray(f)) for f in at_two_sizes[0]]
    shapes: Any = None
    if any(a.shape != b.shape for a, b in zip(*at_two_sizes, strict=True)):
        coarsest = example[[t.stride for t in taps].index(max(t.stride for t in taps))].shape[2:]
        rows, columns = (torch.export.Dim(name, min=1, max=_MAX_ROWS) for name in ("rows", "columns"))
        times = [[side // base for side, base in zip(f.shape[2:], coarsest, strict=True)] for f in example]
        if any(
            tuple(f.shape[2:]) != tuple(k * c for k, c in zip(t, coarsest, strict=True))
            for f, t in zip(example, times, strict=True)
        ):
            raise ModelError(
                "the sizes of the network's features are not multiples of each other: export it with a fixed "
                "size"
            )
        shapes = (
            tuple(
                {2: k[0] * rows if k[0] > 1 else rows, 3: k[1] * columns if k[1] > 1 else columns}
                for k in times
            ),
        )
    names, outputs = [t.name for t in taps], ["affinity", "boundary"]
    return simplify_model(trace(_Probabilities(heads), tuple(example), names, outputs, shapes, opset)).graph


def _append_heads(model: onnx.ModelProto, taps: Sequence[Tap], heads: onnx.GraphProto) -> onnx.ModelProto:
    """Append the heads to the network's graph; logits and boundary have twice the heads' grid."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    kept = {t.name for t in taps} | {"affinity", "boundary"}

    def named(name: str) -> str:
        return name if name in kept or not name else HEADS_PREFIX + name

    casts, weights = store_as_half(heads.initializer)
    for tensor in weights:
        tensor.name = named(tensor.name)
    for k, node in enumerate([*casts, *heads.node]):
        for names in (node.input, node.output):
            names[:] = [named(n) for n in names]
        node.name = f"{HEADS_PREFIX}{node.op_type}_{k}"
        whole.graph.node.append(node)
    whole.graph.initializer.extend(weights)
    for name, channels in (("affinity", len(AFFINITY_OFFSETS)), ("boundary", 1)):
        whole.graph.output.append(
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [1, channels, "heads_height", "heads_width"]
            )
        )
    _scale(whole)
    return whole


def _scale(whole: onnx.ModelProto) -> None:
    """Scale logits (interpolated) and boundary (repeated) to ``FINER`` cells per cell of the heads."""
    coarse = {name: f"{HEADS_PREFIX}coarse_{name}" for name in ("logits", "boundary")}
    for node in whole.graph.node:
        for names in (node.input, node.output):
            names[:] = [coarse.get(n, n) for n in names]
    constants = {"start": [2], "end": [4], "finer": [FINER, FINER]}
    whole.graph.initializer.extend(
        numpy_helper.from_array(np.array(v, np.int64), HEADS_PREFIX + k) for k, v in constants.items()
    )
    node, part = helper.make_node, [HEADS_PREFIX + name for name in ("shape", "start", "end")]
    added = [
        node("Shape", ["affinity"], [HEADS_PREFIX + "shape"]),
        node("Slice", part, [HEADS_PREFIX + "hw"]),
        node("Mul", [HEADS_PREFIX + "hw", HEADS_PREFIX + "finer"], [HEADS_PREFIX + "grid_hw"]),
    ]
    for output in whole.graph.output:
        if output.name not in coarse:
            continue
        name, channels = output.name, output.type.tensor_type.shape.dim[1].dim_value
        size, one = f"{HEADS_PREFIX}{name}_size", f"{HEADS_PREFIX}{name}_channels"
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        if name == "boundary":
            how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        whole.graph.initializer.append(numpy_helper.from_array(np.array([1, channels], np.int64), one))
        added += [
            node("Concat", [one, HEADS_PREFIX + "grid_hw"], [size], axis=0),
            node("Resize", [coarse[name], "", "", size], [name], **how),
        ]
        output.CopyFrom(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "grid_height", "grid_width"])
        )
    whole.graph.node.extend(added)
    del whole.graph.value_info[:]


@torch.no_grad()
def _difference(
    model: onnx.ModelProto,
    taps: Sequence[Tap],
    heads: InstanceHeads,
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
) -> float:
    """Return the largest difference of a probability between torch and the written model."""
    whole, largest = start_model_session(path), 0.0
    torch_heads, features_of = _Probabilities(heads), FeatureReader(model, taps)
    for frame in frames:
        actual = whole.run(["affinity", "boundary"], {"frame": frame[None]})
        expected = torch_heads(*(torch.from_numpy(f) for f in features_of(frame)))
        actual[1] = actual[1][:, :, ::FINER, ::FINER]
        largest = max(
            largest, *(float(np.abs(a.numpy() - b).max()) for a, b in zip(expected, actual, strict=True))
        )
    return largest
