"""Paper mode, a baseline: displacement learned from class maps alone, and IRNet's grouping.

The paper's pair losses need no single objects. Two nearby cells of one class should point to the same place,
and two cells of the background should have the same vector (TFISeg's displacement field module; IRNet, Ahn et
al., CVPR 2019, section 3.3). Run it in the repository as ``python -m tfiseg.export.frame.paper_mode --images
DIR --semantic DIR --eval SET [SET ...]`` (needs torch).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...instances import Instances
from ...plugins.settings import CENTRE_RADIUS
from ...runtime.evaluate.evaluate import evaluate
from ...runtime.networks.session import DEFAULT_MODEL
from ...runtime.refine.partition import instances_from_labels
from ...runtime.segmenter import Segmenter
from ...runtime.sources.base import Frame, check_image
from ..engine.build import semantic_network
from ..instance.network import DISPLACEMENT_UNIT_PX, STRIDE
from ..semantic.data import IGNORE, CropSampler, load_pictures
from ..training import descend, learning_rate, print_line
from .backbone_taps import FeatureReader, Tap, find_taps
from .heads import InstanceHeads

RADIUS = 10  # maximum distance of pairs in cells, as in IRNet at the same stride
UNIT = DISPLACEMENT_UNIT_PX / STRIDE  # cells of a displacement of 1
IRNET_STEPS = 300
_CROP_PX = 384


def pair_offsets(radius: int = RADIUS) -> list[tuple[int, int]]:
    """Return the offsets (dy, dx) of one half-plane within a radius."""
    near = range(-radius, radius + 1)
    return [
        (dy, dx)
        for dy in range(radius + 1)
        for dx in near
        if (dy > 0 or dx > 0) and dy * dy + dx * dx < radius * radius
    ]


def pair_loss(displacement: Tensor, class_map: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Return the sum of the paper's two losses.

    Args:
        displacement: float (N, 2, h, w), (dy, dx) in cells.
        class_map: integers (N, h, w), 0 = background, 255 = ignore.
        offsets: (dy, dx) from the first to the second cell of each pair.

    Returns:
        Mean of |D_a - D_b - (x_b - x_a)| over pairs of one class, plus mean of |D_a - D_b| over pairs of
        background.
    """
    _, _, h, w = displacement.shape
    sums = [displacement.new_zeros(2) for _ in range(2)]
    for dy, dx in offsets:
        if dy >= h or abs(dx) >= w:
            continue
        here = (slice(0, h - dy), slice(max(0, -dx), w - max(0, dx)))
        there = (slice(dy, h), slice(max(0, dx), w - max(0, -dx)))
        change = displacement[:, :, here[0], here[1]] - displacement[:, :, there[0], there[1]]
        a, b = class_map[:, here[0], here[1]], class_map[:, there[0], there[1]]
        same = (a == b) & (a != IGNORE)
        offset = change.new_tensor([dy, dx])[None, :, None, None]
        for k, (error, pairs) in enumerate(((change - offset, same & (a > 0)), (change, same & (a == 0)))):
            sums[k] = sums[k] + torch.stack([(error.abs().sum(1) * pairs).sum(), pairs.sum()])
    return sum((s[0] / s[1].clamp(min=1) for s in sums), displacement.new_zeros(()))


def group(
    displacement: NDArray[np.float32], steps: int = IRNET_STEPS, center_radius: float = CENTRE_RADIUS
) -> NDArray[np.int32]:
    """Group cells as IRNet does: by the center that they reach along the field.

    Centers are connected components of cells with short vectors.

    Args:
        displacement: float (2, h, w), (dy, dx) in cells.

    Returns:
        int32 (h, w): the center that each cell reaches, 1.., 0 = none.
    """
    _, h, w = displacement.shape
    rows, columns = np.meshgrid(np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32), indexing="ij")
    y, x = rows, columns
    for _ in range(steps):
        moved = [cv2.remap(d, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for d in displacement]
        y, x = np.clip(y + moved[0], 0, h - 1), np.clip(x + moved[1], 0, w - 1)
    short = np.hypot(*displacement) < center_radius
    _, centers = cv2.connectedComponents(short.astype(np.uint8), connectivity=8)
    return np.asarray(centers[np.round(y).astype(int), np.round(x).astype(int)], np.int32)


class _CropDataset(Dataset[tuple[Tensor, ...]]):
    """Crops by number: the network's features and the class map at the finest tap's cells."""

    def __init__(self, sampler: CropSampler, model: onnx.ModelProto, taps: Sequence[Tap], count: int) -> None:
        self.sampler, self.count = sampler, count
        self._features_of = FeatureReader(model, taps, threads=1)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.sampler.rng = np.random.default_rng([0, index])
        image, class_map, *_ = self.sampler.draw().arrays()
        features = self._features_of(image)
        h, w = features[0].shape[-2:]
        cells = cv2.resize(class_map, (w, h), interpolation=cv2.INTER_NEAREST).astype(np.int64)
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (*(f[0] for f in features), cells))


