"""An editable ONNX network: producers and consumers of tensors, weights as arrays, inner values.

Needs onnx (``pip install ".[calibration]"``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..errors import ModelError
from ..runtime.networks.onnx_runtime import start_session

ACTIVATIONS = ("Clip", "Relu")
IMAGE = "image"  # the tensor between preprocessing and network in tfiseg's format


class Network:
    """A copy of an ONNX model that can be edited.

    ``producer`` maps a tensor to its node, ``consumers`` to the nodes that read it. Both hold until nodes
    are added or removed; then call ``index()``.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._fold_constants()
        self.index()

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    def index(self) -> None:
        """Find the producer and consumers of each tensor; call it after adding or removing nodes."""
        self.producer: dict[str, onnx.NodeProto] = {o: n for n in self.graph.node for o in n.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in self.graph.output}
        self._weights = {i.name: i for i in self.graph.initializer}

    def _fold_constants(self) -> None:
        """Convert float16 weights to float32 and Constant nodes to initializers; name all nodes."""
        stored = {i.name: i for i in self.graph.initializer}
        taken = {node.name for node in self.graph.node}
        for at, node in enumerate(self.graph.node):
            name = node.name or f"{node.op_type}_{at}"
            while not node.name and name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        for node in list(self.graph.node):
            settings = attributes(node)
            if node.op_type == "Constant" and "value" in settings:
                value = numpy_helper.to_array(settings["value"])
            elif node.op_type == "Cast" and node.input[0] in stored:
                value = numpy_helper.to_array(stored[node.input[0]]).astype(
                    helper.tensor_dtype_to_np_dtype(settings["to"])
                )
            else:
                continue
            weight = numpy_helper.from_array(np.asarray(value), node.output[0])
            self.graph.node.remove(node)
            self.graph.initializer.append(weight)
            stored[weight.name] = weight
        self.drop_unused_weights()

    def drop_unused_weights(self) -> None:
        """Remove initializers that no node reads."""
        read = {name for node in self.graph.node for name in node.input} | {o.name for o in self.graph.output}
        for tensor in [i for i in self.graph.initializer if i.name not in read]:
            self.graph.initializer.remove(tensor)

    def has_weight(self, name: str) -> bool:
        return name in self._weights

    def weight(self, name: str) -> NDArray[Any]:
        """Return the values of an initializer."""
        return np.asarray(numpy_helper.to_array(self._weights[name]))

    def set_weight(self, name: str, value: NDArray[Any] | np.generic) -> None:
        """Replace an initializer, or add one."""
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if name in self._weights:
            self._weights[name].CopyFrom(tensor)
        else:
            self._weights[name] = self.graph.initializer.add()
            self._weights[name].CopyFrom(tensor)

    def activation_after(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the Clip or Relu that is the only reader of a node's output."""
        readers = self.consumers.get(node.output[0], [])
        is_only = len(readers) == 1 and node.output[0] not in self.outputs
        return readers[0] if is_only and readers[0].op_type in ACTIVATIONS else None

    def preprocessing(self) -> set[str]:
        """Return the tensors of the preprocessing, which stay in high precision: all up to ``image``."""
        found: set[str] = set()
        todo = [IMAGE] if IMAGE in self.producer else []
        while todo:
            name = todo.pop()
            if name in self.producer and name not in found:
                found.update(self.producer[name].output)
                todo += self.producer[name].input
        return found

    def sort(self) -> None:
        """Sort the nodes so that each comes after the nodes that it reads from."""
        known = {"", *(i.name for i in self.graph.input), *(i.name for i in self.graph.initializer)}
        rest, ordered = list(self.graph.node), []
        while rest:
            ready = []
            for node in rest:  # nodes are nearly in order, so one or two rounds are enough
                if known.issuperset(node.input):
                    known.update(node.output)
                    ready.append(node)
            if not ready:
                raise ModelError(
                    f"the network has a cycle, or reads a tensor that no node writes: {rest[0].name} "
                    f"({rest[0].op_type})"
                )
            ordered += ready
            done = {id(node) for node in ready}
            rest = [node for node in rest if id(node) not in done]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        self.index()


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as plain values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def session(model: onnx.ModelProto) -> Any:
    """Open a model in memory with ONNX Runtime on the CPU; raises ModelError."""
    return start_session(model.SerializeToString())


def run_tensors(
    model: onnx.ModelProto, names: Sequence[str], images: Iterable[NDArray[np.uint8]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the values of inner float tensors for each image.

    Args:
        model: network with one input, uint8 (1, H, W, 3).
        images: uint8 (H, W, 3) each.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    have = {o.name for o in probed.graph.output}
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in dict.fromkeys(names)
        if name not in have
    )
    running = session(probed)
    unique = list(dict.fromkeys(names))
    for image in images:
        yield dict(zip(unique, running.run(unique, {model.graph.input[0].name: image[None]}), strict=True))
