"""Metadata of model files, and its formats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...errors import FormatError, ModelError
from ...plugins.neck import EVIDENCE_FEATURES
from ...plugins.settings import MAX_EVIDENCE_HIDDEN, MAX_OUT_SIDE, MAX_SHARPEN, MAX_SIDE
from ...schema import Rule, either, integer, list_of, map_of, number, one_of, parse, record, text

FORMAT_VERSION = 1
METADATA_KEY = "tfiseg"
MAX_CLASSES = 255
_MAX_NAME = 200  # characters
_MAX_WEIGHT = 1e6  # of a learned rule; products of larger ones overflow
_MAX_BYTES = 1 << 22  # of the metadata of one file
_SHA256 = text(64, "[0-9a-f]{64}")


def _rule_weights(value: Any, where: str) -> list[float]:
    """Check the weights of a learned rule: hidden * unit + 1 numbers."""
    weights: list[float] = list_of(number(-_MAX_WEIGHT, _MAX_WEIGHT), 1)(value, where)
    unit = len(EVIDENCE_FEATURES) + 2
    if len(weights) % unit != 1 or not 1 <= len(weights) // unit <= MAX_EVIDENCE_HIDDEN:
        raise FormatError(
            f"{where} must hold hidden * {unit} + 1 numbers for 1 to {MAX_EVIDENCE_HIDDEN} hidden units, "
            f"got {len(weights)}"
        )
    return weights


_OFFSETS = list_of(list_of(integer(-MAX_SIDE, MAX_SIDE), 2, 2), 1, MAX_SIDE)
MIN_AREA = integer(0, MAX_OUT_SIDE**2)
_STRIDE = integer(1, MAX_SIDE)
SPLIT = either(
    '"auto", a ratio in 0..1, or {"class id": ratio}',
    one_of("auto"),
    number(0, 1),
    map_of(number(0, 1), text(3, "[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]")),
)
_CLUSTERING = record(
    {},
    {
        "split": SPLIT,
        "min_area": MIN_AREA,
        "affinity_offsets": _OFFSETS,
        "affinity_stride": _STRIDE,
        "merge_rule": _rule_weights,
        "part_rule": _rule_weights,
        "score_rule": list_of(number(-_MAX_WEIGHT, _MAX_WEIGHT), 1, 64),
        "sharpen": integer(0, MAX_SHARPEN),
    },
)
_TEXTS: dict[str, Rule] = {
    "name": text(_MAX_NAME),
    "training_data": text(lines=True),
    "licence": text(lines=True),
    "weights_sha256": _SHA256,
}
_MODEL = record(
    {
        "class_names": list_of(text(_MAX_NAME), 1, MAX_CLASSES),
        "things": list_of(integer(0, MAX_CLASSES - 1), 0, MAX_CLASSES),
        "stride": _STRIDE,
    },
    {
        **_TEXTS,
        "format_version": one_of(FORMAT_VERSION),
        "long_side_px": integer(1, MAX_OUT_SIDE),
        "clustering": _CLUSTERING,
        "without_heads": record(
            {}, {"stride": _STRIDE, "clustering": _CLUSTERING, "weights_sha256": _SHA256}
        ),
    },
)
_INSTANCE = record(
    {
        "instance_format": integer(0, 1 << 30),
        "view_px": integer(8, 1024),
        "stride": integer(1, 64),
        "affinity_offsets": _OFFSETS,
        "rules": map_of(list_of(number(-_MAX_WEIGHT, _MAX_WEIGHT), 1, 100_000), text(_MAX_NAME), 16),
    },
    {**_TEXTS, "outline_px": integer(8, 1024), "min_area": MIN_AREA, "lone_odds": number(0, 1e9, above=True)},
)
_ANY_VERSION = record({"format_version": integer(-(1 << 30), 1 << 30)})


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a semantic network (``metadata_props["tfiseg"]``, JSON)."""

    class_names: tuple[str, ...]  # by class ID, background first
    things: tuple[int, ...]  # IDs of the countable classes
    stride: int  # pixels of the input per cell of the logits
    extra: dict[str, Any] = field(default_factory=dict)  # all keys, see docs/reference/metadata-format.md

    @staticmethod
    def from_json(text: str, source: str) -> ModelInfo:
        """Parse metadata; ``source`` names it in errors. Raises ModelError if it is damaged."""
        try:
            if metadata_version(text, "instance_format") is not None:
                raise ModelError(
                    f"{source} is an instance network, expected a semantic network: pass it as "
                    "`instance_model` (--instance-model)"
                )
            version = parse(text, _ANY_VERSION, _MAX_BYTES)["format_version"]
            if version != FORMAT_VERSION:
                raise ModelError(
                    f"{source} has tfiseg format {version}, this version reads {FORMAT_VERSION}: export it "
                    "again"
                )
            data = parse(text, checked_model, _MAX_BYTES)
        except FormatError as wrong:
            raise ModelError(
                f"{source}: its tfiseg metadata is damaged ({wrong}): export it again"
            ) from wrong
        return ModelInfo(tuple(data["class_names"]), tuple(data["things"]), data["stride"], data)


def checked_model(value: Any, where: str) -> dict[str, Any]:
    """Check the metadata of a semantic network."""
    data: dict[str, Any] = _MODEL(value, where)
    unknown = [k for k in data["things"] if k >= len(data["class_names"])]
    if unknown:
        raise FormatError(f"things must be ids of the {len(data['class_names'])} classes, got {unknown[0]}")
    return data


def checked_instance_model(value: Any, where: str) -> dict[str, Any]:
    """Check the metadata of an instance network, of any version that has these keys."""
    data: dict[str, Any] = _INSTANCE(value, where)
    for name in ("view_px", "outline_px"):
        if data.get(name, 0) % data["stride"]:
            raise FormatError(f"{name} must be a multiple of the stride {data['stride']}, got {data[name]}")
    for name in ("merge", "part"):
        if name in data["rules"]:
            _rule_weights(data["rules"][name], f"rules.{name}")
    return data


def instance_metadata(text: str) -> dict[str, Any]:
    """Parse the metadata of an instance network. Raises FormatError."""
    data: dict[str, Any] = parse(text, checked_instance_model, _MAX_BYTES)
    return data


def metadata_version(text: str, key: str) -> Any:
    """Return the value of a version key, or None. Raises FormatError for invalid JSON."""
    return parse(text, record({}), _MAX_BYTES).get(key)


def weights_digest(weights: Iterable[Any]) -> str:
    """Return the SHA-256 of a network's initializers (``onnx.TensorProto``), in any order.

    It is the metadata's ``weights_sha256``. It covers raw data; initializers of other exporters may have
    typed fields instead.
    """
    return hashlib.sha256(
        b"".join(sorted(w.raw_data or w.SerializeToString(deterministic=True) for w in weights))
    ).hexdigest()
