"""A trained instance network as ONNX: views and masks in, displacement, affinities, boundary and foreground out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxsim
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from ...errors import ModelError
from ...plugins.operator import AFFINITY_OFFSETS
from ...runtime.instance_session import INSTANCE_FORMAT, InstanceSession
from ...runtime.model_info import METADATA_KEY, weights_digest
from ..frame_graph import MODEL_IR_VERSION
from ..half_weights import stored_as_half
from ..model_file import check_difference, rounded, written_whole
from .network import DISPLACEMENT_UNIT_PX, STRIDE, InstanceNetwork
from .split_concat import part_convolutions
from .train import load_start, to_input

OPSET = 18


def load_instance_checkpoint(path: Path) -> InstanceNetwork:
    """The averaged network of a checkpoint that ``tfiseg train instance`` wrote; raises ModelError for any other file."""
    network = InstanceNetwork()
    if not load_start(network, path):
        raise ModelError(f"{path} holds ImageNet's weights, not a checkpoint of `tfiseg train instance`")
    return network.eval()


class ViewMaps(torch.nn.Module):
    """The network from pixels to probabilities: views uint8 (K, S, S, 3) and masks uint8 (K, S, S) to the fields of
    ``InstanceMaps``, the last of them where it draws ``outlines``."""

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
) -> dict[str, Any]:
    """Write the ONNX model and check it against torch, on noise.

    Args:
        network: trained.
        output: NAME.onnx, written whole or not at all.
        view_px: side of its views: what it was trained with.
        rules: learned merge rules by name ("merge", "part", "join"), see ``rules.py``; they belong to these weights.
        training_data, licence: sentences for the model's metadata.
        outlines: whether it draws them: whether they were taught.

    Returns:
        bytes, the largest difference of a probability, the metadata.

    Raises:
        ModelError: torch and ONNX Runtime differ by more than 0.02 in a probability.
    """
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, view_px, view_px, 3), np.uint8)
    masks = (rng.random((2, view_px, view_px)) < 0.5).astype(np.uint8)
    whole = ViewMaps(network, outlines)
    given = (torch.from_numpy(views), torch.from_numpy(masks))
    batch = torch.export.Dim("views", min=1, max=1024)
    names = ["displacement", "affinity", "boundary", *(["foreground"] if outlines else [])]
    program = torch.onnx.export(
        whole,
        given,
        dynamo=True,
        opset_version=OPSET,
        input_names=["views", "masks"],
        output_names=names,
        dynamic_shapes=({0: batch}, {0: batch}),
        verbose=False,
    )
    assert program is not None
    model, sound = onnxsim.simplify(program.model_proto)
    if not sound:
        raise ModelError("onnxsim changed what the network computes: export with another onnxsim version")
    part_convolutions(model)
    casts, weights = stored_as_half(model.graph.initializer)
    graph = helper.make_graph([*casts, *model.graph.node], "tfiseg-instance", model.graph.input, model.graph.output, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tfiseg")
    model.ir_version = MODEL_IR_VERSION
    metadata = {
        "instance_format": INSTANCE_FORMAT,
        "name": output.stem,
        "view_px": view_px,
        "stride": STRIDE,
        "affinity_offsets": [list(o) for o in AFFINITY_OFFSETS],
        "rules": {name: rounded(values) for name, values in rules.items()},
        "training_data": training_data,
        "licence": licence,
        "weights_sha256": weights_digest(weights),
    }
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    with written_whole(model, output) as part:
        difference = _difference(whole, part, views, masks)
        check_difference(difference)
    return {"bytes": output.stat().st_size, "largest_difference": round(difference, 5), "metadata": metadata}


@torch.no_grad()
def _difference(whole: ViewMaps, model: Path, views: NDArray[np.uint8], masks: NDArray[np.uint8]) -> float:
    session = InstanceSession(model)
    _, *ours = whole(torch.from_numpy(views), torch.from_numpy(masks))
    maps = session.infer(views, masks)
    drawn = [session.foreground(views, masks)[:, None]] if session.draws_outlines else []
    theirs = (maps.affinity, maps.boundary, *drawn)
    return max(float(np.abs(a.numpy() - b).max()) for a, b in zip(ours, theirs, strict=True))
