"""The instance network: a picture and the mask of one class in; displacement, affinities, boundary and
foreground out.

Needs torch (``pip install ".[train]"``). It knows no classes, so it works beside any semantic network. Heads
and their sources: displacement (TFISeg's DFM), between-instance boundary (its CBR), affinities of pixel pairs
at short and long offsets, the mask as it should be (docs/instance-network.md). EfficientNet-Lite2 without its
last stage, a feature pyramid, ReLU6 and plain convolutions only.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...plugins.settings import AFFINITY_OFFSETS
from ..semantic.backbones import LITE2, EfficientNetLite
from ..semantic.network import SIDE_MULTIPLE, separable, upsample_like

STRIDE = 4  # of displacement and affinities; the boundary is at 2
DISPLACEMENT_UNIT_PX = 32.0  # what an output of 1 means, in view pixels
FROZEN_BLOCKS = 4  # edges and textures of ImageNet serve as they are; the mask enters right after them
_ENDS = {0: 16, 3: 24, 6: 48, 14: 120, 19: 208}  # last block of each stride (2, 4, ... 32) -> its channels
_SURROUND = (5, 17)  # windows, in stride-4 cells, of how much of the surround is mask
_OUTLINE_SHARE = 2 / 3  # of a view's side: outlines are worth less than half of the time


def outline_px(view_px: int) -> int:
    """The side of views in which nothing but outlines is drawn."""
    return max(SIDE_MULTIPLE, round(view_px * _OUTLINE_SHARE / SIDE_MULTIPLE) * SIDE_MULTIPLE)


class Seen(NamedTuple):
    """Features of a view: ``fine`` (N, 16, S / 2, S / 2), ImageNet's; ``sides``, the backbone's at strides 4
    to 32, and ``pyramid``, the same after the pyramid (``channels`` each); ``deep`` (N, channels, S / 4, S /
    4), what the heads read; ``mask`` (N, 1, S / 2, S / 2) and ``shape`` (N, 3, S / 4, S / 4), of the mask."""

    fine: Tensor
    sides: list[Tensor]
    pyramid: list[Tensor]
    deep: Tensor
    mask: Tensor
    shape: Tensor


class Outlines(nn.Module):
    """Which pixels belong to what the mask shows, (N, 1, S / 2, S / 2), logits: the mask as it should be
    (mask refinement). Its layers, a pyramid of its own among them, are no other head's: it learns from
    rougher masks than they do, and leaves them as they are."""

    def __init__(self, channels: int = 64, width: int = 32) -> None:
        super().__init__()
        sides = list(_ENDS.values())[1:]
        self.lateral = nn.ModuleList(nn.Conv2d(c + channels, channels, 1) for c in sides)
        self.refine = nn.ModuleList(separable(channels, channels) for _ in sides)
        self.fuse = separable(2 * channels + 1 + len(_SURROUND), channels)
        self.side = nn.Conv2d(channels, width, 1)
        self.out = nn.Sequential(
            nn.Conv2d(width + _ENDS[0] + 1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            separable(width, width),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, seen: Seen) -> Tensor:
        levels = [
            self.lateral[k](torch.cat(both, 1))
            for k, both in enumerate(zip(seen.sides, seen.pyramid, strict=True))
        ]
        y = self.refine[3](levels[3])
        for k in (2, 1, 0):
            y = self.refine[k](levels[k] + upsample_like(y, levels[k]))
        y = self.fuse(torch.cat([y, seen.deep, seen.shape], 1))
        out: Tensor = self.out(torch.cat([upsample_like(self.side(y), seen.fine), seen.fine, seen.mask], 1))
        return out


class InstanceNetwork(nn.Module):
    """``forward(image, mask)``.

    Args of forward:
        image: float32 (N, 3, S, S) RGB, ``(x - 127) / 128``; sides a multiple of 32.
        mask: float32 (N, 1, S, S), 1 where the class is.

    Returns:
        displacement (N, 2, S / 4, S / 4): (dy, dx) to the centre of each pixel's object, in units of 32 px;
        affinity (N, A, S / 4, S / 4), boundary and foreground (N, 1, S / 2, S / 2), logits.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        backbone = EfficientNetLite(LITE2)
        self.stem = backbone.stem
        self.blocks = backbone.blocks[: max(_ENDS) + 1]
        self.mask_stem = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU6(inplace=True), nn.Conv2d(16, 24, 5, 2, 2)
        )
        self.surround = nn.Conv2d(1 + len(_SURROUND), 24, 1)
        for entry in (self.mask_stem[2], self.surround):
            nn.init.normal_(entry.weight, 0, 0.02)  # type: ignore[arg-type]  # ImageNet's features are not drowned at the start
        sides = list(_ENDS.values())[1:]
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in sides)
        self.refine = nn.ModuleList(separable(channels, channels) for _ in sides)
        self.context = separable(channels, channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(channels + 1 + len(_SURROUND), channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            separable(channels, channels),
        )
        self.head = nn.Conv2d(channels, 2 + len(AFFINITY_OFFSETS), 1)
        self.boundary_side = nn.Conv2d(channels, 16, 1)
        self.boundary = nn.Sequential(
            nn.Conv2d(16 + _ENDS[0] + 1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(inplace=True),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        self.outlines = Outlines(channels)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seen = self.look(image, mask)
        return (*self.instances(seen), self.outlines(seen))

    def look(self, image: Tensor, mask: Tensor) -> Seen:
        fine, x = self._fixed(image)
        mask_4 = F.avg_pool2d(mask, 4)
        shape = torch.cat(
            [mask_4, *(F.avg_pool2d(mask_4, k, 1, k // 2, count_include_pad=True) for k in _SURROUND)], 1
        )
        x = x + self.mask_stem(mask) + self.surround(shape)
        sides = [x]
        for i, block in enumerate(self.blocks[FROZEN_BLOCKS:], FROZEN_BLOCKS):
            x = block(x)
            if i in _ENDS:
                sides.append(x)
        y = self.lateral[3](sides[3])
        y = self.refine[3](y + self.context(y))
        pyramid = [y]
        for level in (2, 1, 0):
            side = self.lateral[level](sides[level])
            y = self.refine[level](side + upsample_like(y, side))
            pyramid.insert(0, y)
        return Seen(fine, sides, pyramid, self.fuse(torch.cat([y, shape], 1)), F.avg_pool2d(mask, 2), shape)

    def instances(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Displacement, affinity and boundary."""
        out = self.head(seen.deep)
        low = upsample_like(self.boundary_side(seen.deep), seen.fine)
        return out[:, :2], out[:, 2:], self.boundary(torch.cat([low, seen.fine, seen.mask], 1))

    def _fixed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """ImageNet's first layers, which are not trained: features at strides 2 and 4."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            fine = self.blocks[0](self.stem(image))
            x = fine
            for block in self.blocks[1:FROZEN_BLOCKS]:
                x = block(x)
        return fine, x

    def train(self, mode: bool = True) -> InstanceNetwork:
        """ImageNet's batch statistics stay."""
        super().train(mode)
        self.stem.eval()
        self.blocks.eval()
        return self

    def pretrained(self) -> list[nn.Parameter]:
        """What came from ImageNet and is trained on."""
        return list(self.blocks[FROZEN_BLOCKS:].parameters())

    def start_from_imagenet(self, path: str | Path) -> None:
        backbone = EfficientNetLite(LITE2)
        backbone.load_imagenet(path)
        self.stem.load_state_dict(backbone.stem.state_dict())
        self.blocks.load_state_dict(backbone.blocks[: len(self.blocks)].state_dict())
