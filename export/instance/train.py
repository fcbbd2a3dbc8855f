"""Train the instance network on composites: ``tfiseg train instance --images DIR --semantic DIR``.

After a quarter of the steps, the bank is cleaned: objects that the network itself would split are dropped,
    because
most of them are groups.
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
    print_line,
    save_checkpoint,
    set_learning_rate,
    training_device,
)
from .bank import Bank, bank_digest, bank_summary, build_bank, is_split, remove_dented_objects, render_batches
from .composites import Composer
from .network import InstanceNetwork
from .rule_fitting import fit_eager_rules, remove_split_objects
from .targets import LOSSES, count_correct_pairs, instance_losses, instance_targets
from .teacher import predict_pseudo_labels, single_to_group_ratio, split_groups

_BACKBONE_RATE = 0.25  # learning rate of pretrained layers relative to new ones
CHECKPOINT_EVERY = 100
_EAGER_COMPOSITES = 1000
_CLEANING_AFFINITY = 0.2  # regions with a lower mean affinity are not merged; stricter than at run time
_BATCH_OF_VIEWS = 32
VALIDATED = 256  # composites
_ALL_VIEWS = 100_000  # the teacher renders every view: a component without one would count as one object
_LONG_SIDE = 2.5  # long side of the bank's images over the side of views
_MAX_FLOAT16 = 6e4  # the largest float16 is 65,504
SHIPPED_WEIGHTS = Path(__file__).parent / "tfiseg-instance.pt"


@dataclass(frozen=True)
class InstanceRecipe:
    """Settings of a training run."""

    steps: int = 3600
    batch: int = 16
    view_px: int = VIEW_PX
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    # share of the steps after which the bank is cleaned, before the first step by a trained network; 0 =
    # never
    clean_at: float = 0.25
    outline_steps: int = 1800  # steps of mask refinement, which follow; 0: the model has no mask refinement
    held_out: float = 0.1  # share of the images for validation and for fitting the rules
    seed: int = 0

    def __post_init__(self) -> None:
        if self.view_px < SIDE_MULTIPLE or self.view_px % SIDE_MULTIPLE:
            raise InputError(
                f"the side of views must be a multiple of {SIDE_MULTIPLE} px, the coarsest stride, got "
                f"{self.view_px}"
            )
        if not 0 < self.learning_rate < 1:
            raise InputError(f"the learning rate must be between 0 and 1, got {self.learning_rate}")
        if self.outline_steps < 0:
            raise InputError(f"outline_steps must be at least 0, got {self.outline_steps}")


class CompositeDataset(Dataset[tuple[Tensor, ...]]):
    """Composites by number: image uint8 (S, S, 3), mask uint8 (S, S), then the fields of ``Targets``."""

    def __init__(self, composer: Composer, first: int, count: int) -> None:
        self.composer = composer
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        composite = self.composer(self.first + index)
        targets = instance_targets(composite.owner)
        arrays = (
            composite.image,
            composite.mask,
            targets.displacement,
            targets.weight,
            targets.affinity,
            targets.boundary,
        )
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)


def normalize_inputs(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Convert images uint8 (N, S, S, 3) BGR and masks (N, S, S) 0/1 to the network's input."""
    # convert to float first, because TensorRT cannot flip or reshape uint8
    rgb = images.float().flip(-1).permute(0, 3, 1, 2)
    normalized = ((rgb - PIXEL_MEAN) / PIXEL_STD).contiguous(memory_format=torch.channels_last)
    return normalized, masks.float()[:, None]


