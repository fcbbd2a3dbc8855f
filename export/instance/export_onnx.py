"""A trained instance network as ONNX: views and masks in, displacement, affinities, boundary and foreground
out."""

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
from ..tracing import model_of, simplified, trace
from .network import DISPLACEMENT_UNIT_PX, STRIDE, InstanceNetwork, outline_px
from .split_concat import part_convolutions
from .train import load_start, to_input

OPSET = 18


def load_instance_checkpoint(path: Path) -> InstanceNetwork:
    """The averaged network of a checkpoint that ``tfiseg train instance`` wrote; raises ModelError for any
    other file."""
    network = InstanceNetwork()
    if not load_start(network, path):
        raise ModelError(f"{path} holds ImageNet's weights, not a checkpoint of `tfiseg train instance`")
    return network.eval()


class ViewMaps(torch.nn.Module):
    """The network from pixels to probabilities: views uint8 (K, S, S, 3) and masks uint8 (K, S, S) to the
    fields of ``InstanceMaps``, the last of them where it draws ``outlines``."""

    def __init__(self, network: InstanceNetwork, outlines: bool) -> None:
        super().__init__()
        self.network = network
        self.outlines = outlines
        self.eval()

    def forward(self, views: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        seen = self.network.look(*to_input(views, masks))
        displacement, affinity, boundary = self.network.instances(seen)
        maps = displacement * (DISPLACEMENT_UNIT_PX / STRIDE), affinity.sigmoid(), boundary.sigmoid()
        return (*maps, self.network.outlines(seen).sigmoid()) if self.outlines else maps


def export_instance(
    network: InstanceNetwork,
    output: Path,
    view_px: int,
    rules: dict[str, NDArray[np.float32]],
    training_data: str = "not stated",
    licence: str = "not stated",
    outlines: bool = True,
    min_area: int | None = None,
    lone_odds: float | None = None,
) -> dict[str, Any]:
    """Write the ONNX model and check it against torch, on noise.

    Args:
        network: trained.
        output: NAME.onnx, written whole or not at all.
        view_px: side of its views: what it was trained with.
        rules: learned merge rules by name ("merge", "part", "join"), see ``rule_fitting.py``; they belong to
            these weights.
        training_data, licence: sentences for the model's metadata.
        outlines: whether it draws them: whether they were taught.
        min_area: pixels of the smallest objects that it is for; None: any.
        lone_odds: of components that could be parted, how many are one object for each that is several
            (``teacher.py``); None: not said.

    Returns:
        bytes, the largest difference of a probability, the metadata.

    Raises:
        ModelError: torch and ONNX Runtime differ by more than 0.02 in a probability.
    """
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, view_px, view_px, 3), np.uint8)
    masks = (rng.random((2, view_px, view_px)) < 0.5).astype(np.uint8)
    whole = ViewMaps(network, outlines)
    model = _traced(whole, (torch.from_numpy(views), torch.from_numpy(masks)))
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
    optional = {"min_area": min_area, "lone_odds": lone_odds}
    metadata |= {key: value for key, value in optional.items() if value is not None}
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    with write_whole_model(model, output) as part:
        difference = _difference(whole, part, views, masks)
        check_difference(difference)
    return {"bytes": output.stat().st_size, "largest_difference": round(difference, 5), "metadata": metadata}


def _traced(whole: ViewMaps, given: tuple[Tensor, Tensor]) -> onnx.ModelProto:
    """The network as ONNX for any number and side of views, with weights stored as float16."""
    batch = torch.export.Dim("views", min=1, max=1024)
    names = ["displacement", "affinity", "boundary", *(["foreground"] if whole.outlines else [])]
    traced = trace(whole, given, ["views", "masks"], names, ({0: batch}, {0: batch}), OPSET)
    free_sides(traced)
    model = simplified(traced)
    part_convolutions(model)
    casts, weights = store_as_half(model.graph.initializer)
    graph = helper.make_graph(
        [*casts, *model.graph.node], "tfiseg-instance", model.graph.input, model.graph.output, weights
    )
    return model_of(graph, OPSET)


def free_sides(model: onnx.ModelProto) -> None:
    """Let an exported network take views of any side, in place: all that it enlarges, it doubles."""
    graph = model.graph
    twice = numpy_helper.from_array(np.asarray([1, 1, 2, 2], np.float32), "twice")
    graph.initializer.append(twice)
    for node in graph.node:
        if node.op_type == "Resize":
            enlarged = node.input[0]
            del node.input[:]
            node.input.extend([enlarged, "", twice.name])
    for given in graph.input:
        for axis in (1, 2):
            given.type.tensor_type.shape.dim[axis].dim_param = ANY_SIDE
    for out in graph.output:
        for axis in (2, 3):
            out.type.tensor_type.shape.dim[axis].dim_param = f"{out.name}_cells"
    del graph.value_info[:]  # of the side that it was traced with


@torch.no_grad()
def _difference(whole: ViewMaps, model: Path, views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> float:
    session = open_instance_session(model)
    _, *ours = whole(torch.from_numpy(views), torch.from_numpy(masks))
    maps = session.infer(views, masks, foreground=session.can_refine_masks)
    pairs = [*zip(ours[:2], (maps.affinity, maps.boundary), strict=True)]
    if maps.foreground is not None:
        side = session.outline_px
        smaller = views[:, :side, :side], masks[:, :side, :side]
        drawn = whole(*(torch.from_numpy(np.ascontiguousarray(a)) for a in smaller))[-1]
        pairs += [(ours[-1], maps.foreground[:, None]), (drawn, session.foreground(*smaller)[:, None])]
    return max(float(np.abs(a.numpy() - b).max()) for a, b in pairs)
