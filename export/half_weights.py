"""Weights stored as float16 and cast when a model is loaded: half the file, arithmetic as before."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

_MIN_VALUES = 64  # below, a cast costs more than it saves


def stored_as_half(weights: Iterable[TensorProto]) -> tuple[list[NodeProto], list[TensorProto]]:
    """Cast nodes and initializers that take the place of these float32 initializers; small ones and other
    types stay."""
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
