"""The default semantic network: a backbone, a light feature pyramid to stride 4, and one 1x1 head per output.

Needs torch (``pip install ".[train]"``). Source: Lin et al., "Feature Pyramid Networks" (CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import check_choice
from .backbones import LITE0, LITE2, EfficientNetLite, MobileNetV2, same_conv

CHANNELS = 64  # width of the feature pyramid
SIDE_MULTIPLE = 32  # the coarsest stride of a backbone
BACKBONES: dict[str, Callable[[], EfficientNetLite | MobileNetV2]] = {
    "lite0": lambda: EfficientNetLite(LITE0),
    "lite2": lambda: EfficientNetLite(LITE2),
    "mobilenetv2": MobileNetV2,
}

# ImageNet-1k classes of each PASCAL class. They initialize the context head, which helps rare classes.
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


def separable(c_in: int, c_out: int) -> nn.Sequential:
    """Return a depthwise separable 5 x 5 convolution with batch normalization and ReLU6."""
    return nn.Sequential(
        same_conv(c_in, c_in, 5, 1, c_in),
        nn.BatchNorm2d(c_in),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(),
    )


def upsample_like(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate ``x`` to the size of ``like``."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class SegmentationNetwork(nn.Module):
    """Predicts dense maps at stride 4.

    ``forward`` takes an image (N, 3, H, W) float32 RGB, ``(x - PIXEL_MEAN) / PIXEL_STD``, with sides that are
    multiples of 32, and returns name -> (N, channels, H / 4, W / 4) float32.

    Args:
        outputs: name -> channels of each head, for example ``{"logits": 21}``. Heads share everything but one
            1x1 convolution.
        backbone: a key of ``BACKBONES``.

    Raises:
        InputError: there is no such backbone.
    """

    def __init__(self, outputs: dict[str, int], backbone: str = "lite0") -> None:
        super().__init__()
        check_choice("backbone", backbone, tuple(BACKBONES))
        self.backbone = BACKBONES[backbone]()
        *fine, coarse = self.backbone.channels
        classes = outputs["logits"]
        self.context = nn.Conv2d(coarse, classes, 1)  # class evidence of the whole neighborhood
        sides = (*fine, coarse + classes)
        self.lateral = nn.ModuleList(nn.Conv2d(c, CHANNELS, 1) for c in sides)
        self.refine = nn.ModuleList(separable(CHANNELS, CHANNELS) for _ in sides)
        self.fuse = separable(CHANNELS, CHANNELS)
        self.heads = nn.ModuleDict({name: nn.Conv2d(CHANNELS, c, 1) for name, c in outputs.items()})

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features that all heads share.

        Returns:
            Features (N, CHANNELS, H / 4, W / 4), and class evidence (N, classes, h, w) at the coarsest
            stride.
        """
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

    def load_imagenet_weights(self, path: str | Path) -> None:
        """Load ImageNet weights, also into the context head for PASCAL's classes; raises ValueError."""
        if not isinstance(self.backbone, EfficientNetLite):
            raise ValueError("ImageNet weights are for the backbones lite0 and lite2")
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
                    self.context.bias[pascal] = bias[rows].mean() - 1.0  # background is the most likely class

    def load_deeplab_weights(self, path: str | Path) -> None:
        """Load DeepLab v3 weights, see ``MobileNetV2.load_deeplab``.

        With DeepLab's number of classes, the network then computes DeepLab's logits.

        Raises:
            ValueError: the backbone or the file is another network.
        """
        if not isinstance(self.backbone, MobileNetV2):
            raise ValueError("an initial ONNX file must be a DeepLab v3 for the backbone mobilenetv2")
        weight, bias = self.backbone.load_deeplab(path)
        if self.context.out_channels == len(bias):
            self.context.load_state_dict({"weight": weight, "bias": bias})
            head = self.heads["logits"]
            assert isinstance(head, nn.Conv2d)
            assert head.bias is not None
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
