"""Removal of the preprocessing from an ONNX graph, to run it natively in one pass over the frame.

A model in tfiseg's format contains its preprocessing (export/frame_graph.py), so that it runs anywhere. ONNX
Runtime needs 2.8 ms for it at 640 x 480 and 8 ms at 1920 x 1080, with three float copies of the frame.
``native.fit_frame`` needs 0.4 and 0.7 ms; on a GPU, ``gpu.frame_fitting`` does the same in one kernel. So the
nodes up to ``pre.small`` are removed, and this tensor becomes the input. The package onnx isn't needed: bytes
of the file are kept or skipped field by field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ModelError
from .onnx_bytes import (
    INITIALIZER,
    INPUT,
    NODE,
    NODE_INPUT,
    NODE_OUTPUT,
    OUTPUT,
    TENSOR_NAME,
    TENSOR_RAW,
    as_varint,
    field,
    fields,
    graph_of,
    number_of,
    texts,
    weights_elsewhere,
    with_graph,
)

FRAME, SMALL = "frame", "pre.small"
MAX_SIDE_PX = 8192  # of a network's input
_FLOAT = 1
# the operators that fit_frame replaces: operator, output, attributes
_CHAIN = [
    ("Cast", "pre.float", {"to": _FLOAT}),
    ("Transpose", "pre.nchw", {"perm": [0, 3, 1, 2]}),
    ("Resize", "pre.double", {"coordinate_transformation_mode": b"half_pixel", "mode": b"linear"}),
    ("AveragePool", SMALL, {"kernel_shape": [2, 2], "strides": [2, 2]}),
]
_NODE_OP, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TEXT, _ATTRIBUTE_INTS = 1, 3, 4, 8


@dataclass(frozen=True)
class NativePreprocessing:
    """Size of a model's tensor ``pre.small``, float32 (1, 3, h, w) BGR, 0..255."""

    fixed_hw: tuple[int, int] | None  # size in pixels; None: it depends on the frame
    long_side_px: np.float32 | None = None  # longer side in pixels
    side_multiple: np.float32 | None = None  # sides are multiples of it

    def size_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the input size for a frame size, with the graph's arithmetic in float32."""
        if self.fixed_hw is not None:
            return self.fixed_hw
        assert self.long_side_px is not None
        assert self.side_multiple is not None
        sides = np.array(frame_hw, np.float32)
        blocks = np.round(sides * (self.long_side_px / sides.max()) / self.side_multiple)
        height, width = np.maximum(blocks, 1).astype(int) * int(self.side_multiple)
        return int(height), int(width)


def input_type(name: str) -> np.dtype[Any]:
    """Return the dtype of a network's input: float32 for ``pre.small``, uint8 for frames and views."""
    return np.dtype(np.float32 if name == SMALL else np.uint8)


def split_preprocessing(model: bytes) -> tuple[NativePreprocessing, bytes] | None:
    """Split an ONNX model into its preprocessing and the rest.

    Returns:
        The preprocessing, and the model without it. None if it isn't tfiseg's, other nodes read the frame, or
        weights are in other files.

    Raises:
        ModelError: frames would be scaled to a size that is out of range.
    """
    try:
        graph = graph_of(model)
        elsewhere, constants = weights_elsewhere(graph), _constants(graph)
        kept = _remaining_nodes(graph)
        preprocessing = _read_sizes(constants)
        if elsewhere or kept is None or preprocessing is None:
            return None
        parts = [
            whole
            for number, value, whole in fields(graph)
            if number not in (NODE, INPUT) or _is_kept(number, value, kept)
        ]
        changed = with_graph(model, b"".join(parts) + field(INPUT, _float_image(SMALL)))
    except (IndexError, StopIteration, ValueError):  # damaged: ONNX Runtime reports the error
        return None
    _check_size(preprocessing)
    return preprocessing, changed


def _check_size(preprocessing: NativePreprocessing) -> None:
    """Raise ModelError for sizes that are empty or would fill the memory."""
    if preprocessing.fixed_hw is not None:
        sides: tuple[float, ...] = preprocessing.fixed_hw
    else:
        assert preprocessing.long_side_px is not None
        assert preprocessing.side_multiple is not None
        sides = (float(preprocessing.long_side_px), float(preprocessing.side_multiple))
    if not all(1 <= side <= MAX_SIDE_PX for side in sides):  # also false for NaN
        raise ModelError(
            f"the model scales frames to {' x '.join(f'{side:g}' for side in sides)} pixels, expected sides "
            f"in 1..{MAX_SIDE_PX}: export it again"
        )


