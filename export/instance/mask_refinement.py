"""Train the mask refinement head of an instance network; its other layers stay frozen.

The target is the true mask of a composite. The input is a rougher one: perturbed (``mask_noise.py``), or
predicted for the composite by the semantic network that comes with tfiseg.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ...runtime.networks.onnx_session import OnnxSession
from ...runtime.networks.session import DEFAULT_MODEL
from ...runtime.refine.view import GRAY, View, render_mask, render_view
from ..training import Progress, descend, load_checkpoint, save_checkpoint, set_learning_rate
from .bank import bank_digest
from .composites import Composer
from .mask_noise import Mask, blur_mask, smooth_noise
from .network import InstanceNetwork, outline_px
from .pasting import Label
from .train import (
    CHECKPOINT_EVERY,
    VALIDATED,
    Banks,
    CompositeDataset,
    InstanceRecipe,
    held_seed,
    normalize_inputs,
)

_PERTURBED, _PREDICTED = 0.4, 0.8  # cumulative shares of the kinds of masks; the rest is blurred
_MIN_IOU = 0.35  # of a prediction with the truth; a lower one shows something else
_MAX_DISTANCE, _MAX_COARSENESS = (
    2.2,
    6.0,
)  # of predictions, relative to the composite and to the network's grid
_MAX_NOISE = 1.2  # standard deviation of the noise added to logits
_FIRST = 30_000_000  # number of the first composite; the other heads were trained on lower ones
_RATE = 3e-3
_GOOD = 0.93  # IoU of a mask that needs no refinement


class RoughMaskComposer(Composer):
    """Composites with rougher masks than those for the other heads."""

    _session: OnnxSession | None = None

    def class_mask(self, image: NDArray[np.uint8], label: Label, rng: np.random.Generator) -> Mask:
        kind = rng.random()
        if kind < _PERTURBED:
            return super().class_mask(image, label, rng)
        truth = (label > 0).astype(np.uint8)
        if kind < _PREDICTED:
            mask = self._predict_mask(image, truth, rng)
            if (mask & truth).sum() > _MIN_IOU * (mask | truth).sum():
                return mask
        return blur_mask(truth, self.fault_zoom, rng)

    def _predict_mask(self, image: NDArray[np.uint8], truth: Mask, rng: np.random.Generator) -> Mask:
        """Predict the class that covers most of the objects, with the semantic network.

        The distance varies, and the grid is up to six times coarser than the network's own.
        """
        if self._session is None:  # one per process
            self._session = OnnxSession(DEFAULT_MODEL, threads=1)
        side = len(truth)
        border = int((np.exp(rng.uniform(0, np.log(_MAX_DISTANCE))) - 1) * side / 2)
        how = cv2.BORDER_REFLECT_101 if rng.random() < 0.5 and border < side else cv2.BORDER_CONSTANT
        wide = cv2.copyMakeBorder(image, border, border, border, border, how, value=(GRAY, GRAY, GRAY))
        logits = self._session.infer(np.ascontiguousarray(wide))["logits"][0]
        grid = logits.shape[1]
        coverage = cv2.resize(
            np.pad(truth, border).astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA
        )
        class_id = 1 + int((logits[1:] * coverage).sum((1, 2)).argmax())
        margin = logits[class_id] - np.delete(logits, class_id, 0).max(0)
        if rng.random() < 0.6:
            coarse = max(8, round(grid / float(np.exp(rng.uniform(0, np.log(_MAX_COARSENESS))))))
            margin = cv2.resize(margin, (coarse, coarse), interpolation=cv2.INTER_AREA)
        margin = cv2.resize(margin, wide.shape[:2], interpolation=cv2.INTER_LINEAR)[
            border : border + side, border : border + side
        ]
        noise = smooth_noise(truth.shape, rng.uniform(15, 60), rng) * np.float32(rng.uniform(0, _MAX_NOISE))
        return (margin + noise > 0).astype(np.uint8)


class RefinementDataset(CompositeDataset):
    """Composites by number, with the object's share of each cell of 2 x 2 px as the target.

    Samples are image uint8 (S, S, 3), mask uint8 (S, S) and target float32 (1, S / 2, S / 2). Batches have
    the sides S of ``sides`` in turn; the first batch is number ``step``.
    """

    def __init__(
        self, composer: Composer, first: int, count: int, batch: int, sides: Sequence[int], step: int = 0
    ) -> None:
        super().__init__(composer, first, count)
        self.batch = batch
        self.sides = sides
        self.step = step

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        composite = self.composer(self.first + index)
        side = self.sides[(self.step + index // self.batch) % len(self.sides)]
        image, mask = composite.image, composite.mask
        if side != len(image):
            whole = View(0, 0, len(image))
            image, mask = render_view(image, whole, side), render_mask(mask, whole, side)
        target = cv2.resize(
            composite.truth.astype(np.float32), (side // 2, side // 2), interpolation=cv2.INTER_AREA
        )[None]
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (image, mask, target))


def train_mask_refinement(
    network: InstanceNetwork,
    banks: Banks,
    checkpoint: Path,
    recipe: InstanceRecipe,
    workers: int = 1,
    quiet: bool = False,
) -> None:
    """Train ``network.outlines`` for ``recipe.outline_steps`` steps; arguments as in ``train_instance``."""
    if not recipe.outline_steps:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    network.to(device).eval()
    head = network.outlines
    average = {k: v.clone() for k, v in head.state_dict().items()}
    optimizer = torch.optim.AdamW(head.parameters(), _RATE, weight_decay=recipe.weight_decay)
    sides = (recipe.view_px, outline_px(recipe.view_px))
    run = asdict(recipe) | {"bank": bank_digest(banks.used), "network": _digest(network)}
    run["sides"] = list(sides)
    first = 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run, str(device))
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimiser"])
        average, first = state["average"], state["step"]
    composer = RoughMaskComposer(banks.used, recipe.seed, recipe.view_px)
    count = (recipe.outline_steps - first) * recipe.batch
    composites = RefinementDataset(composer, _FIRST + first * recipe.batch, count, recipe.batch, sides, first)
    progress = Progress("outlines", first, recipe.outline_steps, ["outlines"], quiet)
    batches = DataLoader(
        composites, recipe.batch, num_workers=workers, prefetch_factor=4 if workers else None
    )
    for step, (image, mask, target) in enumerate(batches, first):
        set_learning_rate(optimizer, [_RATE], step, recipe.outline_steps)
        with torch.no_grad():
            features = network.extract_features(*normalize_inputs(image.to(device), mask.to(device)))
        head.train()
        loss = F.binary_cross_entropy_with_logits(head(features), target.to(device))
        progress.add(descend([loss], head, optimizer, average, step, checkpoint))
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == recipe.outline_steps:
            state = {"head": head.state_dict(), "optimiser": optimizer.state_dict(), "average": average}
            save_checkpoint(checkpoint, state | {"step": done, "recipe": run})
    progress.close()
    head.load_state_dict(average)
    network.eval()
    for side in sides:
        scores = validate_mask_refinement(network, banks, recipe, side)
        changes = ", ".join(f"{k} {a:.3f} -> {b:.3f}" for k, (a, b) in scores.items())
        progress.print_line(f"mask refinement in views of {side} px, IoU: {changes}")
    network.cpu()


@torch.no_grad()
def validate_mask_refinement(
    network: InstanceNetwork, banks: Banks, recipe: InstanceRecipe, side: int
) -> dict[str, tuple[float, float]]:
    """Return the mean IoU with the truth before and after refinement, by quality of the masks.

    Composites are made of held-out objects, in views of ``side`` px.
    """
    device = next(network.parameters()).device
    count = min(VALIDATED, recipe.outline_steps * recipe.batch)
    held = RefinementDataset(
        RoughMaskComposer(banks.held, held_seed(recipe), recipe.view_px), 0, count, recipe.batch, (side,)
    )
    before, after = [], []
    for image, mask, target in DataLoader(held, recipe.batch):
        inputs = normalize_inputs(image.to(device), mask.to(device))
        refined = network.outlines(network.extract_features(*inputs)).cpu() > 0
        truth = target > 0.5
        before.append(_iou(F.avg_pool2d(mask.float()[:, None], 2) > 0.5, truth))
        after.append(_iou(refined, truth))
    a, b = torch.cat(before), torch.cat(after)
    kinds = {"all": a > -1, f"above {_GOOD}": a > _GOOD, "others": a <= _GOOD}
    return {name: (a[k].mean().item(), b[k].mean().item()) for name, k in kinds.items() if k.any()}


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (N,) of masks bool (N, 1, q, q)."""
    return (a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)


def _digest(network: InstanceNetwork) -> str:
    """Return a digest of the frozen weights, 16 hex digits."""
    weights = [
        v.cpu().numpy().tobytes() for k, v in network.state_dict().items() if not k.startswith("outlines.")
    ]
    return hashlib.sha256(b"".join(weights)).hexdigest()[:16]