def train_paper(
    images: Path,
    semantic: Path,
    confidence: Path | None,
    model: onnx.ModelProto,
    taps: Sequence[Tap],
    steps: int,
    threads: int | None,
) -> InstanceHeads:
    """Train heads whose displacement is learned from class maps; returns them with averaged weights."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    cv2.setNumThreads(0)
    sampler = CropSampler(load_pictures(images, semantic, confidence), 255, _CROP_PX, 0)
    heads, offsets = InstanceHeads(taps), pair_offsets()
    average = {k: v.clone() for k, v in heads.state_dict().items()}
    optimizer = torch.optim.AdamW(heads.parameters(), lr=3e-3, weight_decay=1e-4)
    loader = DataLoader(_CropDataset(sampler, model, taps, 4 * steps), 4, num_workers=1)
    for step, (*features, cells) in enumerate(tqdm(loader, desc="paper mode", mininterval=5)):
        for part in optimizer.param_groups:
            part["lr"] = 3e-3 * learning_rate(step, steps)
        heads.train()
        loss = pair_loss(heads(*features)[0] * UNIT, cells, offsets)
        value = descend([loss], heads, optimizer, average, step)[0]
        if (step + 1) % 200 == 0:
            print_line(f"step {step + 1}: loss {value:.2f} cells")
    heads.load_state_dict(average)
    return heads.eval()


class PaperSegmenter(Segmenter):
    """Segments a frame by its class map and a learned displacement field.

    Args:
        model: path of a network in tfiseg's format.
        heads: see ``train_paper``.
        by_operator: use our operator (pointer jumping) instead of IRNet's 300 steps.
    """

    def __init__(self, model: Path, heads: InstanceHeads, by_operator: bool) -> None:
        super().__init__(model, refine="shape")
        network = semantic_network(model)
        self._maps_of = FeatureReader(network, find_taps(network), others=["logits"])
        self._heads = heads
        self._by_operator = by_operator

    @torch.no_grad()
    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Instances:
        image = check_image(frame)
        size_hw = (image.shape[0], image.shape[1])
        logits, *features = self._maps_of(image)
        displacement = (self._heads(*(torch.from_numpy(f) for f in features))[0] * UNIT).numpy()
        if self._by_operator:
            return self.cluster_maps(
                {"logits": logits, "displacement": displacement}, size_hw, calibrated=False
            )
        components = self.components_of(logits, size_hw)
        center = cv2.resize(group(displacement[0]), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
        label = np.where(components.label_map > 0, center * 256 + components.semantic_map, 0).astype(np.int32)
        return self.filter_instances(instances_from_labels(label, components), size_hw, calibrated=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--semantic", type=Path, required=True)
    parser.add_argument("--confidence", type=Path)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--eval", type=Path, nargs="+", default=[], metavar="SET")
    args = parser.parse_args()
    model = semantic_network(args.model)
    taps = find_taps(model)
    heads = train_paper(args.images, args.semantic, args.confidence, model, taps, args.steps, args.threads)
    for folder in args.eval:
        for name, by_operator in (("IRNet's grouping", False), ("our operator", True)):
            report = evaluate(
                folder,
                "model",
                PaperSegmenter(args.model, heads, by_operator),
                quiet=True,
                against=("components", "shape"),
            )
            gains = ", ".join(f"{k} {v['PQ']:.1f}" for k, v in report["gain"].items())
            print(
                f"{folder.name}, {name}: PQ {report['PQ']:.1f}  AP {report['AP']:.1f}  AP50 "
                f"{report['AP50']:.1f}  (PQ of {gains})",
                flush=True,
            )


if __name__ == "__main__":
    main()
