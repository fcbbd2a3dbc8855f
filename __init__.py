"""tfiseg: real-time instance masks from any plain semantic segmentation network, without instance annotation.

import tfiseg
segmenter = tfiseg.Segmenter()
for frame in tfiseg.open_source(0):
    for i in segmenter(frame):
        print(i.class_name, i.score, i.box_xyxy)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import (
        EngineError,
        GateError,
        InputError,
        MissingDependencyError,
        ModelError,
        OutputError,
        PipelineError,
        SourceError,
        TfisegError,
    )
    from .instance import Instance
    from .instances import Instances
    from .plugins.operator import cluster, cluster_batch
    from .plugins.plugin_library import load_plugin
    from .plugins.settings import ClusterSettings
    from .runtime.object_score import object_probability
    from .runtime.pipeline.pipeline import Pipeline
    from .runtime.pipeline.result import Result
    from .runtime.pipeline.tracker import Tracker
    from .runtime.quick_start import segment
    from .runtime.refine.refiner import Refiner
    from .runtime.segmenter import Segmenter
    from .runtime.sources.base import Frame, Source
    from .runtime.sources.open_source import open_source

# public name -> module, which is imported at first use, so that `import tfiseg` is fast
_PUBLIC = {
    "EngineError": "errors",
    "Frame": "runtime.sources.base",
    "GateError": "errors",
    "InputError": "errors",
    "Instance": "instance",
    "Instances": "instances",
    "MissingDependencyError": "errors",
    "ModelError": "errors",
    "OutputError": "errors",
    "Pipeline": "runtime.pipeline.pipeline",
    "PipelineError": "errors",
    "Refiner": "runtime.refine.refiner",
    "Result": "runtime.pipeline.result",
    "Segmenter": "runtime.segmenter",
    "Source": "runtime.sources.base",
    "SourceError": "errors",
    "TfisegError": "errors",
    "Tracker": "runtime.pipeline.tracker",
    "ClusterSettings": "plugins.settings",
    "cluster": "plugins.operator",
    "cluster_batch": "plugins.operator",
    "load_plugin": "plugins.plugin_library",
    "object_probability": "runtime.object_score",
    "open_source": "runtime.sources.open_source",
    "segment": "runtime.quick_start",
}

__all__ = [
    "ClusterSettings",
    "EngineError",
    "Frame",
    "GateError",
    "InputError",
    "Instance",
    "Instances",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "Pipeline",
    "PipelineError",
    "Refiner",
    "Result",
    "Segmenter",
    "Source",
    "SourceError",
    "TfisegError",
    "Tracker",
    "__version__",
    "cluster",
    "cluster_batch",
    "load_plugin",
    "object_probability",
    "open_source",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfiseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
