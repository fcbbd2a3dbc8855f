"""Engines through TensorRT or TensorRT-RTX: how a plan is opened, and what RTX compiles on the way is
kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .built_in_operator import BuiltInOperator
from .gpu_session import GpuSession
from .model_info import ModelInfo
from .tensorrt_plan import OpenedPlan

FRAMES_IN_FLIGHT = (
    2  # one is copied while the other is computed, if the caller has two threads (Pipeline(workers=2))
)


class EngineSession(GpuSession):
    """A plan on the GPU, of a semantic network. Arguments and errors as of ``OpenedPlan``; graphs: see
    ``GpuSession``."""

    def __init__(self, path: Path, plan: bytes, record: dict[str, Any], graphs: bool = True) -> None:
        self._opened = opened = OpenedPlan(path, plan, record)
        types, least, most = opened.interface("frame")
        with opened.cuda.current():
            lanes = [(opened.context(), opened.cuda.stream()) for _ in range(FRAMES_IN_FLIGHT)]
        info = ModelInfo.from_json(json.dumps(record["model"]), str(path))
        super().__init__(
            path,
            info,
            opened.cuda,
            lanes,
            types,
            ((least[1], least[2]), (most[1], most[2])),
            graphs,
            opened.context,
        )
        self.operator = BuiltInOperator.of_record(record) if "label_map" in types else None

    def set_up(self) -> None:
        """Keep RTX's compiled kernels for the next start."""
        self._opened.set_up()
