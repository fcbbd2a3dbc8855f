"""Editing of ONNX files in protobuf's wire format, without the package onnx."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping

GRAPH = 7  # of a model
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12  # of a graph
NODE_INPUT, NODE_OUTPUT, _NODE_NAME = 1, 2, 3
_VALUE_NAME = 1  # of an input or output
_TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW, _TENSOR_LOCATION = 2, 8, 9, 14
_INT8 = 3


def with_outputs(model: bytes, wanted: Collection[str]) -> bytes | None:
    """Remove other outputs, and nodes that only they need; None if weights are in other files."""
    graph = graph_of(model)
    if weights_elsewhere(graph):
        return None
    needed, kept = set(wanted), set[str]()
    nodes = [value for kind, value, _ in fields(graph) if kind == NODE]
    for node in reversed(nodes):  # ONNX sorts nodes topologically
        made = texts(node, NODE_OUTPUT)
        if needed.intersection(made):
            needed.update(texts(node, NODE_INPUT))
            kept.add(made[0])
    parts = []
    for kind, value, whole in fields(graph):
        if kind == NODE and texts(value, NODE_OUTPUT)[0] not in kept:
            continue
        if kind == OUTPUT and texts(value, _VALUE_NAME)[0] not in wanted:
            continue
        parts.append(whole)
    return with_graph(model, b"".join(parts))


def with_own_int8(model: bytes) -> bytes:
    """Give each layer of an ONNX model its own copy of int8 constants that are shared, or outputs too.

    A constant is an initializer, or a node whose inputs are constants, such as a DequantizeLinear of weights.
    Layers in subgraphs keep shared constants.
    """
    graph = graph_of(model)
    initializers = {texts(v, TENSOR_NAME)[0]: v for kind, v, _ in fields(graph) if kind == INITIALIZER}
    makers = {name: (INITIALIZER, tensor) for name, tensor in initializers.items() if _is_int8(tensor)}
    used = {name for kind, v, _ in fields(graph) if kind == OUTPUT for name in texts(v, _VALUE_NAME)}
    constants, parts, numbers = {"", *initializers}, list[bytes](), itertools.count(1)

    def own(name: str) -> str:
        if name not in makers or name not in used:
            used.add(name)
            return name
        copy, (kind, maker) = f"{name}/copy-{next(numbers)}", makers[name]
        names = {TENSOR_NAME: [copy]}
        if kind == NODE:
            names = {NODE_INPUT: [own(n) for n in texts(maker, NODE_INPUT)]}
            names |= {NODE_OUTPUT: [copy], _NODE_NAME: [copy]}
        parts.append(field(kind, _with_texts(maker, names)))
        return copy

    for kind, value, whole in fields(graph):
        if kind != NODE:
            parts.append(bytes(whole))
            continue
        inputs, outputs = texts(value, NODE_INPUT), texts(value, NODE_OUTPUT)
        parts.append(field(NODE, _with_texts(value, {NODE_INPUT: [own(name) for name in inputs]})))
        if constants.issuperset(inputs) and len(outputs) == 1:
            constants.add(outputs[0])
            makers[outputs[0]] = NODE, value
    return with_graph(model, b"".join(parts))


def _is_int8(tensor: memoryview) -> bool:
    return any(n == _TENSOR_TYPE and number_of(value) == _INT8 for n, value, _ in fields(tensor))


def _with_texts(message: memoryview, replacements: Mapping[int, Collection[str]]) -> bytes:
    """Replace all texts of some fields, in their order."""
    left = {number: iter(values) for number, values in replacements.items()}
    return b"".join(
        field(number, next(left[number]).encode()) if number in left else bytes(whole)
        for number, _, whole in fields(message)
    )


def graph_of(model: bytes) -> memoryview:
    """Return the content of the graph of a model."""
    return next(value for kind, value, _ in fields(memoryview(model)) if kind == GRAPH)


def with_graph(model: bytes, graph: bytes) -> bytes:
    """Replace the graph of a model."""
    fresh = field(GRAPH, graph)
    return b"".join(fresh if kind == GRAPH else bytes(whole) for kind, _, whole in fields(memoryview(model)))


def weights_elsewhere(graph: memoryview) -> bool:
    """Return whether any weight is in another file."""
    tensors = (tensor for kind, tensor, _ in fields(graph) if kind == INITIALIZER)
    parts = (part for tensor in tensors for part in fields(tensor))
    return any(number == _TENSOR_LOCATION and location for number, location, _ in parts)


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield number, content and all bytes of each field; the content of a 0 is empty."""
    at = 0
    while at < len(message):
        start = at
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            begin = at
            number, at = varint(message, at)
            content = message[begin:at] if number else message[at:at]
        elif kind == 2:
            length, at = varint(message, at)
            content, at = message[at : at + length], at + length
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            content, at = message[at : at + length], at + length
        else:
            raise ValueError(f"no protobuf: wire type {kind}")
        if at > len(message):
            raise ValueError("no protobuf: a field is longer than its message")
        yield key >> 3, content, message[start:at]


def varint(message: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        if shift > 63:
            raise ValueError("no protobuf: a number of more than ten bytes")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def number_of(content: memoryview) -> int:
    return varint(content, 0)[0] if content else 0


def texts(message: memoryview, wanted: int) -> list[str]:
    return [bytes(value).decode() for number, value, _ in fields(message) if number == wanted]


def as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return as_varint(number << 3 | 2) + as_varint(len(content)) + content
