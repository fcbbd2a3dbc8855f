"""Shared by all trainers: learning rate schedule, running average of weights, checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import InputError, ModelError
from ..files import whole_file
from .checkpoint import read_checkpoint

HELD_SEED = 1_000_003  # added to a recipe's seed: composites that are never trained on


def learning_rate(step: int, steps: int, warm_up: int = 100) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a cosine down to 0.3 %."""
    return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 0.003


def say(text: str) -> None:
    """Print a line above the progress bar, on stderr; stdout is for the report."""
    tqdm.write(text, file=sys.stderr)


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: nn.Module, step: int, longest: float = 0.998) -> None:
    """Update the running average of the weights (EMA); it follows faster in early steps."""
    decay = min(longest, (step + 1) / (step + 20))
    for key, value in network.state_dict().items():
        if value.dtype.is_floating_point:
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def descend(
    parts: Sequence[Tensor],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    checkpoint: Path | None = None,
) -> list[float]:
    """Take one optimizer step on the sum of a loss's parts, and update the running average.

    Returns:
        Values of the parts.

    Raises:
        InputError: a part isn't finite; ``checkpoint`` keeps its last state.
    """
    losses = [part.item() for part in parts]
    if not all(map(math.isfinite, losses)):
        kept = (
            f"; {checkpoint} holds an earlier state" if checkpoint is not None and checkpoint.exists() else ""
        )
        raise InputError(
            f"the loss of step {step} is {losses[0] if len(losses) == 1 else losses}: training stops{kept}"
        )
    optimiser.zero_grad()
    sum(parts[1:], parts[0]).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimiser.step()
    update_average(average, network, step)
    return losses


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``path`` whole or not at all."""
    with whole_file(path) as part:
        torch.save(state, part)


def load_checkpoint(path: Path, recipe: dict[str, Any], device: str) -> dict[str, Any]:
    """Read a checkpoint to resume; raises InputError if it was written with another recipe."""
    state = read_checkpoint(path, "a checkpoint of this training", device)
    before = state.get("recipe")
    if not isinstance(before, dict):
        raise ModelError(f"{path} is no checkpoint of this training: it holds no recipe")
    if before != recipe:
        other = ", ".join(
            f"{k} {before.get(k)}, now {recipe.get(k)}"
            for k in {**before, **recipe}
            if before.get(k) != recipe.get(k)
        )
        raise InputError(f"{path} was written by another recipe ({other}): remove it or name another file")
    return state
