"""Scale the channels of a tensor to one range without changing the network's result.

A scale per tensor must cover the widest channel, which leaves few steps for narrow channels. If only
convolutions write and read a tensor, or a group of tensors that are added, a channel can be scaled where it
is written and scaled back where it is read.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from .graph import Network
from .layers import Layer, find_layers

_MAX_SCALE = 16.0


def residual_groups(network: Network) -> list[tuple[list[str], list[Layer], list[Layer]]]:
    """Find groups of tensors that are added to each other, with the layers that write and read them.

    A group counts only if nothing but additions and ungrouped 2-D convolutions use it.
    """
    layers = {layer.name: layer for layer in find_layers(network)}
    group_of: dict[str, str] = {}

    def root(name: str) -> str:
        while group_of.setdefault(name, name) != name:
            name = group_of[name]
        return name

    for node in network.graph.node:
        if node.op_type == "Add" and not any(network.has_weight(i) for i in node.input):
            for name in node.input:
                group_of[root(name)] = root(node.output[0])
        elif node.name in layers:
            root(node.output[0])
    members: dict[str, list[str]] = {}
    for name in list(group_of):
        members.setdefault(root(name), []).append(name)
    groups = []
    for tensors in members.values():
        writers, readers = _writers_and_readers(network, tensors, layers)
        if writers and readers:
            groups.append((tensors, writers, readers))
    return groups


def _writers_and_readers(
    network: Network, tensors: list[str], layers: dict[str, Layer]
) -> tuple[list[Layer], list[Layer]]:
    """Return the layers that write and read a group; empty if another operator uses it."""
    inside = set(tensors)
    writers: list[Layer] = []
    readers: list[Layer] = []

    def plain(node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" and node.name in layers

    for name in tensors:
        producer, consumers = network.producer.get(name), network.consumers.get(name, [])
        if producer is None or name in network.outputs:
            return [], []
        if producer.op_type != "Add":
            if not plain(producer) or layers[producer.name].output != name:
                return [], []
            writers.append(layers[producer.name])
        for node in consumers:
            if node.op_type == "Add" and node.output[0] in inside:
                continue
            if not plain(node) or layers[node.name].groups != 1:
                return [], []
            readers.append(layers[node.name])
    return writers, readers


def equalize(network: Network, peaks: dict[str, NDArray[np.float32]]) -> int:
    """Scale the channels of every residual group to one range; returns the number of groups.

    Args:
        network: changed in place; its result stays the same.
        peaks: largest magnitude of each channel, float32 (channels,), by tensor.
    """
    groups = residual_groups(network)
    for tensors, writers, readers in groups:
        peak = np.max([peaks[t] for t in tensors], 0)
        scale = np.clip(peak.max() / np.maximum(peak, 1e-12), 1.0, _MAX_SCALE).astype(np.float32)
        for layer in writers:
            network.set_weight(layer.weight, network.weight(layer.weight) * scale[:, None, None, None])
            if layer.bias:
                network.set_weight(layer.bias, network.weight(layer.bias) * scale)
        for layer in readers:
            network.set_weight(layer.weight, network.weight(layer.weight) / scale[None, :, None, None])
    return len(groups)
