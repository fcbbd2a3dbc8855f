"""Semantic networks from torch's world: torchvision, segmentation-models-pytorch, transformers, or any function that returns a module."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from ..errors import InputError, MissingDependencyError, ModelError
from .frame_graph import Preprocessing

OPSET = 18
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZE_HW = (512, 512)


@dataclass(frozen=True)
class TorchNetwork:
    """A module that takes float32 (1, 3, h, w) and gives logits (1, C, h', w'), and what it wants to see.

    ``probabilities``: it gives probabilities, not logits.
    """

    module: torch.nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    weights: str = "not stated"


def preprocessing_255(mean: Any, std: Any, size_hw: tuple[int, int]) -> Preprocessing:
    """From mean and standard deviation on a scale of 0..1, as torch's networks state them."""
    low = tuple(255 * float(v) for v in mean)
    return Preprocessing(size_hw=size_hw, mean=low, scale=tuple(1 / (255 * float(v)) for v in std))  # type: ignore[arg-type]


def load_torch(source: str, random_weights: bool, size_hw: tuple[int, int] | None) -> TorchNetwork:
    """The network that a source names.

    Args:
        source: "torchvision:NAME", "smp:ARCH/ENCODER", "hf:NAME_OR_FOLDER" or "python:module:function".
        random_weights: don't load or download any.
        size_hw: of the picture that the network sees; default: what the source says, else 512 x 512.

    Raises:
        InputError: no such network. MissingDependencyError: a package is missing. ModelError: weights can't be had.
    """
    kind, _, name = source.partition(":")
    loaders: dict[str, Callable[[str, bool], TorchNetwork]] = {
        "torchvision": _torchvision,
        "smp": _smp,
        "hf": _transformers,
        "python": _python,
    }
    if kind not in loaders or not name:
        raise InputError(f"no source {source!r}: wanted a .onnx or .ckpt file, {', '.join(f'{k}:...' for k in loaders)} or default")
    found = loaders[kind](name, random_weights)
    if size_hw is not None:
        found = replace(found, preprocessing=replace(found.preprocessing, size_hw=size_hw))
    found.module.eval()
    return found


