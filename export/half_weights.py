"""Store weights as float16 and cast them when a model is loaded: half the file size, same arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

_MIN_VALUES = 64  # smaller tensors save less than a cast costs


def store_as_half(weights: Iterable[TensorProto]) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return cast nodes and initializers that replace float32 initializers.

    Small initializers and those of other types are kept."""
    casts, stored = [], []
    for tensor in weights:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _MIN_VALUES:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            stored.append(numpy_helper.from_array(half, f"{tensor.name}.half"))
            casts.append(
                helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT)
            )
        else:
            stored.append(tensor)
    return casts, stored
