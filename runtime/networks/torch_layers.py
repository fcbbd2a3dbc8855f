"""ONNX layers in PyTorch: activations, convolutions, pooling, normalization, resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .torch_operators import Call, operator, unsupported

if TYPE_CHECKING:
    from torch import Tensor


@operator("LeakyRelu", "HardSigmoid", "HardSwish", "Elu", "Gelu", "Softplus")
def _activation(call: Call) -> Tensor:
    from torch.nn import functional

    x = call.tensor()
    if call.kind == "LeakyRelu":
        return functional.leaky_relu(x, call.attribute("alpha", 0.01))
    if call.kind == "HardSigmoid":
        return (x * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)).clamp(0, 1)
    if call.kind == "Elu":
        return functional.elu(x, call.attribute("alpha", 1.0))
    if call.kind == "Gelu":
        return functional.gelu(x, approximate=call.attribute("approximate", "none"))
    return functional.hardswish(x) if call.kind == "HardSwish" else functional.softplus(x)


@operator("PRelu")
def _prelu(call: Call) -> Tensor:
    x = call.tensor()
    return x.clamp(min=0) + call.tensor(1) * x.clamp(max=0)


def _symmetric(call: Call, x: Tensor, fill: float = 0.0) -> tuple[Tensor, list[int]]:
    """Apply asymmetric padding; return the input and its symmetric padding."""
    from torch.nn import functional

    if call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise unsupported(call, f"auto_pad {call.attribute('auto_pad')}")
    if x.ndim != 4:
        raise unsupported(call, f"an input of {x.ndim} dimensions")
    top, left, bottom, right = call.attribute("pads", [0, 0, 0, 0])
    if (top, left) == (bottom, right):
        return x, [top, left]
    return functional.pad(x, (left, right, top, bottom), value=fill), [0, 0]


@operator("Conv")
def _conv(call: Call) -> Tensor:
    from torch.nn import functional

    x, padding = _symmetric(call, call.tensor())
    return functional.conv2d(
        x,
        call.tensor(1),
        call.tensor(2) if call.given(2) else None,
        call.attribute("strides", [1, 1]),
        padding,
        call.attribute("dilations", [1, 1]),
        call.attribute("group", 1),
    )


@operator("ConvTranspose")
def _conv_transpose(call: Call) -> Tensor:
    from torch.nn import functional

    top, left, bottom, right = call.attribute("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right) or call.attribute("output_shape") is not None:
        raise unsupported(call, "padding that differs between the ends, or an output shape")
    return functional.conv_transpose2d(
        call.tensor(),
        call.tensor(1),
        call.tensor(2) if call.given(2) else None,
        call.attribute("strides", [1, 1]),
        [top, left],
        call.attribute("output_padding", [0, 0]),
        call.attribute("group", 1),
        call.attribute("dilations", [1, 1]),
    )


@operator("AveragePool", "MaxPool")
def _pool(call: Call) -> Tensor:
    from torch.nn import functional

    size, strides = call.attribute("kernel_shape"), call.attribute("strides", [1, 1])
    ceil = bool(call.attribute("ceil_mode", 0))
    if call.kind == "MaxPool":
        x, padding = _symmetric(call, call.tensor(), float("-inf"))
        return functional.max_pool2d(x, size, strides, padding, call.attribute("dilations", [1, 1]), ceil)
    inclusive = bool(call.attribute("count_include_pad", 0))
    x, padding = _symmetric(call, call.tensor())
    if x is not call.tensor() and not inclusive:
        raise unsupported(call, "padding that differs between the ends and is not counted")
    return functional.avg_pool2d(x, size, strides, padding, ceil, inclusive)


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Tensor:
    x = call.tensor()
    return x.mean((2, 3), keepdim=True) if call.kind == "GlobalAveragePool" else x.amax((2, 3), keepdim=True)


@operator("BatchNormalization", "InstanceNormalization", "LayerNormalization")
def _normalization(call: Call) -> Tensor:
    from torch.nn import functional

    x, scale, epsilon = call.tensor(), call.tensor(1), call.attribute("epsilon", 1e-5)
    bias = call.tensor(2) if call.given(2) else None
    if call.kind == "BatchNormalization":
        return functional.batch_norm(x, call.tensor(3), call.tensor(4), scale, bias, False, 0.0, epsilon)
    if call.kind == "InstanceNormalization":
        return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)
    axis = call.attribute("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


@operator("Pad")
def _pad(call: Call) -> Tensor:
    from torch.nn import functional

    x, pads = call.tensor(), call.numbers(1)
    if call.given(3):
        raise unsupported(call, "axes")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(
        call.attribute("mode", "constant")
    )
    if mode is None:
        raise unsupported(call, f"the mode {call.attribute('mode')}")
    last_first = [p for k in reversed(range(x.ndim)) for p in (pads[k], pads[k + x.ndim])]
    if mode == "constant":
        return functional.pad(x, last_first, value=call.numbers(2)[0] if call.given(2) else 0)
    return functional.pad(x, last_first[:4], mode)


@operator("DepthToSpace")
def _depth_to_space(call: Call) -> Tensor:
    from torch.nn import functional

    if call.attribute("mode", "DCR") != "CRD":
        raise unsupported(call, "the mode DCR")
    return functional.pixel_shuffle(call.tensor(), call.attribute("blocksize"))


@operator("Resize")
def _resize(call: Call) -> Tensor:
    from torch.nn import functional

    x, mode = call.tensor(), call.attribute("mode", "nearest")
    where = call.attribute("coordinate_transformation_mode", "half_pixel")
    nearest = call.attribute("nearest_mode", "round_prefer_floor")
    names = {
        ("nearest", "asymmetric", "floor"): "nearest",
        ("nearest", "half_pixel", "round_prefer_ceil"): "nearest-exact",
    }
    smooth = mode in ("linear", "cubic") and where in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if nearest == "round_prefer_floor":  # as in torch, except for ties
        names["nearest", "half_pixel", nearest] = "nearest-exact"
    name = ("bilinear" if mode == "linear" else "bicubic") if smooth else names.get((mode, where, nearest))
    if name is None or x.ndim != 4 or (mode == "cubic" and call.attribute("cubic_coeff_a", -0.75) != -0.75):
        raise unsupported(call, f"mode {mode}, coordinates {where} and rounding {nearest}")
    by_size = call.given(3)
    factors = call.numbers(3 if by_size else 2)
    axes = [a % 4 for a in call.attribute("axes", [*range(4)])]
    along = [factors[axes.index(a)] if a in axes else (x.shape[a] if by_size else 1.0) for a in range(4)]
    if along[:2] != ([*x.shape[:2]] if by_size else [1.0, 1.0]):
        raise unsupported(call, "another batch or number of channels")
    options: dict[str, Any] = {"size": along[2:]} if by_size else {"scale_factor": along[2:]}
    if smooth:
        options |= {
            "align_corners": where == "align_corners",
            "antialias": bool(call.attribute("antialias", 0)),
        }
    resized = functional.interpolate(x, mode=name, **options)
    sizes = zip(x.shape[2:], resized.shape[2:], strict=True)
    if name == "nearest-exact" and nearest == "round_prefer_floor" and any(_has_ties(*s) for s in sizes):
        raise unsupported(call, f"rounding {nearest} of ties between two pixels")
    return resized


def _has_ties(size: int, resized: int) -> bool:
    """Return whether a pixel's center lies halfway between two centers of the input."""
    return any((2 * i + 1) * size % (2 * resized) == 0 for i in range(resized))