def to_onnx(network: TorchNetwork) -> onnx.ModelProto:
    """The module as plain ONNX (input ``picture`` float32 (1, 3, h, w)), simplified; raises ModelError where torch can't export it."""
    import onnxsim

    size = network.preprocessing.size_hw
    assert size is not None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network.module,
                (torch.zeros(1, 3, *size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["picture"],
                output_names=["said"],
                verbose=False,
            )
        assert program is not None
        simple, sound = onnxsim.simplify(program.model_proto)
    except Exception as wrong:  # the exporter raises whatever it meets in the module
        raise ModelError(f"torch can't export the network to ONNX: {wrong}") from wrong
    return simple if sound else program.model_proto


class _Wrapped(torch.nn.Module):
    """A module whose answer is taken apart: the tensor called ``key``, or the answer itself."""

    def __init__(self, module: torch.nn.Module, key: str | None) -> None:
        super().__init__()
        self.module, self.key = module, key

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        said = self.module(picture)
        result: torch.Tensor = said if self.key is None else said[self.key]
        return result


class _MaskClassification(torch.nn.Module):
    """Mask2Former and its kin: queries, each with a class and a mask, added up to a score per class and pixel."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        said = self.module(pixel_values=picture)
        classes = said.class_queries_logits.softmax(-1)[..., :-1]
        score = torch.einsum("bqc,bqhw->bchw", classes, said.masks_queries_logits.sigmoid())
        return torch.log(score + 1e-7)


class _Transformers(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(pixel_values=picture).logits
        return logits


def _torchvision(name: str, random_weights: bool) -> TorchNetwork:
    models = _module("torchvision.models", "zoo")
    known = models.list_models(module=models.segmentation)
    if name not in known:
        raise InputError(f"torchvision has no segmentation network {name!r}; it has {', '.join(known)}")
    weights = models.get_model_weights(name).DEFAULT
    names = tuple("background" if k == "__background__" else k for k in weights.meta["categories"])
    if random_weights:
        module = models.get_model(name, weights=None, weights_backbone=None, num_classes=len(names))
    else:
        module = _fetched(f"torchvision:{name}", lambda: models.get_model(name, weights=weights))
    origin = "random" if random_weights else str(weights)
    return TorchNetwork(_Wrapped(module, "out"), preprocessing_255(_IMAGENET_MEAN, _IMAGENET_STD, (520, 520)), names, origin)


def _smp(name: str, random_weights: bool) -> TorchNetwork:
    smp = _module("segmentation_models_pytorch", "zoo")
    arch, _, encoder = name.partition("/")
    classes = 21
    try:
        module = _fetched(
            f"smp:{name}",
            lambda: smp.create_model(arch, encoder or "resnet34", encoder_weights=None if random_weights else "imagenet", classes=classes),
        )
    except (KeyError, ValueError, RuntimeError) as wrong:
        raise InputError(f"segmentation-models-pytorch has no {name!r} (ARCH/ENCODER): {wrong}") from wrong
    # smp ships trained encoders only: the head is random until somebody trains it
    return TorchNetwork(_Wrapped(module, None), preprocessing_255(_IMAGENET_MEAN, _IMAGENET_STD, _SIZE_HW), None, "head not trained")


def _transformers(name: str, random_weights: bool) -> TorchNetwork:
    transformers = _module("transformers", "hf")
    transformers.logging.set_verbosity_error()
    local = Path(name).is_dir()
    config = _fetched(f"hf:{name}", lambda: transformers.AutoConfig.from_pretrained(name, local_files_only=local))
    queries = "mask2former" in config.model_type or "maskformer" in config.model_type
    kind = transformers.AutoModelForUniversalSegmentation if queries else transformers.AutoModelForSemanticSegmentation
    try:
        if random_weights:
            torch.manual_seed(0)
            module = kind.from_config(config)
        else:
            module = _fetched(f"hf:{name}", lambda: kind.from_pretrained(name, local_files_only=local))
    except ValueError as wrong:
        raise InputError(f"hf:{name} is no semantic segmentation network: {wrong}") from wrong
    wrapped = _MaskClassification(module) if queries else _Transformers(module)
    names = tuple(str(config.id2label[k]) for k in range(config.num_labels))
    return TorchNetwork(wrapped, _processor(transformers, name, local), names, "random" if random_weights else f"hf:{name}")


def _processor(transformers: Any, name: str, local: bool) -> Preprocessing:
    """What the network's image processor does; ImageNet's normalisation at 512 x 512 where it has none."""
    try:
        settings = transformers.AutoImageProcessor.from_pretrained(name, local_files_only=local).to_dict()
    except Exception:  # no processor in the folder, or one that this transformers doesn't know
        return preprocessing_255(_IMAGENET_MEAN, _IMAGENET_STD, _SIZE_HW)
    size = settings.get("size") or {}
    edge = size.get("shortest_edge", _SIZE_HW[0])
    size_hw = (int(size.get("height", edge)), int(size.get("width", edge)))
    return preprocessing_255(settings.get("image_mean") or _IMAGENET_MEAN, settings.get("image_std") or _IMAGENET_STD, size_hw)


def _python(name: str, random_weights: bool) -> TorchNetwork:
    module_name, _, function = name.rpartition(":")
    if not module_name:
        raise InputError(f"wanted python:MODULE:FUNCTION, got python:{name}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own file lies where the user stands
    try:
        made = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError) as wrong:
        raise InputError(f"python:{name}: {wrong}") from wrong
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"python:{name} returned {type(made).__name__}; wanted a torch.nn.Module")
    return TorchNetwork(_Wrapped(made, _key_of(made)), preprocessing_255(_IMAGENET_MEAN, _IMAGENET_STD, _SIZE_HW), weights=f"python:{name}")


def _key_of(module: torch.nn.Module) -> str | None:
    """Under which name a module gives its logits: many give a dictionary with "out" or "logits"."""
    with torch.no_grad():
        said = module.eval()(torch.zeros(1, 3, 64, 64))
    if isinstance(said, torch.Tensor):
        return None
    for key in ("logits", "out"):
        if isinstance(said, dict) and key in said:
            return key
    raise InputError(f"the module gives {type(said).__name__}; wanted a tensor, or a dictionary with 'logits' or 'out'")


def _module(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError) as missing:  # torchvision beside another torch fails while it registers operators
        raise MissingDependencyError(
            f'this source needs {name.partition(".")[0]} ({missing}): pip install ".[{extra}]" in the repository; torchvision wants the '
            "torch release that it was built with"
        ) from missing


def _fetched(what: str, load: Callable[[], Any]) -> Any:
    """What ``load`` brings; raises ModelError with a sentence where the net, the hub or the folder doesn't give it."""
    try:
        return load()
    except OSError as wrong:  # urllib's, requests' and the hub's errors are all of this kind
        raise ModelError(
            f"the weights or the configuration of {what} can't be had ({str(wrong).splitlines()[0][:300]}). Offline: name a "
            "local folder (hf:FOLDER), or --random-weights to try the export alone"
        ) from wrong
