"""Torch networks of tfiseg to ONNX: trace, simplify, and wrap the graph in a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxsim
import torch
from onnx import helper

from ..errors import ModelError
from .frame_graph import MODEL_IR_VERSION


def trace(
    network: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: tuple[dict[int, Any], ...] | None,
    opset: int,
) -> onnx.ModelProto:
    """Return a network as ONNX, not simplified.

    ``dynamic_shapes``: for each input, axis -> torch.export.Dim of axes of any size; None: no such axis.
    """
    program = torch.onnx.export(
        network,
        inputs,
        dynamo=True,
        opset_version=opset,
        input_names=input_names,
        output_names=output_names,
        dynamic_shapes=dynamic_shapes,
        verbose=False,
    )
    assert program is not None
    return program.model_proto  # each access creates a new one


def simplify_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a simplified copy; raises ModelError if its results differ."""
    simple, sound = onnxsim.simplify(model)
    if not sound:
        raise ModelError("onnxsim changed the network's result: use another version of onnxsim")
    return simple


def model_of(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    """Return a graph as a model of tfiseg."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="tfiseg")
    model.ir_version = MODEL_IR_VERSION
    return model