@torch.no_grad()
def _affinities(
    network: InstanceNetwork, views: NDArray[np.uint8], masks: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Predict affinities in [0, 1], float32 (N, A, S / 4, S / 4)."""
    network.eval()
    device = next(network.parameters()).device
    image, mask = (torch.from_numpy(x).to(device) for x in (views, masks))
    affinity: NDArray[np.float32] = (
        network.instances(network.extract_features(*normalize_inputs(image, mask)))[1].sigmoid().cpu().numpy()
    )
    return affinity


def find_groups(bank: Bank, network: InstanceNetwork, view_px: int, quiet: bool = False) -> set[int]:
    """Return the indices of the bank's objects that the network splits, see ``is_split``."""
    dropped = set()
    batches = render_batches(bank, view_px, _BATCH_OF_VIEWS)
    count = -(-len(bank.objects) // _BATCH_OF_VIEWS)
    for start, views, masks in tqdm(batches, desc="cleaning the bank", total=count, disable=quiet):
        affinity = _affinities(network, views, masks)
        settings = ClusterSettings(merge_affinity=_CLEANING_AFFINITY, min_area=0)
        clusterings = cluster_batch(masks[:, 1::2, 1::2], affinity=affinity, settings=settings)
        for i, instances in enumerate(clusterings):
            if is_split(instances.area):
                dropped.add(start + i)
    return dropped


def select_held_pictures(bank: Bank, held_out: float, seed: int) -> NDArray[np.bool_]:
    """Return which images are held out, bool (n,)."""
    return np.random.default_rng([seed, 1]).random(len(bank.pictures)) < held_out


def split_bank(bank: Bank, held_out: float, seed: int) -> tuple[Bank, Bank]:
    """Split objects by image into (used, held-out) ones; both banks keep all images as backgrounds."""
    held = select_held_pictures(bank, held_out, seed)
    held_objects = [o for o in bank.objects if held[o.picture]]
    if not any(o.whole for o in held_objects):
        return bank, bank  # too few images: validate on other composites of the same objects
    return replace(bank, objects=[o for o in bank.objects if not held[o.picture]]), replace(
        bank, objects=held_objects
    )


@torch.no_grad()
def validate(network: InstanceNetwork, held: Bank, recipe: InstanceRecipe) -> dict[str, float]:
    """Return the pair accuracy and the losses on composites of held-out objects.

    "same" and "different" are the accuracies in [0, 1] on pairs of one object and of different objects.
    """
    device = next(network.parameters()).device
    network.eval()
    counts, losses = np.zeros((2, 2)), np.zeros(3)
    count = min(VALIDATED, recipe.steps * recipe.batch)
    batches = DataLoader(
        CompositeDataset(Composer(held, held_seed(recipe), recipe.view_px), 0, count), _BATCH_OF_VIEWS
    )
    for batch in batches:
        image, mask, *targets = (t.to(device) for t in batch)
        outputs = network.instances(network.extract_features(*normalize_inputs(image, mask)))
        losses += [part.item() for part in instance_losses(outputs, tuple(targets))]
        counts += count_correct_pairs(outputs[1], targets[2])
    different, same = (counts[0] / np.maximum(counts[1], 1)).tolist()
    return {
        "same": same,
        "different": different,
        **dict(zip(LOSSES, (losses / len(batches)).tolist(), strict=True)),
    }


@dataclass(frozen=True)
class Banks:
    """Banks for training, and held out for validation and for fitting the rules.

    ``single_to_group_ratio`` is that of the images, see ``teacher.py``; None without a teacher.
    """

    used: Bank
    held: Bank
    single_to_group_ratio: float | None = None


def prepare_banks(
    images: Path,
    semantic: Path,
    confidence: Path | None,
    recipe: InstanceRecipe,
    teacher: Path | None = None,
    cutouts: Path | None = None,
    rule_composites: int = _EAGER_COMPOSITES,
    quiet: bool = False,
) -> Banks:
    """Prepare the banks of a training run.

    Args:
        images, semantic, confidence, cutouts: see ``build_bank``.
        recipe: settings of the training.
        teacher: instance network that splits groups. Objects that it splits only with eager rules are left
            out.
        rule_composites: number of composites to fit these rules on, at most 1000.
        quiet: show no progress bars.

    Returns:
        The banks.

    Raises:
        InputError: see ``build_bank``.
    """
    bank = build_bank(images, semantic, confidence, cutouts, round(_LONG_SIDE * recipe.view_px))
    refiner = None if teacher is None else Refiner(teacher, max_views=_ALL_VIEWS)
    ratio = None
    if refiner is not None:
        bank = split_groups(bank, predict_pseudo_labels(bank, refiner, quiet))
        ratio = single_to_group_ratio(bank)
        print_line(f"regions that could be separated: {ratio:.2f} single objects per group")
    bank = remove_dented_objects(bank)
    print_line(bank_summary(bank))
    used, held = split_bank(bank, recipe.held_out, recipe.seed)
    if refiner is None:
        return Banks(used, held, ratio)
    infer, view_px = refiner.session.infer, refiner.session.view_px
    eager_rules = fit_eager_rules(
        held,
        held_seed(recipe) + 1,
        infer,
        view_px,
        min(_EAGER_COMPOSITES, rule_composites),
        recipe.seed,
        quiet,
    )
    single = remove_split_objects(used, infer, view_px, eager_rules)
    dropped = len(used.objects) - len(single.objects)
    print_line(f"{dropped} of {len(used.objects)} objects may be groups: left out")
    return Banks(single, held, ratio)


def held_seed(recipe: InstanceRecipe) -> int:
    """Return the seed of composites that are not trained on."""
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
    """Train a network without mask refinement; returns its average (EMA) and indices of dropped objects.

    Args:
        banks, recipe: see ``prepare_banks``.
        start: initial weights, see ``load_initial_weights``.
        checkpoint: written every 100 steps; an existing one of the same recipe and bank is resumed.
        workers: processes that make composites; the result does not depend on their number.
        threads, device, quiet: CPU threads of torch; "cuda" or "cpu", default: what is available; no progress
            bar.
    """
    device = training_device(device)
    prepare(recipe.seed, threads)
    network = InstanceNetwork()
    trained = load_initial_weights(network, start)
    network = network.to(device, memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = _make_optimizer(network, recipe)
    peak = [group["lr"] for group in optimizer.param_groups]
    first, dropped = 0, set[int]()
    run = {**asdict(recipe), "bank": bank_digest(banks.used)}  # `dropped` holds indices of its objects
    del run["outline_steps"]  # mask refinement has its own checkpoint
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run, device)
        _load(network, state["network"])
        optimizer.load_state_dict(state["optimiser"])
        average, first, dropped = average | state["average"], state["step"], set(state["dropped"])
    clean_at = 0 if trained else round(recipe.clean_at * recipe.steps)
    progress, step = Progress("instance", first, recipe.steps, LOSSES, quiet), first
    while step < recipe.steps:
        if recipe.clean_at and step == clean_at and not dropped:
            dropped = find_groups(banks.used, _network_with(average, device), recipe.view_px, quiet)
            print_line(f"step {step}: {len(dropped)} objects dropped: they may be groups")
        end = clean_at if step < clean_at else recipe.steps
        for batch in _batches(banks.used.without(dropped), recipe, step, end, workers):
            set_learning_rate(optimizer, peak, step, recipe.steps)
            image, mask, *targets = (t.to(device) for t in batch)
            network.train()
            features = network.extract_features(*normalize_inputs(image, mask))
            parts = instance_losses(network.instances(features), tuple(targets))
            progress.add(descend(parts, network, optimizer, average, step, checkpoint))
            step += 1
            if step % CHECKPOINT_EVERY == 0 or step in (clean_at, recipe.steps):
                state = {"network": network.state_dict(), "optimiser": optimizer.state_dict()}
                state |= {"kind": "instance", "average": average, "step": step, "recipe": run}
                save_checkpoint(checkpoint, state | {"dropped": sorted(dropped)})
            if step % (4 * CHECKPOINT_EVERY) == 0 or step == recipe.steps:
                progress.print_scores(step, validate(_network_with(average, device), banks.held, recipe))
    progress.close()
    return _network_with(average, "cpu"), dropped


def _make_optimizer(network: InstanceNetwork, recipe: InstanceRecipe) -> torch.optim.Optimizer:
    """Return AdamW with a lower rate for pretrained layers, without the layers of mask refinement."""
    old = {id(p) for p in [*network.pretrained_parameters(), *network.outlines.parameters()]}
    groups = [
        {"params": network.pretrained_parameters(), "lr": recipe.learning_rate * _BACKBONE_RATE},
        {"params": [p for p in network.parameters() if id(p) not in old], "lr": recipe.learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _batches(
    bank: Bank, recipe: InstanceRecipe, step: int, end: int, workers: int
) -> DataLoader[tuple[Tensor, ...]]:
    """Return the batches of the steps from ``step`` to ``end``."""
    composer = Composer(bank, recipe.seed, recipe.view_px)
    composites = CompositeDataset(composer, step * recipe.batch, (end - step) * recipe.batch)
    return DataLoader(composites, recipe.batch, num_workers=workers, prefetch_factor=4 if workers else None)


def load_initial_weights(network: InstanceNetwork, start: Path) -> bool:
    """Load the weights of an instance network's checkpoint, or ImageNet weights.

    Returns:
        True for a checkpoint, False for ImageNet weights.

    Raises:
        ModelError: the file is neither.
    """
    try:
        state = read_checkpoint(start, "a checkpoint or state dict")
        trained = "average" in state
        if trained:
            _load(network, state["average"])
            if not all(v.isfinite().all() for v in network.state_dict().values()):
                raise ValueError("its weights are not finite")
        else:
            network.load_imagenet_weights(start)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as wrong:
        raise ModelError(
            f"{start} is neither a checkpoint of `tfiseg train instance` nor has ImageNet weights: {wrong}"
        ) from wrong
    return trained


def _load(network: InstanceNetwork, weights: dict[str, Tensor]) -> None:
    """Load weights; older checkpoints lack those of mask refinement. Raises RuntimeError on mismatch."""
    if not any(k.startswith("outlines.") for k in weights):
        weights = weights | {f"outlines.{k}": v for k, v in network.outlines.state_dict().items()}
    network.load_state_dict(weights)


def save_weights(network: InstanceNetwork, path: Path) -> None:
    """Write the network's weights for ``--start``, in 8 MB: as float16, except values too large for it."""
    half = {
        k: v.half() if v.dtype.is_floating_point and v.abs().max() < _MAX_FLOAT16 else v
        for k, v in network.state_dict().items()
    }
    save_checkpoint(path, {"kind": "instance", "average": half})


def _network_with(average: dict[str, Tensor], device: str) -> InstanceNetwork:
    network = InstanceNetwork()
    network.load_state_dict(average)
    return network.to(device).eval()