def _is_kept(number: int, value: memoryview, kept: set[str]) -> bool:
    if number == INPUT:
        return texts(value, 1) != [FRAME]
    return texts(value, NODE_OUTPUT)[0] in kept


def _remaining_nodes(graph: memoryview) -> set[str] | None:
    """Return the first outputs of the nodes to keep; None if that is impossible."""
    nodes = [
        (texts(v, NODE_INPUT), texts(v, NODE_OUTPUT), v) for number, v, _ in fields(graph) if number == NODE
    ]
    makers = {name: (inputs, value) for inputs, outputs, value in nodes for name in outputs}
    if len(makers) < sum(len(outputs) for _, outputs, _ in nodes):
        return None  # two nodes with the same output: no valid graph
    chain: list[tuple[str, str, dict[str, int | bytes | list[int]]]] = []
    name = SMALL
    while name in makers and len(chain) <= len(_CHAIN):  # the second condition ends cycles
        inputs, value = makers[name]
        chain.append((texts(value, _NODE_OP)[0], name, _attributes(value)))
        name = inputs[0]
    if chain[::-1] != _CHAIN or name != FRAME:
        return None
    given_out = {texts(value, 1)[0] for number, value, _ in fields(graph) if number == OUTPUT}
    rest = [node for node in nodes if not node[1][0].startswith("pre.")]
    read = _read_by(makers, given_out.union(*(inputs for inputs, _, _ in rest)))
    kept = [*rest, *(node for node in nodes if node[1] != [SMALL] and read.intersection(node[1]))]
    needed = given_out.union(*(inputs for inputs, _, _ in kept))
    return None if FRAME in needed else {outputs[0] for _, outputs, _ in kept}


def _read_by(makers: dict[str, tuple[list[str], memoryview]], wanted: set[str]) -> set[str]:
    """Return the wanted tensors of the preprocessing, and all that they depend on."""
    todo, found = [*wanted], set[str]()
    while todo:
        name = todo.pop()
        if name in makers and name.startswith("pre.") and name != SMALL and name not in found:
            found.add(name)
            todo += makers[name][0]
    return found


def _attributes(node: memoryview) -> dict[str, int | bytes | list[int]]:
    found: dict[str, int | bytes | list[int]] = {}
    for attribute in (value for number, value, _ in fields(node) if number == _NODE_ATTRIBUTE):
        parts = [(number, value) for number, value, _ in fields(attribute)]
        several = [number_of(value) for number, value in parts if number == _ATTRIBUTE_INTS]
        one = [number_of(value) for number, value in parts if number == _ATTRIBUTE_INT]
        text = [bytes(value) for number, value in parts if number == _ATTRIBUTE_TEXT]
        name = next(bytes(value).decode() for number, value in parts if number == _ATTRIBUTE_NAME)
        found[name] = several or (one or text or [b""])[0]
    return found


def _constants(graph: memoryview) -> dict[str, memoryview]:
    """Return the raw bytes of the preprocessing's constants."""
    raw = {}
    for number, value, _ in fields(graph):
        if number == INITIALIZER:
            parts = {n: v for n, v, _ in fields(value)}
            name = bytes(parts.get(TENSOR_NAME, b"")).decode()
            if name.startswith("pre.") and TENSOR_RAW in parts:
                raw[name] = parts[TENSOR_RAW]
    return raw


def _read_sizes(constants: dict[str, memoryview]) -> NativePreprocessing | None:
    if "pre.double_hw" in constants:
        height, width = (int(side) // 2 for side in np.frombuffer(constants["pre.double_hw"], np.int64))
        return NativePreprocessing((height, width))
    if {"pre.long_side", "pre.multiple"} <= set(constants):
        long_side, multiple = (
            np.frombuffer(constants[name], np.float32)[0] for name in ("pre.long_side", "pre.multiple")
        )
        return NativePreprocessing(None, long_side, multiple)
    return None


def _float_image(name: str) -> bytes:
    """Encode a ValueInfoProto: float (1, 3, any, any)."""
    known = [field(1, as_varint(1 << 3) + as_varint(size)) for size in (1, 3)]
    free = [field(1, field(2, side.encode())) for side in ("small_height", "small_width")]
    tensor = as_varint(1 << 3) + as_varint(_FLOAT) + field(2, b"".join(known + free))
    return field(1, name.encode()) + field(2, field(1, tensor))
