"""Export networks of torchvision, segmentation-models-pytorch, transformers or your own code to ONNX.

Needs torch."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ...errors import FormatError, InputError, MissingDependencyError, ModelError
from ...schema import read_file, record
from ..frame_graph import IMAGENET_MEAN, IMAGENET_STD, PixelFormat
from .state_dicts import load_weights

KINDS = ("torchvision", "smp", "hf", "python")
DEFAULT_SIZE_HW = (512, 512)
_IMAGENET = PixelFormat(IMAGENET_MEAN, IMAGENET_STD)
_ATTENTION = "eager"  # the exporter of torch 2.13 fails on the strides of fused attention (sdpa)
_TORCHSCRIPT = (
    "a TorchScript module, which torch can't write as ONNX: it holds compiled code. Load the weights into "
    "the nn.Module that it was made from, and {} that"
)
_RANDOM = "pass --random-weights to export the architecture with random weights"


@dataclass(frozen=True)
class TorchNetwork:
    """A network with its pixel format, input size, class names and training data.

    ``module`` maps float32 (1, 3, H, W) to scores float32 (1, C, h, w).
    """

    module: nn.Module
    pixels: PixelFormat = _IMAGENET
    size_hw: tuple[int, int] = DEFAULT_SIZE_HW
    class_names: tuple[str, ...] | None = None
    training_data: str | None = None


def load_torch_network(
    source: str, weights: Path | None = None, random_weights: bool = False, classes: int | None = None
) -> TorchNetwork:
    """Load a PyTorch network.

    Args:
        source: ``torchvision:NAME``, ``smp:ARCH/ENCODER``, ``hf:NAME_OR_FOLDER`` or
            ``python:module:function``.
        weights: state dict, written by ``torch.save``, to load instead of the source's own weights.
        classes: number of classes of a network without published weights; default: 21.

    Raises:
        InputError: the source does not exist.
        ModelError: its weights can't be loaded.
        MissingDependencyError: its package isn't installed.
    """
    kind, _, name = source.partition(":")
    load = {"torchvision": _torchvision, "smp": _smp, "hf": _hugging_face, "python": _python}[kind]
    network = load(name, weights, random_weights, classes)
    if weights is not None:
        load_weights(network.module, weights)
    module = _Scores(network.module).eval()
    return TorchNetwork(module, network.pixels, network.size_hw, network.class_names, network.training_data)


def to_onnx(module: nn.Module, size_hw: tuple[int, int], opset: int) -> onnx.ModelProto:
    """Export a network for images float32 (1, 3, *size_hw) as ONNX; raises ModelError if torch can't."""
    # it warns about each operator of packages that aren't installed
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the exporter about itself
            program = torch.onnx.export(
                module,
                (torch.zeros(1, 3, *size_hw),),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["scores"],
                verbose=False,
            )
    except Exception as wrong:  # its errors share no base class, and the innermost one has the reason
        reason: BaseException = wrong
        while (inner := reason.__cause__ or reason.__context__) is not None:
            reason = inner
        size = f"{size_hw[0]}x{size_hw[1]}"
        raise ModelError(
            f"torch can't export this network as ONNX for images of {size}: {_first_line(reason)}"
        ) from wrong
    assert program is not None
    return program.model_proto


