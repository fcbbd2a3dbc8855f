"""ONNX operators in PyTorch: arithmetic and shapes. Layers are in ``torch_layers.py``.

Each function takes a ``Call`` and returns a tensor, or a list of them. Source: the operator definitions of
ONNX, opset 13 to 20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ...errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


class Call(Protocol):
    """A node with its inputs, the argument of an operator's function."""

    kind: str

    def given(self, k: int) -> bool:
        """Return whether the node has input ``k``."""

    def tensor(self, k: int = 0) -> Tensor:
        """Return input ``k`` on the device."""

    def numbers(self, k: int) -> list[Any]:
        """Return input ``k`` as a flat list; it must not depend on a frame's content."""

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute; strings are decoded."""

    def outputs(self) -> int:
        """Return the number of outputs."""


Function: TypeAlias = "Callable[[Call], Tensor | Sequence[Tensor]]"
OPERATORS: dict[str, Function] = {}


def operator(*names: str) -> Callable[[Function], Function]:
    """Register a function for ONNX operators of these names."""

    def register(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def unsupported(call: Call, what: str) -> ModelError:
    """Return an error for an operator with an unsupported attribute or input."""
    return ModelError(
        f'backend="torch" does not support the ONNX operator {call.kind} with {what}: '
        'use backend="onnxruntime"'
    )


def _axes(call: Call, at: int) -> list[int] | None:
    """Return the axes of a node: input ``at``, or the attribute of earlier opsets."""
    return call.numbers(at) if call.given(at) else call.attribute("axes")


def _by_torch(name: str, inputs: int) -> Function:
    def function(call: Call) -> Tensor:
        import torch

        return getattr(torch, name)(*(call.tensor(k) for k in range(inputs)))

    return function


_ONE_INPUT = "abs ceil cos erf exp floor log neg reciprocal relu round sigmoid sign sin sqrt tanh isnan"
_TWO_INPUTS = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Pow": "pow",
    "MatMul": "matmul",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "And": "logical_and",
    "Or": "logical_or",
}
OPERATORS.update({("IsNaN" if n == "isnan" else n.title()): _by_torch(n, 1) for n in _ONE_INPUT.split()})
OPERATORS.update({onnx_name: _by_torch(name, 2) for onnx_name, name in _TWO_INPUTS.items()})
OPERATORS.update(Not=_by_torch("logical_not", 1), Where=_by_torch("where", 3))


@operator("Div")
def _div(call: Call) -> Tensor:
    x, y = call.tensor(0), call.tensor(1)
    return x / y if x.is_floating_point() else x.div(y, rounding_mode="trunc")


@operator("Max", "Min", "Sum")
def _across_inputs(call: Call) -> Tensor:
    import torch

    pairs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "Max": torch.maximum,
        "Min": torch.minimum,
        "Sum": torch.add,
    }
    pair = pairs[call.kind]
    found, k = call.tensor(0), 1
    while call.given(k):
        found, k = pair(found, call.tensor(k)), k + 1
    return found


@operator("Identity", "Dropout")
def _identity(call: Call) -> Tensor:
    return call.tensor()


@operator("Cast")
def _cast(call: Call) -> Tensor:
    import torch
    from onnx import TensorProto

    types = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.UINT8: torch.uint8,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.BOOL: torch.bool,
    }
    to = call.attribute("to")
    if to not in types:
        raise unsupported(call, f"the type {TensorProto.DataType.Name(to)}")
    return call.tensor().to(types[to])


@operator("Clip")
def _clip(call: Call) -> Tensor:
    low, high = (call.numbers(k)[0] if call.given(k) else None for k in (1, 2))
    return call.tensor().clamp(low, high)


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Tensor:
    axis = call.attribute("axis", -1)
    return call.tensor().softmax(axis) if call.kind == "Softmax" else call.tensor().log_softmax(axis)


@operator("Gemm")
def _gemm(call: Call) -> Tensor:
    a, b = call.tensor(0), call.tensor(1)
    found = call.attribute("alpha", 1.0) * (
        (a.t() if call.attribute("transA", 0) else a) @ (b.t() if call.attribute("transB", 0) else b)
    )
    return found + call.attribute("beta", 1.0) * call.tensor(2) if call.given(2) else found


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def _reduce(call: Call) -> Tensor:
    x, axes, keep = call.tensor(), _axes(call, 1), bool(call.attribute("keepdims", 1))
    if axes is None:
        if call.attribute("noop_with_empty_axes", 0):
            return x
        axes = [*range(x.ndim)]
    if call.kind == "ReduceL2":
        return x.pow(2).sum(axes, keepdim=keep).sqrt()
    name = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin"}[call.kind]
    return getattr(x, name)(axes, keepdim=keep)


@operator("ArgMax")
def _arg_max(call: Call) -> Tensor:
    if call.attribute("select_last_index", 0):
        raise unsupported(call, "select_last_index")
    return call.tensor().argmax(call.attribute("axis", 0), bool(call.attribute("keepdims", 1)))


@operator("Concat")
def _concat(call: Call) -> Tensor:
    import torch

    parts: list[Tensor] = []
    while call.given(len(parts)):
        parts.append(call.tensor(len(parts)))
    return torch.cat(parts, call.attribute("axis"))


@operator("Split")
def _split(call: Call) -> Sequence[Tensor]:
    x, axis = call.tensor(), call.attribute("axis", 0)
    lengths = call.numbers(1) if call.given(1) else call.attribute("split")
    if lengths is None:
        lengths = -(-x.shape[axis] // call.outputs())
    return x.split(lengths, axis)


@operator("Slice")
def _slice(call: Call) -> Tensor:
    x, starts, ends = call.tensor(), call.numbers(1), call.numbers(2)
    axes = call.numbers(3) if call.given(3) else [*range(len(starts))]
    steps = call.numbers(4) if call.given(4) else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        chosen = range(x.shape[axis])[start:end:step] if step > 0 else None
        if chosen is None and step == -1 and start in (-1, x.shape[axis] - 1) and end < -x.shape[axis]:
            x = x.flip(axis)
        elif chosen is None:
            raise unsupported(call, "a negative step over a part of an axis")
        else:
            index = [slice(None)] * x.ndim
            index[axis] = slice(chosen.start, chosen.stop, step)
            x = x[tuple(index)]
    return x


@operator("Gather")
def _gather(call: Call) -> Tensor:
    x, axis, index = call.tensor(), call.attribute("axis", 0), call.tensor(1)
    axis %= x.ndim
    index = index.where(index >= 0, index + x.shape[axis]).long()
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("Transpose")
def _transpose(call: Call) -> Tensor:
    x = call.tensor()
    return x.permute(call.attribute("perm", [*range(x.ndim)][::-1]))


@operator("Reshape")
def _reshape(call: Call) -> Tensor:
    x, sizes = call.tensor(), call.numbers(1)
    if not call.attribute("allowzero", 0):
        sizes = [x.shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def _flatten(call: Call) -> Tensor:
    x, axis = call.tensor(), call.attribute("axis", 1)
    before = 1
    for size in x.shape[: axis % (x.ndim + 1)]:
        before *= size
    return x.reshape(before, -1)


@operator("Squeeze", "Unsqueeze")
def _squeeze(call: Call) -> Tensor:
    x, axes = call.tensor(), _axes(call, 1)
    if call.kind == "Squeeze":
        return x.squeeze(tuple(axes)) if axes is not None else x.squeeze()
    assert axes is not None
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def _expand(call: Call) -> Tensor:
    import torch

    return call.tensor() * torch.ones(call.numbers(1), dtype=call.tensor().dtype, device=call.tensor().device)


@operator("Tile")
def _tile(call: Call) -> Tensor:
    return call.tensor().repeat(call.numbers(1))
