"""Execution of an ONNX graph in PyTorch, for GPUs without TensorRT and onnxruntime-gpu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError
from . import torch_layers  # noqa: F401  registers its operators
from .torch_operators import OPERATORS

if TYPE_CHECKING:
    from torch import Tensor

_MIN_OPSET = 13  # Softmax has another definition before
_SIZES = ("Shape", "Size")  # depend only on the shape of their input
# index of the weights, which half precision converts
_WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1}
_MAX_SHAPES = 256  # limits the memory that photos of many sizes use

Shapes: TypeAlias = "tuple[tuple[str, tuple[int, ...]], ...]"


@dataclass(frozen=True)
class _Constants:
    """Values that do not depend on a frame: host arrays, and their device tensors."""

    host: dict[str, NDArray[Any]] = field(default_factory=dict)
    device: dict[tuple[str, bool], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Values:
    """Values of one run by name: of the frame, of its shapes, and the network's constants."""

    device: dict[str, Tensor]
    of_shapes: _Constants
    of_network: _Constants

    def holder(self, name: str) -> _Constants | None:
        """Return the constants that hold a value; None if it depends on the frame's content."""
        for constants in (self.of_shapes, self.of_network):
            if name in constants.host:
                return constants
        return None


class TorchNetwork:
    """An ONNX network on a PyTorch device.

    Values that depend only on the shapes of the inputs, such as the sizes of a Resize, are computed on the
    host by ONNX's reference implementation, once for each set of shapes. Later runs only enqueue kernels, so
    that a CUDA graph can capture them.

    Args:
        model: ``onnx.ModelProto`` that contains all its weights.
        device: "cpu", "cuda" or "cuda:1".
        half: multiply in float16 (``torch.autocast``).

    Raises:
        ModelError: the model has an unsupported operator.
    """

    def __init__(self, model: Any, device: str, half: bool = False) -> None:
        import torch
        from onnx import numpy_helper

        opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        if opset < _MIN_OPSET:
            raise ModelError(
                f'backend="torch" supports ONNX from opset {_MIN_OPSET} on, this model has opset {opset}: '
                'use backend="onnxruntime"'
            )
        graph = model.graph
        self._torch, self._device, self._half = torch, torch.device(device), half
        self.outputs = [output.name for output in graph.output]
        self._constants = _Constants(
            {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        )
        self._by_shapes: dict[Shapes, _Constants] = {}
        self._nodes = self._without_constants([_Node(proto) for proto in graph.node])
        unknown = sorted({n.kind for n in self._nodes if n.kind not in OPERATORS and n.kind not in _SIZES})
        if unknown:
            raise ModelError(
                f'backend="torch" does not support the ONNX operators {", ".join(unknown)}: '
                'use backend="onnxruntime"'
            )
        last = {name: k for k, node in enumerate(self._nodes) for name in node.inputs}
        self._ending: list[list[str]] = [[] for _ in self._nodes]  # last used by node k
        for name, k in last.items():
            if name not in self.outputs:
                self._ending[k].append(name)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name; inputs and outputs are on the device."""
        shapes = tuple(sorted((name, tuple(tensor.shape)) for name, tensor in inputs.items()))
        if len(self._by_shapes) > _MAX_SHAPES and self._device.type == "cpu":  # no CUDA graph refers to them
            self._by_shapes = {}
        known = self._by_shapes.setdefault(shapes, _Constants())
        values = _Values(dict(inputs), known, self._constants)
        autocast = self._torch.autocast(
            self._device.type, self._torch.float16, enabled=self._half, cache_enabled=False
        )
        with self._torch.inference_mode(), autocast:
            for node, ending in zip(self._nodes, self._ending, strict=True):
                self._run(node, values)
                for name in ending:  # frees memory: else all maps of all layers would be kept
                    values.device.pop(name, None)
        return {name: values.device[name] for name in self.outputs}

    def _without_constants(self, nodes: Sequence[_Node]) -> list[_Node]:
        """Evaluate nodes that depend on constants only; return the remaining nodes."""
        remaining = []
        for node in nodes:
            if all(name in self._constants.host for name in node.inputs if name):
                node.run_on_host(_Values({}, self._constants, self._constants))
            else:
                remaining.append(node)
        return remaining

    def _run(self, node: _Node, values: _Values) -> None:
        if node.outputs[0] in values.of_shapes.host:
            return
        if node.kind in _SIZES or not any(name in values.device for name in node.inputs):
            node.run_on_host(values)
            return
        found = OPERATORS[node.kind](_Call(node, values, self))
        given = [found] if isinstance(found, self._torch.Tensor) else found
        values.device.update(zip(node.outputs, given, strict=False))

    def on_device(self, name: str, known: _Constants, weight: bool) -> Tensor:
        """Return a constant on the device; with ``half``, weights are float16."""
        key = name, weight
        if key not in known.device:
            tensor = self._torch.from_numpy(np.array(known.host[name])).to(self._device)
            known.device[key] = (
                tensor.half() if weight and self._half and tensor.is_floating_point() else tensor
            )
        return known.device[key]


class _Node:
    """A node of the graph, with parsed attributes."""

    def __init__(self, proto: Any) -> None:
        from onnx import helper

        self._proto = proto
        self.kind, self.inputs, self.outputs = proto.op_type, [*proto.input], [*proto.output]
        values: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        texts = {name: value.decode() for name, value in values.items() if isinstance(value, bytes)}
        self.attributes: dict[str, Any] = values | texts

    def run_on_host(self, values: _Values) -> None:
        """Evaluate the node with ONNX's reference implementation, for all frames of these shapes."""
        if self.kind in _SIZES:  # only the shape is read, not the tensor
            name = self.inputs[0]
            known = values.holder(name)
            shape = tuple(values.device[name].shape if known is None else known.host[name].shape)
            part = shape[self.attributes.get("start") : self.attributes.get("end")]
            found: Sequence[Any] = [np.asarray(part if self.kind == "Shape" else np.prod(shape), np.int64)]
        else:
            from onnx.reference import ReferenceEvaluator

            holders = {name: values.holder(name) for name in self.inputs if name}
            given = {name: known.host[name] for name, known in holders.items() if known is not None}
            found = [*ReferenceEvaluator(self._proto).run(None, given)]
        for name, value in zip(self.outputs, found, strict=False):
            values.of_shapes.host[name] = np.asarray(value)


class _Call:
    """See ``torch_operators.Call``."""

    def __init__(self, node: _Node, values: _Values, graph: TorchNetwork) -> None:
        self._node, self._values, self._graph = node, values, graph
        self.kind = node.kind

    def given(self, k: int) -> bool:
        if k >= len(self._node.inputs) or not self._node.inputs[k]:
            return False
        known = self._values.holder(self._node.inputs[k])
        empty = known is not None and known.host[self._node.inputs[k]].size == 0
        return not (self.kind == "Resize" and empty)  # an empty input is an omitted one

    def tensor(self, k: int = 0) -> Tensor:
        name = self._node.inputs[k]
        known = self._values.holder(name)
        if known is None:
            return self._values.device[name]
        return self._graph.on_device(name, known, _WEIGHTED.get(self.kind) == k)

    def numbers(self, k: int) -> list[Any]:
        name = self._node.inputs[k]
        known = self._values.holder(name)
        if known is None:
            raise ModelError(
                f'backend="torch" needs input {k} of the ONNX operator {self.kind} to be constant for all '
                'frames of a size: use backend="onnxruntime"'
            )
        numbers: list[Any] = known.host[name].reshape(-1).tolist()
        return numbers

    def attribute(self, name: str, default: Any = None) -> Any:
        return self._node.attributes.get(name, default)

    def outputs(self) -> int:
        return len(self._node.outputs)
