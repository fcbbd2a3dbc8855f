"""Instance heads: a light feature pyramid that predicts displacement, affinities and boundary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...plugins.settings import AFFINITY_OFFSETS
from ..semantic.network import separable, upsample_like
from .backbone_taps import Tap

CHANNELS = 64
HEADS = {"displacement": 2, "affinity": len(AFFINITY_OFFSETS), "boundary": 1}


class InstanceHeads(nn.Module):
    """``forward(*features)`` takes a tensor (N, C, h, w) per tap, fine to coarse.

    Additional tensors at the finest stride come last.

    Returns:
        displacement (N, 2, h, w), (dy, dx) in units of 8 cells; affinity (N, A, h, w) and boundary (N, 1, h,
        w), logits; all at stride 4.
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        super().__init__()
        strides = sorted({t.stride for t in taps})
        self._level = [strides.index(t.stride) for t in taps]
        # features may be unbounded: batch normalization scales them
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(t.channels), nn.Conv2d(t.channels, CHANNELS, 1)) for t in taps
        )
        self.refine = nn.ModuleList(separable(CHANNELS, CHANNELS) for _ in strides)
        self.fuse = separable(CHANNELS, CHANNELS)
        self.head = nn.Conv2d(CHANNELS, sum(HEADS.values()), 1)

    def forward(self, *features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sides: list[Tensor | None] = [None] * len(self.refine)
        for level, lateral, given in zip(self._level, self.lateral, features, strict=True):
            side = lateral(given)
            known = sides[level]
            sides[level] = side if known is None else known + side
        y: Tensor | None = None
        for side, refine in zip(reversed(sides), reversed(self.refine), strict=True):
            assert side is not None
            y = refine(side if y is None else side + upsample_like(y, side))
        assert y is not None
        displacement, affinity, boundary = torch.split(self.head(self.fuse(y)), list(HEADS.values()), 1)
        return displacement, affinity, boundary
