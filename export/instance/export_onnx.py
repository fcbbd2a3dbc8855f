"""Export a trained instance network as ONNX.

Inputs are views and masks; outputs are displacement, affinities, boundary and foreground.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from ...errors import ModelError
from ...plugins.settings import AFFINITY_OFFSETS
from ...runtime.networks.instance_session import ANY_SIDE, INSTANCE_FORMAT
from ...runtime.networks.model_info import METADATA_KEY, weights_digest
from ...runtime.networks.open_session import open_instance_session
from ..half_weights import store_as_half
from ..model_file import check_difference, round_to_float32, write_whole_model
from ..tracing import model_of, simplify_model, trace
from .network import DISPLACEMENT_UNIT_PX, STRIDE, InstanceNetwork, outline_px
from .split_concat import split_convolutions
from .train import load_initial_weights, normalize_inputs

OPSET = 18


def load_instance_checkpoint(path: Path) -> InstanceNetwork:
    """Load the averaged network of a checkpoint; raises ModelError for any other file."""
    network = InstanceNetwork()
    if not load_initial_weights(network, path):
        raise ModelError(f"{path} has ImageNet weights, expected a checkpoint of `tfiseg train instance`")
    return network.eval()


class ViewMaps(torch.nn.Module):
    """The network from pixels to probabilities.

    ``forward`` takes views uint8 (K, S, S, 3) and masks uint8 (K, S, S) and returns the fields of
    ``InstanceMaps``.

    Args:
        network: the network.
        outlines: also return ``foreground``.
    """

    def __init__(self, network: InstanceNetwork, outlines: bool) -> None:
        super().__init__()
        self.network = network
        self.outlines = outlines
        self.eval()

    def forward(self, views: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        features = self.network.extract_features(*normalize_inputs(views, masks))
        displacement, affinity, boundary = self.network.instances(features)
        maps = displacement * (DISPLACEMENT_UNIT_PX / STRIDE), affinity.sigmoid(), boundary.sigmoid()
        return (*maps, self.network.outlines(features).sigmoid()) if self.outlines else maps


def export_instance(
    network: InstanceNetwork,
    output: Path,
    view_px: int,
    rules: dict[str, NDArray[np.float32]],
    training_data: str = "not stated",
    licence: str = "not stated",
    outlines: bool = True,
    min_area: int | None = None,
    single_to_group_ratio: float | None = None,
) -> dict[str, Any]:
    """Write the ONNX model and check it against torch on random input.

    Args:
        network: a trained network.
        output: NAME.onnx, written atomically.
        view_px: side of views in the training.
        rules: "merge", "part" and "join" rules of these weights, see ``rule_fitting.py``.
        training_data, licence: sentences for the metadata.
        outlines: the model has mask refinement.
        min_area: minimum area in pixels of the objects that it is for; None: any.
        single_to_group_ratio: see ``teacher.py``; None: unknown.

    Returns:
        Size in bytes, largest difference of a probability from torch's, and metadata.

    Raises:
        ModelError: torch and ONNX Runtime differ by more than 0.02 in a probability.
    """
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, view_px, view_px, 3), np.uint8)
    masks = (rng.random((2, view_px, view_px)) < 0.5).astype(np.uint8)
    whole = ViewMaps(network, outlines)
    model = _trace(whole, (torch.from_numpy(views[:1]), torch.from_numpy(masks[:1])))
    metadata = {
        "instance_format": INSTANCE_FORMAT,
        "name": output.stem,
        "view_px": view_px,
        "outline_px": outline_px(view_px),
        "stride": STRIDE,
        "affinity_offsets": [list(o) for o in AFFINITY_OFFSETS],
        "rules": {name: round_to_float32(values) for name, values in rules.items()},
        "training_data": training_data,
        "licence": licence,
        "weights_sha256": weights_digest(model.graph.initializer),
    }
    optional = {"min_area": min_area, "lone_odds": single_to_group_ratio}
    metadata |= {key: value for key, value in optional.items() if value is not None}
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    with write_whole_model(model, output) as part:
        difference = _difference(whole, part, views, masks)
        check_difference(difference)
    return {"bytes": output.stat().st_size, "largest_difference": round(difference, 5), "metadata": metadata}


def _trace(whole: ViewMaps, given: tuple[Tensor, Tensor]) -> onnx.ModelProto:
    """Trace the network for any number and side of views, with weights stored as float16."""
    names = ["displacement", "affinity", "boundary", *(["foreground"] if whole.outlines else [])]
    traced = trace(whole, given, ["views", "masks"], names, None, OPSET)
    free_sizes(traced)
    model = simplify_model(traced)
    split_convolutions(model)
    casts, weights = store_as_half(model.graph.initializer)
    graph = helper.make_graph(
        [*casts, *model.graph.node], "tfiseg-instance", model.graph.input, model.graph.output, weights
    )
    return model_of(graph, OPSET)


def free_sizes(model: onnx.ModelProto) -> None:
    """Make the number and side of views dynamic, in place: every ``Resize`` doubles its input.

    Tracing with symbolic sizes takes twice as long.
    """
    graph = model.graph
    twice = numpy_helper.from_array(np.asarray([1, 1, 2, 2], np.float32), "twice")
    graph.initializer.append(twice)
    for node in graph.node:
        if node.op_type == "Resize":
            node.input[:] = [node.input[0], "", twice.name]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "views"
    for graph_input in graph.input:
        for axis in (1, 2):
            graph_input.type.tensor_type.shape.dim[axis].dim_param = ANY_SIDE
    for out in graph.output:
        for axis in (2, 3):
            out.type.tensor_type.shape.dim[axis].dim_param = f"{out.name}_cells"
    del graph.value_info[:]  # shapes for the traced side


@torch.no_grad()
def _difference(whole: ViewMaps, model: Path, views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> float:
    """Return the largest difference of a probability between torch and the written model."""
    session = open_instance_session(model)
    _, *expected = whole(torch.from_numpy(views), torch.from_numpy(masks))
    maps = session.infer(views, masks, foreground=session.can_refine_masks)
    pairs = [*zip(expected[:2], (maps.affinity, maps.boundary), strict=True)]
    if maps.foreground is not None:
        side = session.outline_px
        smaller = views[:, :side, :side], masks[:, :side, :side]
        foreground = whole(*(torch.from_numpy(np.ascontiguousarray(a)) for a in smaller))[-1]
        pairs += [
            (expected[-1], maps.foreground[:, None]),
            (foreground, session.foreground(*smaller)[:, None]),
        ]
    return max(float(np.abs(a.numpy() - b).max()) for a, b in pairs)