class _Scores(nn.Module):
    """Selects the scores per class (1, C, h, w) from a network's result."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        result = self.network(image)
        masks = getattr(result, "masks_queries_logits", None)
        if masks is not None:
            # MaskFormer and Mask2Former: per query a class and a mask; the last class is "no object"
            classes = result.class_queries_logits.softmax(-1)[..., :-1]
            shares = torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())
            return shares.clamp_min(1e-6).log()
        if isinstance(result, Mapping):
            for key in ("out", "logits"):
                if key in result:
                    return result[key]
        if isinstance(result, (tuple, list)):
            result = result[0]
        scores: Tensor = getattr(result, "logits", result)
        return scores


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as wrong:
        raise MissingDependencyError(
            f'this source needs {name}: pip install ".[{extra}]" in the repository'
        ) from wrong


def _torchvision(name: str, weights: Path | None, random_weights: bool, classes: int | None) -> TorchNetwork:
    models = _package("torchvision", "zoo").models
    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise InputError(f"torchvision has no segmentation network {name!r}, but {', '.join(known)}")
    published = models.get_model_weights(name).DEFAULT
    preset = published.transforms()
    pixels = PixelFormat(tuple(preset.mean), tuple(preset.std))
    side = preset.resize_size[0]
    names = tuple("background" if n == "__background__" else n for n in published.meta["categories"])
    if random_weights or weights is not None:
        module = models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes or len(names)
        )
        return TorchNetwork(module, pixels, (side, side), names if classes in (None, len(names)) else None)
    try:
        module = models.get_model(name, weights=published)
    except OSError as wrong:  # urllib's errors are OSErrors
        raise ModelError(
            f"the weights of torchvision:{name} can't be downloaded ({wrong}): download {published.url} "
            f"elsewhere and pass it with "
            f"--weights, or {_RANDOM}"
        ) from wrong
    return TorchNetwork(
        module, pixels, (side, side), names, f"{published} of torchvision: {published.meta['_docs'].strip()}"
    )


def _smp(name: str, weights: Path | None, random_weights: bool, classes: int | None) -> TorchNetwork:
    smp = _package("segmentation_models_pytorch", "zoo")
    architecture, slash, encoder = name.partition("/")
    if not slash:
        raise InputError(f"smp:{name} names no encoder: expected smp:ARCH/ENCODER, e.g. smp:Unet/resnet18")
    if weights is None and not random_weights:
        raise ModelError(
            f"segmentation-models-pytorch has weights for encoders only: pass your network's with "
            f"--weights, or {_RANDOM}"
        )
    try:
        module = smp.create_model(
            architecture, encoder_name=encoder, encoder_weights=None, classes=classes or 21
        )
    except (KeyError, ValueError, RuntimeError) as wrong:
        raise InputError(
            f"segmentation-models-pytorch can't make {architecture} with encoder {encoder}: {wrong}"
        ) from wrong
    pixels = _IMAGENET
    try:
        stated = smp.encoders.get_preprocessing_params(encoder)
    except (KeyError, ValueError, OSError):
        stated = {}  # no published weights, or a hub that can't be reached: use ImageNet's values
    if stated.get("mean"):
        scale = 1 / 255 if stated.get("input_range", [0, 1])[1] == 1 else 1.0
        pixels = PixelFormat(
            tuple(stated["mean"]), tuple(stated["std"]), scale, stated.get("input_space", "RGB") == "RGB"
        )
    return TorchNetwork(module, pixels)


def _hugging_face(name: str, weights: Path | None, random_weights: bool, classes: int | None) -> TorchNetwork:
    transformers = _package("transformers", "hf")
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as wrong:
        raise ModelError(
            f"hf:{name} is no folder with a config.json and can't be downloaded: {_first_line(wrong)}"
        ) from wrong
    kinds = (transformers.AutoModelForSemanticSegmentation, transformers.AutoModelForUniversalSegmentation)
    maker = next((k for k in kinds if type(config) in k._model_mapping), None)
    if maker is None:
        raise InputError(
            f"hf:{name} is a {config.model_type}, for which transformers has no semantic segmentation network"
        )
    if random_weights or weights is not None:
        module = maker.from_config(config, attn_implementation=_ATTENTION)
    else:
        try:
            module, found = maker.from_pretrained(
                name, output_loading_info=True, attn_implementation=_ATTENTION
            )
        except (OSError, ValueError) as wrong:
            raise ModelError(
                f"the weights of hf:{name} can't be loaded ({_first_line(wrong)}): put them into the "
                f"folder, or {_RANDOM}"
            ) from wrong
        if found["missing_keys"]:
            some = ", ".join(sorted(found["missing_keys"])[:3])
            raise ModelError(
                f"hf:{name} lacks {len(found['missing_keys'])} weights ({some}, ...): it wasn't trained to "
                f"segment; {_RANDOM}"
            )
    names = tuple(str(config.id2label[i]) for i in range(len(config.id2label)))
    stated = _preprocessor(transformers, name)
    scale = float(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 1.0
    pixels = PixelFormat(scale=scale)
    if stated.get("do_normalize", True):
        mean, std = stated.get("image_mean") or IMAGENET_MEAN, stated.get("image_std") or IMAGENET_STD
        pixels = PixelFormat(tuple(mean), tuple(std), scale)
    return TorchNetwork(module, pixels, _stated_size(stated.get("size")), names)


def _preprocessor(transformers: Any, name: str) -> dict[str, Any]:
    """Read preprocessor_config.json of a folder or a model on the hub; empty if there is none."""
    path = transformers.utils.cached_file(
        name,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if not path:
        return {}
    try:
        config: dict[str, Any] = read_file(Path(path), record({}))
    except FormatError as wrong:
        raise ModelError(f"{path} is damaged: {wrong}") from wrong
    return config


def _stated_size(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return DEFAULT_SIZE_HW


def _python(name: str, weights: Path | None, random_weights: bool, classes: int | None) -> TorchNetwork:
    module_name, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"python:{name} names no function: expected python:module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # like `python -m`
    try:
        made = getattr(importlib.import_module(module_name), function)()
    except Exception as wrong:  # the user's code may raise anything
        raise InputError(f"python:{name} failed: {type(wrong).__name__}: {wrong}") from wrong
    if isinstance(made, torch.jit.ScriptModule):
        raise InputError(f"python:{name} returned {_TORCHSCRIPT.format('return')}")
    if not isinstance(made, nn.Module):
        raise InputError(f"python:{name} returned {type(made).__name__}, expected a torch.nn.Module")
    return TorchNetwork(made.float())  # images are float32, also for weights in half precision


def _first_line(wrong: BaseException) -> str:
    return (str(wrong).strip() or repr(wrong)).splitlines()[0]
