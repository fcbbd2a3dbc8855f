"""Train instance heads: ``tfiseg train frame --model NET.onnx --images DIR --semantic DIR``.

Only the heads are trained. ONNX Runtime computes the semantic network's features, as at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..instance.network import STRIDE
from ..instance.targets import LOSSES, UNKNOWN, count_correct_pairs, instance_losses, instance_targets
from ..training import (
    HELD_SEED,
    Progress,
    descend,
    load_checkpoint,
    prepare,
    save_checkpoint,
    set_learning_rate,
)
from .backbone_taps import FeatureReader, Tap
from .composites import SAME_SIZE, FrameComposer, FrameComposite, Material
from .heads import InstanceHeads

_CHECKPOINT_EVERY = 200
_VALIDATED = 64  # composites


@dataclass(frozen=True)
class FrameRecipe:
    """Settings of a training run."""

    steps: int = 4000
    batch: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    held_out: float = 0.1  # share of the images for validation and for fitting the rules
    seed: int = 0


class FeatureDataset(Dataset[tuple[Tensor, ...]]):
    """Training samples by number: features at each tap, displacement, weight, affinity, boundary."""

    def __init__(
        self, composer: FrameComposer, model: onnx.ModelProto, taps: Sequence[Tap], first: int, count: int
    ) -> None:
        self.composer = composer
        self.first = first
        self.count = count
        self._features_of = FeatureReader(model, taps, threads=1)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        composite = self.composer(self.first + index)
        features = self._features_of(composite.image)
        return tuple(
            torch.from_numpy(np.ascontiguousarray(a))
            for a in (*(f[0] for f in features), *frame_targets(composite, features[0].shape[-2:]))
        )


def frame_targets(composite: FrameComposite, grid_hw: tuple[int, int]) -> tuple[NDArray[Any], ...]:
    """Return the targets of the heads at each cell of a grid.

    They are displacement float32 (2, h, w) in units of 8 cells, its weight (h, w), affinity uint8 (A, h, w)
    and boundary uint8 (h, w); 255 = unknown. Pairs of different classes are unknown, because the operator
    does not use them.
    """
    owner, class_of = composite.at((STRIDE * grid_hw[0], STRIDE * grid_hw[1]))
    targets = instance_targets(owner)
    affinity = np.where(instance_targets(class_of).affinity == 0, UNKNOWN, targets.affinity).astype(np.uint8)
    h, w = grid_hw
    blocks = targets.boundary.reshape(h, 2, w, 2)
    edge = np.where((blocks == 1).any((1, 3)), 1, np.where((blocks == 0).any((1, 3)), 0, UNKNOWN)).astype(
        np.uint8
    )
    return targets.displacement, targets.weight, affinity, edge


def held_seed(recipe: FrameRecipe) -> int:
    """Return the seed of composites that are not trained on."""
    return HELD_SEED + recipe.seed


@torch.no_grad()
def validate(heads: InstanceHeads, dataset: FeatureDataset, batch: int) -> dict[str, float]:
    """Return the accuracy on pairs of the same object and on pairs of different objects."""
    heads.eval()
    counts = np.zeros((2, 2))
    taps = len(heads.lateral)
    for sample in DataLoader(dataset, batch):
        _, affinity, _ = heads(*sample[:taps])
        counts += count_correct_pairs(affinity, sample[taps + 2])
    different, same = (counts[0] / np.maximum(counts[1], 1)).tolist()
    return {"same": same, "different": different}


def train_frame(
    material: Material,
    model: onnx.ModelProto,
    taps: Sequence[Tap],
    checkpoint: Path,
    recipe: FrameRecipe,
    workers: int = 1,
    threads: int | None = None,
    quiet: bool = False,
) -> InstanceHeads:
    """Train instance heads; returns them with averaged weights (EMA).

    Args:
        material: see ``make_material``.
        taps: see ``find_taps``.
        checkpoint: written every 200 steps; an existing one is resumed.
        workers: processes that make composites and features; the result does not depend on their number.
    """
    prepare(recipe.seed, threads)
    heads = InstanceHeads(taps)
    average = {k: v.clone() for k, v in heads.state_dict().items()}
    optimizer = torch.optim.AdamW(heads.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    first = 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, asdict(recipe), "cpu")
        heads.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimiser"])
        average, first = state["average"], state["step"]
    count = (recipe.steps - first) * recipe.batch
    dataset = FeatureDataset(material.composer(recipe.seed), model, taps, first * recipe.batch, count)
    validation = FeatureDataset(material.held_composer(held_seed(recipe)), model, taps, 0, _VALIDATED)
    progress = Progress("frame", first, recipe.steps, LOSSES, quiet)
    batches = DataLoader(dataset, recipe.batch, num_workers=workers, prefetch_factor=2 if workers else None)
    for step, given in enumerate(batches, first + 1):
        set_learning_rate(optimizer, [recipe.learning_rate], step - 1, recipe.steps)
        heads.train()
        parts = instance_losses(heads(*given[: len(taps)]), tuple(given[len(taps) :]))
        progress.add(descend(parts, heads, optimizer, average, step - 1, checkpoint))
        if step % _CHECKPOINT_EVERY == 0 or step == recipe.steps:
            state = {"kind": "frame", "network": heads.state_dict(), "optimiser": optimizer.state_dict()}
            save_checkpoint(checkpoint, state | {"average": average, "step": step, "recipe": asdict(recipe)})
        if step % (4 * _CHECKPOINT_EVERY) == 0 or step == recipe.steps:
            progress.print_scores(step, validate(_network_with(average, taps), validation, SAME_SIZE))
    progress.close()
    return _network_with(average, taps)


def _network_with(average: dict[str, Tensor], taps: Sequence[Tap]) -> InstanceHeads:
    heads = InstanceHeads(taps)
    heads.load_state_dict(average)
    return heads.eval()
