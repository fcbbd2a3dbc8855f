"""Turn a network for one frame per call into one for several frames of one size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...calibration.graph import Network, session
from ...errors import ModelError

_SIZES = "pre.batch_and_channels"  # of the preprocessing in front of every network that tfiseg writes


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return the network for 1 to ``batch`` frames per call: inputs and outputs (N, ...).

    Raises:
        ModelError: the network wasn't written by ``tfiseg export``, or works with single frames only.
    """
    if batch == 1:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    sizes = next((i for i in graph.initializer if i.name == _SIZES), None)
    if sizes is None:
        raise ModelError(
            f"the network has no preprocessing of tfiseg ({_SIZES}). Export it with `tfiseg export`, or "
            f"omit --batch"
        )
    graph.initializer.remove(sizes)
    constants = {"pre.batch_start": [0], "pre.batch_end": [1], "pre.three_channels": [3]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    )
    node, part = helper.make_node, ["pre.frame_shape", "pre.batch_start", "pre.batch_end"]
    graph.node.extend(
        [
            node("Shape", ["frame"], ["pre.frame_shape"], name="pre.frame_shape"),
            node("Slice", part, ["pre.batch"], name="pre.batch"),
            node("Concat", ["pre.batch", "pre.three_channels"], [_SIZES], name=_SIZES, axis=0),
        ]
    )
    _free_resizes(result)
    _free_reshapes(result)
    del graph.value_info[:]
    for value_info in [*graph.input, *graph.output]:
        value_info.type.tensor_type.shape.dim[0].Clear()
        value_info.type.tensor_type.shape.dim[0].dim_param = "batch"
    network = Network(result)
    network.sort()
    _check(model, network.model, batch)
    return network.model


def _free_resizes(model: onnx.ModelProto) -> None:
    """Replace the batch size 1 in the sizes of each Resize with the batch size of the call."""
    graph = model.graph
    bounds = {"pre.sides_start": [1], "pre.sides_end": [4]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in bounds.items()
    )
    resizes = [n for n in graph.node if n.op_type == "Resize" and len(n.input) > 3]
    for k, node in enumerate(n for n in resizes if not n.output[0].startswith("pre.")):
        sides, sizes = f"pre.sides_{k}", f"pre.sizes_{k}"
        graph.node.extend(
            [
                helper.make_node("Slice", [node.input[3], *bounds], [sides], name=sides),
                helper.make_node("Concat", ["pre.batch", sides], [sizes], name=sizes, axis=0),
            ]
        )
        node.input[3] = sizes


def _free_reshapes(model: onnx.ModelProto) -> None:
    """Make each Reshape to a constant (1, ...) keep the batch size.

    If its first axis is not the batch axis, ``_check`` fails.
    """
    constants = {i.name: i for i in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Reshape" and n.input[1] in constants]:
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if len(shape) and shape[0] == 1 and (shape != 0).all():
            shape[0] = 0 if -1 in shape else -1  # 0: copied from the input; -1: inferred
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)  # with it, 0 is a size
            name = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name


def _check(single: onnx.ModelProto, batched: onnx.ModelProto, batch: int) -> None:
    """Run different frames as a batch and one by one; raises ModelError if the results differ."""
    frames = np.random.default_rng(0).integers(0, 256, (batch, 96, 128, 3), dtype=np.uint8)
    one, name = session(single), single.graph.input[0].name
    expected = np.concatenate([one.run(None, {name: frame[None]})[0] for frame in frames])
    try:
        together = session(batched).run(None, {name: frames})[0]
    except Exception as wrong:  # onnxruntime's errors share no base class
        raise ModelError(f"the network can't take {batch} frames at once: {wrong}") from wrong
    largest = 0.05 * float(np.abs(expected).max())
    if together.shape != expected.shape or np.abs(together.astype(np.float32) - expected).max() > largest:
        raise ModelError(
            f"the network's result for a batch of {batch} frames differs from single frames. Build it with "
            f"--batch 1"
        )
