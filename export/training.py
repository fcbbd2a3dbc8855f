"""Shared code of all trainers: setup, learning rate, progress, average of weights, checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import InputError, ModelError, check_choice
from ..files import whole_file
from ..runtime.networks.session import DEVICES
from .checkpoint import read_checkpoint

_WARM_UP = 100  # steps
_MAX_DECAY = 0.998  # of the running average of the weights
HELD_SEED = 1_000_003  # added to a recipe's seed for composites that are not trained on


def training_device(name: str | None) -> str:
    """Return the named device, or "cuda" if available; raises InputError if it is unknown or missing."""
    available = torch.cuda.is_available()
    if name is None:
        return "cuda" if available else "cpu"
    check_choice("device", name, DEVICES)
    if name == "cuda" and not available:
        raise InputError("PyTorch finds no GPU for device='cuda': leave it out to train on the CPU")
    return name


def prepare(seed: int, threads: int | None = None) -> None:
    """Set the seed and the CPU threads of torch, and stop OpenCV's threads."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork of the loader's workers


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a cosine down to 0.3 %."""
    return min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 0.003


def print_line(text: str) -> None:
    """Print a line above the progress bar, on stderr, because stdout is for the report."""
    tqdm.write(text, file=sys.stderr)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: Sequence[float], step: int, steps: int) -> None:
    """Set the learning rate of each group for a step, given the peaks."""
    rate = learning_rate(step, steps)
    for group, top in zip(optimizer.param_groups, peak, strict=True):
        group["lr"] = top * rate


class Progress:
    """Progress bar of a training run, with running means of the losses.

    Args:
        name: what is trained, e.g. "frame".
        first, steps: the first step of this run, and the number of steps of the whole training.
    """

    def __init__(self, name: str, first: int, steps: int, losses: Sequence[str], quiet: bool = False) -> None:
        self._names, self._means, self._count = losses, [0.0] * len(losses), 0
        self._began = time.monotonic()
        self._bar = tqdm(total=steps, initial=first, desc=f"train {name}", mininterval=5, disable=quiet)

    def add(self, losses: Sequence[float]) -> None:
        """Count one step with these losses."""
        self._count += 1
        share = max(0.02, 1 / self._count)
        self._means = [m + (loss - m) * share for m, loss in zip(self._means, losses, strict=True)]
        shown = (f"{name} {mean:.3f}" for name, mean in zip(self._names, self._means, strict=True))
        self._bar.set_postfix_str(" ".join(shown), refresh=False)
        self._bar.update()

    def print_line(self, text: str) -> None:
        """Print a line with the minutes since the start."""
        print_line(f"{text}, {(time.monotonic() - self._began) / 60:.0f} min")

    def print_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Print the scores of a validation."""
        self.print_line(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: nn.Module, step: int) -> None:
    """Update the running average of the weights (EMA); it follows faster in early steps."""
    decay = min(_MAX_DECAY, (step + 1) / (step + 20))
    for key, value in network.state_dict().items():
        if value.dtype.is_floating_point:
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def descend(
    parts: Sequence[Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    step: int,
    checkpoint: Path | None = None,
) -> list[float]:
    """Take one optimizer step on the sum of losses, and update the average; returns the losses.

    Raises:
        InputError: a loss is not finite; ``checkpoint`` keeps its last state.
    """
    losses = [part.item() for part in parts]
    if not all(map(math.isfinite, losses)):
        kept = (
            f"; {checkpoint} holds an earlier state" if checkpoint is not None and checkpoint.exists() else ""
        )
        raise InputError(
            f"the loss of step {step} is {losses[0] if len(losses) == 1 else losses}: training stops{kept}"
        )
    optimizer.zero_grad()
    sum(parts[1:], parts[0]).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    update_average(average, network, step)
    return losses


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``path`` atomically."""
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
