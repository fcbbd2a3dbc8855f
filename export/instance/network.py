"""The instance network: a picture and the mask of one class in; displacement, affinities and boundary out.

Needs torch (``pip install ".[export]"``). It knows no classes, so it works beside any semantic network. Heads and their sources:
displacement (TFISeg's DFM), between-instance boundary (its CBR), affinities of pixel pairs at short and long offsets
(docs/instance-network.md). EfficientNet-Lite2 without its last stage, a feature pyramid, ReLU6 and plain convolutions only.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...plugins.operator import AFFINITY_OFFSETS
from ..network import LITE2, Backbone, separable, upsample_like

STRIDE = 4  # of displacement and affinities; the boundary is at 2
DISPLACEMENT_UNIT_PX = 32.0  # what an output of 1 means, in view pixels
FROZEN_BLOCKS = 4  # edges and textures of ImageNet serve as they are; the mask enters right after them
_ENDS = {0: 16, 3: 24, 6: 48, 14: 120, 19: 208}  # last block of each stride (2, 4, ... 32) -> its channels
_SURROUND = (5, 17)  # windows, in stride-4 cells, of how much of the surround is mask


class InstanceNetwork(nn.Module):
    """``forward(image, mask)``.

    Args of forward:
        image: float32 (N, 3, S, S) RGB, ``(x - 127) / 128``; sides a multiple of 32.
        mask: float32 (N, 1, S, S), 1 where the class is.

    Returns:
        displacement (N, 2, S / 4, S / 4): (dy, dx) to the centre of each pixel's object, in units of 32 px; affinity
        (N, A, S / 4, S / 4) and boundary (N, 1, S / 2, S / 2), logits.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        backbone = Backbone(LITE2)
        self.stem = backbone.stem
        self.blocks = backbone.blocks[: max(_ENDS) + 1]
        self.mask_stem = nn.Sequential(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU6(inplace=True), nn.Conv2d(16, 24, 5, 2, 2))
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

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, x = self._fixed(image)
        mask_2, mask_4 = F.avg_pool2d(mask, 2), F.avg_pool2d(mask, 4)
        around = [mask_4, *(F.avg_pool2d(mask_4, k, 1, k // 2, count_include_pad=True) for k in _SURROUND)]
        shape = torch.cat(around, 1)
        x = x + self.mask_stem(mask) + self.surround(shape)
        sides = [x]
        for i, block in enumerate(self.blocks[FROZEN_BLOCKS:], FROZEN_BLOCKS):
            x = block(x)
            if i in _ENDS:
                sides.append(x)
        y = self.lateral[3](sides[3])
        y = self.refine[3](y + self.context(y))
        for level in (2, 1, 0):
            side = self.lateral[level](sides[level])
            y = self.refine[level](side + upsample_like(y, side))
        y = self.fuse(torch.cat([y, shape], 1))
        out = self.head(y)
        low = upsample_like(self.boundary_side(y), fine)
        return out[:, :2], out[:, 2:], self.boundary(torch.cat([low, fine, mask_2], 1))

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
        backbone = Backbone(LITE2)
        backbone.load_imagenet(path)
        self.stem.load_state_dict(backbone.stem.state_dict())
        self.blocks.load_state_dict(backbone.blocks[: len(self.blocks)].state_dict())
