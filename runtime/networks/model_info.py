"""What a model file says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...errors import ModelError

FORMAT_VERSION = 1
METADATA_KEY = "tfiseg"


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself (``metadata_props["tfiseg"]``, JSON)."""

    class_names: tuple[str, ...]
    things: tuple[int, ...]
    stride: int
    extra: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(text: str, source: str) -> ModelInfo:
        """Read the metadata; raises ModelError naming what is wrong with it."""
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ModelError(
                    f"{source} has tfiseg format {version}, this version reads {FORMAT_VERSION}: export it again"
                )
            info = ModelInfo(tuple(data["class_names"]), tuple(data["things"]), int(data["stride"]), data)
        except (json.JSONDecodeError, KeyError, TypeError) as wrong:
            raise ModelError(
                f"{source}: its tfiseg metadata is damaged ({wrong!r}): export it again"
            ) from wrong
        return info


def weights_digest(weights: Iterable[Any]) -> str:
    """sha256 of a network's initializers (``onnx.TensorProto``) in any order: the metadata's
    ``weights_sha256``. Of raw data where they have it, as all that tfiseg writes do; other exporters leave
    typed fields in theirs."""
    return hashlib.sha256(
        b"".join(sorted(w.raw_data or w.SerializeToString(deterministic=True) for w in weights))
    ).hexdigest()
