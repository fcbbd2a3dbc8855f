"""Sessions of semantic networks in TensorRT or TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .built_in_operator import BuiltInOperator
from .gpu_session import GpuSession
from .model_info import ModelInfo
from .tensorrt_plan import OpenedPlan

# one frame is copied while the other is computed, if the caller has two threads (Pipeline(workers=2))
FRAMES_IN_FLIGHT = 2


class EngineSession(GpuSession):
    """A semantic network in TensorRT; see ``OpenedPlan``, also for errors."""

    def __init__(self, path: Path, plan: bytes, record: dict[str, Any]) -> None:
        self._opened = opened = OpenedPlan(path, plan, record)
        types, min_shape, max_shape = opened.interface("frame")
        with opened.cuda.current():
            lanes = [(opened.context(), opened.cuda.stream()) for _ in range(FRAMES_IN_FLIGHT)]
        info = ModelInfo.from_json(json.dumps(record["model"]), str(path))
        sizes = ((min_shape[1], min_shape[2]), (max_shape[1], max_shape[2]))
        super().__init__(path, info, opened.cuda, lanes, types, sizes, new_context=opened.context)
        self.operator = BuiltInOperator.from_record(record) if "label_map" in types else None

    def set_up(self) -> None:
        """Save the kernels that TensorRT-RTX compiled for the next start."""
        self._opened.set_up()
