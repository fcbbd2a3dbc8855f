"""Teach the instance network to draw a mask as it should be, from masks as networks draw them. Nothing else
of it changes.

Composites know where their objects are; what the network is shown is that mask with a network's faults:
invented ones (``mask_noise.py``), or what the semantic network that comes with tfiseg makes of the composite.
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
from .mask_noise import Mask, blurred, smooth_noise
from .network import InstanceNetwork, outline_px
from .pasting import Label
from .train import CHECKPOINT_EVERY, VALIDATED, Banks, CompositeSet, InstanceRecipe, held_seed, to_input

_SPOILT, _PREDICTED = 0.4, 0.8  # cumulative shares of the kinds of masks; the rest is blurred
_LEAST_ALIKE = 0.35  # IoU of a prediction with the truth, below which it is of something else
_FURTHEST, _COARSEST, _DOUBT = (
    2.2,
    6.0,
    1.2,
)  # of predictions: how far, how coarse, the spread of what is added to logits at most
_FIRST = 30_000_000  # number of the first composite: others than the network was taught by
_RATE = 3e-3
_GOOD = 0.93  # IoU of a mask to which nothing need be done


class RoughComposer(Composer):
    """Composites whose masks are rougher than the network's other heads learn from."""

    _session: OnnxSession | None = None

    def class_mask(self, image: NDArray[np.uint8], label: Label, rng: np.random.Generator) -> Mask:
        kind = rng.random()
        if kind < _SPOILT:
            return super().class_mask(image, label, rng)
        truth = (label > 0).astype(np.uint8)
        if kind < _PREDICTED:
            mask = self._predicted(image, truth, rng)
            if (mask & truth).sum() > _LEAST_ALIKE * (mask | truth).sum():
                return mask
        return blurred(truth, self.faults_zoom, rng)

    def _predicted(self, image: NDArray[np.uint8], truth: Mask, rng: np.random.Generator) -> Mask:
        """Where the semantic network sees the class that it sees most of on the objects, from nearer or
        further, on a grid as fine as its own or up to six times as coarse."""
        if self._session is None:  # one a process
            self._session = OnnxSession(DEFAULT_MODEL, threads=1)
        side = len(truth)
        border = int((np.exp(rng.uniform(0, np.log(_FURTHEST))) - 1) * side / 2)
        how = cv2.BORDER_REFLECT_101 if rng.random() < 0.5 and border < side else cv2.BORDER_CONSTANT
        wide = cv2.copyMakeBorder(image, border, border, border, border, how, value=(GRAY, GRAY, GRAY))
        logits = self._session.infer(np.ascontiguousarray(wide))["logits"][0]
        grid = logits.shape[1]
        there = cv2.resize(
            np.pad(truth, border).astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA
        )
        seen = 1 + int((logits[1:] * there).sum((1, 2)).argmax())
        margin = logits[seen] - np.delete(logits, seen, 0).max(0)
        if rng.random() < 0.6:
            coarse = max(8, round(grid / float(np.exp(rng.uniform(0, np.log(_COARSEST))))))
            margin = cv2.resize(margin, (coarse, coarse), interpolation=cv2.INTER_AREA)
        margin = cv2.resize(margin, wide.shape[:2], interpolation=cv2.INTER_LINEAR)[
            border : border + side, border : border + side
        ]
        doubt = smooth_noise(truth.shape, rng.uniform(15, 60), rng) * np.float32(rng.uniform(0, _DOUBT))
        return (margin + doubt > 0).astype(np.uint8)


class OutlineSet(CompositeSet):
    """Composites by number: image uint8 (S, S, 3), mask uint8 (S, S), and how much of each cell of 2 x 2 px
    is object, float32 (1, S / 2, S / 2). ``sides``: S of the batches, in turn; the first one here is number
    ``step``."""

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
        wanted = cv2.resize(
            composite.truth.astype(np.float32), (side // 2, side // 2), interpolation=cv2.INTER_AREA
        )[None]
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (image, mask, wanted))


