"""A network for one frame per call made into one for N."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ModelError

_SIZES = "pre.batch_and_channels"  # of the preprocessing in front of every network that tfiseg writes


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The network with inputs and outputs of N frames of one size.

    Raises:
        ModelError: it wasn't written by ``tfiseg export``, or something behind the preprocessing insists on single frames.
    """
    if batch == 1:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    sizes = next((i for i in result.graph.initializer if i.name == _SIZES), None)
    if sizes is None:
        raise ModelError(f"the network has no preprocessing of tfiseg ({_SIZES}): export it with `tfiseg export`, or leave --batch out")
    value = numpy_helper.to_array(sizes).copy()
    value[0] = batch
    sizes.CopyFrom(numpy_helper.from_array(np.asarray(value), _SIZES))
    del result.graph.value_info[:]
    for value_info in [*result.graph.input, *result.graph.output]:
        value_info.type.tensor_type.shape.dim[0].dim_value = batch
    return result
