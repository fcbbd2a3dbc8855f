"""Options that a model can't serve are refused: none is dropped without a word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..plugins.settings import MAX_INSTANCES, split_table
from .gpu.clusterer import MAX_GPU_INSTANCES
from .networks.built_in_operator import BuiltInOperator
from .networks.engine_file import SUFFIX
from .networks.session import DEFAULT_PROVIDERS
from .segmenter_settings import SegmenterSettings

_WITHOUT = "`tfiseg build --no-operator` makes an engine that can"


def check_engine_options(settings: SegmenterSettings) -> None:
    """Raise InputError for options of ONNX models that an engine, which is built for them, can't take."""
    if settings.model is None or Path(settings.model).suffix != SUFFIX:
        return
    if settings.long_side_px is not None:
        raise InputError(
            f"long_side_px has no effect on the engine {settings.model}: export the model with --long-side, "
            "then build it again"
        )
    if settings.backend != "onnxruntime":
        raise InputError(f"backend is of models in ONNX, and {settings.model} is an engine of TensorRT")
    if [*settings.providers] != [*DEFAULT_PROVIDERS]:
        raise InputError(f"providers are ONNX Runtime's, and {settings.model} is an engine of TensorRT")


def check_gpu_options(settings: SegmenterSettings, clusters_on_gpu: bool) -> None:
    """Raise InputError for more instances than the operator has room for on a GPU."""
    if clusters_on_gpu and MAX_GPU_INSTANCES < settings.max_instances != MAX_INSTANCES:
        raise InputError(
            f"max_instances is at most {MAX_GPU_INSTANCES} on a GPU, got {settings.max_instances}: leave it "
            "out"
        )


def check_split(settings: SegmenterSettings, refine: str) -> None:
    """Raise InputError for a fixed split where instances are not found by shape."""
    if settings.split is not None and refine != "shape":
        raise InputError(
            f'split has no effect with refine="{refine}", which finds instances otherwise: use quality="fast"'
        )


def check_built_in_operator(
    settings: SegmenterSettings, operator: BuiltInOperator, things: Iterable[int], path: Path
) -> None:
    """Raise InputError for options or ``things`` that the operator in an engine can't serve."""
    inside = f"the operator inside {path}"
    if settings.wanted_refine == "shape" and operator.heads:
        raise InputError(f"{inside} uses instance heads, not shape alone: {_WITHOUT}")
    if settings.split is not None and not np.array_equal(
        split_table(settings.split), split_table(operator.split), equal_nan=True
    ):
        raise InputError(f"{inside} splits by {operator.split!r}, not by {settings.split!r}: {_WITHOUT}")
    if settings.min_area is not None and settings.min_area < operator.min_area:
        raise InputError(
            f"{inside} leaves out instances below {operator.min_area} pixels, min_area is "
            f"{settings.min_area}: {_WITHOUT}"
        )
    if operator.max_instances < settings.max_instances != MAX_INSTANCES:
        raise InputError(
            f"{inside} gives at most {operator.max_instances} instances, max_instances is "
            f"{settings.max_instances}: {_WITHOUT}"
        )
    missing = sorted({*things} - {*operator.things})
    if missing:
        raise InputError(f"{inside} clusters the classes {[*operator.things]}, not {missing}: {_WITHOUT}")