def train_outlines(
    network: InstanceNetwork,
    banks: Banks,
    checkpoint: Path,
    recipe: InstanceRecipe,
    workers: int = 1,
    quiet: bool = False,
) -> None:
    """Teach ``network.outlines`` for ``recipe.outline_steps``; ``checkpoint`` as in ``train_instance``."""
    if not recipe.outline_steps:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    network.to(device).eval()
    head = network.outlines
    average = {k: v.clone() for k, v in head.state_dict().items()}
    optimiser = torch.optim.AdamW(head.parameters(), _RATE, weight_decay=recipe.weight_decay)
    sides = (recipe.view_px, outline_px(recipe.view_px))
    run = asdict(recipe) | {"bank": bank_digest(banks.used), "network": _digest(network)}
    run["sides"] = list(sides)
    first = 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run, str(device))
        head.load_state_dict(state["head"])
        optimiser.load_state_dict(state["optimiser"])
        average, first = state["average"], state["step"]
    composer = RoughComposer(banks.used, recipe.seed, recipe.view_px)
    count = (recipe.outline_steps - first) * recipe.batch
    composites = OutlineSet(composer, _FIRST + first * recipe.batch, count, recipe.batch, sides, first)
    progress = Progress("outlines", first, recipe.outline_steps, ["outlines"], quiet)
    batches = DataLoader(
        composites, recipe.batch, num_workers=workers, prefetch_factor=4 if workers else None
    )
    for step, (image, mask, wanted) in enumerate(batches, first):
        set_learning_rate(optimiser, [_RATE], step, recipe.outline_steps)
        with torch.no_grad():
            seen = network.look(*to_input(image.to(device), mask.to(device)))
        head.train()
        loss = F.binary_cross_entropy_with_logits(head(seen), wanted.to(device))
        progress.add(descend([loss], head, optimiser, average, step, checkpoint))
        done = step + 1
        if done % CHECKPOINT_EVERY == 0 or done == recipe.outline_steps:
            state = {"head": head.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
            save_checkpoint(checkpoint, state | {"step": done, "recipe": run})
    progress.close()
    head.load_state_dict(average)
    network.eval()
    for side in sides:
        scores = validate_outlines(network, banks, recipe, side)
        told = ", ".join(f"{k} {a:.3f} -> {b:.3f}" for k, (a, b) in scores.items())
        progress.say(f"outlines in views of {side} px: IoU of masks {told}")
    network.cpu()


@torch.no_grad()
def validate_outlines(
    network: InstanceNetwork, banks: Banks, recipe: InstanceRecipe, side: int
) -> dict[str, tuple[float, float]]:
    """Mean IoU with the truth, on composites of objects kept apart in views of ``side`` px, of the masks and
    of what the network makes of them, by how good the masks are."""
    device = next(network.parameters()).device
    count = min(VALIDATED, recipe.outline_steps * recipe.batch)
    held = OutlineSet(
        RoughComposer(banks.held, held_seed(recipe), recipe.view_px), 0, count, recipe.batch, (side,)
    )
    before, after = [], []
    for image, mask, wanted in DataLoader(held, recipe.batch):
        inputs = to_input(image.to(device), mask.to(device))
        said = network.outlines(network.look(*inputs)).cpu() > 0
        truth = wanted > 0.5
        before.append(_iou(F.avg_pool2d(mask.float()[:, None], 2) > 0.5, truth))
        after.append(_iou(said, truth))
    one, other = torch.cat(before), torch.cat(after)
    kinds = {"all": one > -1, f"above {_GOOD}": one > _GOOD, "others": one <= _GOOD}
    return {k: (one[its].mean().item(), other[its].mean().item()) for k, its in kinds.items() if its.any()}


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """Of bool (N, 1, q, q), (N,)."""
    return (one & other).sum((1, 2, 3)) / (one | other).sum((1, 2, 3)).clamp(min=1)


def _digest(network: InstanceNetwork) -> str:
    """Of the weights that the outlines are learned beside, 16 hex digits."""
    weights = [
        v.cpu().numpy().tobytes() for k, v in network.state_dict().items() if not k.startswith("outlines.")
    ]
    return hashlib.sha256(b"".join(weights)).hexdigest()[:16]
