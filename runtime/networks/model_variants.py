"""Variants of a model file: without instance heads, or with another input size.

One file holds the semantic network and its instance heads. ``quality="fast"`` and ``"best"`` need the
semantic network only, and the input size depends on the quality. Both change a few bytes and do not need the
package onnx.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FormatError, InputError, ModelError, TfisegError
from ...schema import parse, record, to_json
from .model_info import METADATA_KEY
from .onnx_bytes import (
    INITIALIZER,
    NODE,
    NODE_INPUT,
    NODE_OUTPUT,
    OUTPUT,
    TENSOR_NAME,
    TENSOR_RAW,
    field,
    fields,
    graph_of,
    texts,
    with_graph,
    with_outputs,
)

HEADS_PREFIX = "heads."  # of the names of all tensors of the heads
COARSE_LOGITS = HEADS_PREFIX + "coarse_logits"  # logits of the semantic network, before they are upsampled
WITHOUT_HEADS = "without_heads"  # metadata that replaces the rest if the heads are removed
MIN_LONG_SIDE_PX, MAX_LONG_SIDE_PX = 64, 4096
_LONG_SIDE = "pre.long_side"
_METADATA, _KEY, _VALUE = 14, 1, 2  # of a model; of one of its properties


@dataclass(frozen=True)
class Variant:
    """Changes of a model file when it is loaded."""

    heads: bool = True  # False removes the instance heads
    long_side_px: int | None = None  # longer side in pixels that frames are scaled to; None: the file's own

    def read(self, path: Path) -> bytes:
        """Return the content of ``path`` with these changes; unchanged if it is no ONNX model."""
        model = path.read_bytes()
        if self == AS_IS:
            return model
        try:
            if not self.heads:
                model = without_heads(model) or model
            if self.long_side_px is not None:
                model = with_long_side(model, self.long_side_px)
        except (IndexError, StopIteration, ValueError) as wrong:
            if isinstance(wrong, TfisegError) and not isinstance(wrong, FormatError):
                raise  # the variant is impossible; for a damaged file, ONNX Runtime reports the error
        return model


AS_IS = Variant()


def without_heads(model: bytes) -> bytes | None:
    """Return the model without its instance heads; None if it has none.

    Its output is ``logits`` (1, C, h, w) on the semantic network's own grid, with that network's metadata.
    """
    graph = graph_of(model)
    if not any(kind == OUTPUT and texts(value, 1) == ["affinity"] for kind, value, _ in fields(graph)):
        return None
    logits = next(w for kind, value, w in fields(graph) if kind == OUTPUT and texts(value, 1) == ["logits"])
    reduced = with_outputs(model, [COARSE_LOGITS])
    if reduced is None:
        raise ModelError("a model whose weights lie in other files cannot be used without its heads")
    kept = [
        field(NODE, _with_own_logits(value)) if kind == NODE else bytes(whole)
        for kind, value, whole in fields(graph_of(reduced))
        if kind != INITIALIZER or not texts(value, TENSOR_NAME)[0].startswith(HEADS_PREFIX)
    ]

    def own(metadata: dict[str, Any]) -> dict[str, Any]:
        return metadata | metadata.pop(WITHOUT_HEADS, {})

    return _with_digest(with_metadata(with_graph(reduced, b"".join([*kept, bytes(logits)])), own))


def _with_own_logits(node: memoryview) -> bytes:
    """Return a node with ``COARSE_LOGITS`` renamed to "logits"."""
    return b"".join(
        field(number, b"logits")
        if number in (NODE_INPUT, NODE_OUTPUT) and bytes(value) == COARSE_LOGITS.encode()
        else bytes(whole)
        for number, value, whole in fields(node)
    )


def with_long_side(model: bytes, long_side_px: int) -> bytes:
    """Return the model with another longer side of the input, in pixels; raises InputError."""
    if not MIN_LONG_SIDE_PX <= long_side_px <= MAX_LONG_SIDE_PX:
        raise InputError(
            f"long_side_px must lie in {MIN_LONG_SIDE_PX}..{MAX_LONG_SIDE_PX} pixels, got {long_side_px}"
        )
    parts, found = [], False
    for kind, value, whole in fields(graph_of(model)):
        if kind == INITIALIZER and texts(value, TENSOR_NAME) == [_LONG_SIDE]:
            raw = np.float32(long_side_px).tobytes()
            tensor = [field(n, raw) if n == TENSOR_RAW else bytes(w) for n, _, w in fields(value)]
            parts.append(field(INITIALIZER, b"".join(tensor)))
            found = True
        else:
            parts.append(bytes(whole))
    if not found:
        raise InputError("this model scales all frames to one fixed size: export it at another one")
    changed = with_graph(model, b"".join(parts))
    return _with_digest(with_metadata(changed, lambda metadata: metadata | {"long_side_px": long_side_px}))


def _with_digest(model: bytes) -> bytes:
    """Update the digest of the weights in the metadata; see ``weights_digest``."""
    weights = []
    for kind, value, _ in fields(graph_of(model)):
        if kind == INITIALIZER:
            raw = b"".join(bytes(v) for number, v, _ in fields(value) if number == TENSOR_RAW)
            weights.append(raw or bytes(value))
    digest = hashlib.sha256(b"".join(sorted(weights))).hexdigest()
    return with_metadata(model, lambda metadata: metadata | {"weights_sha256": digest})


def with_metadata(model: bytes, change: Any) -> bytes:
    """Replace the tfiseg metadata of a model by ``change(metadata)``."""
    parts = []
    for kind, value, whole in fields(memoryview(model)):
        if kind == _METADATA and texts(value, _KEY) == [METADATA_KEY]:
            metadata: Mapping[str, Any] = change(parse(texts(value, _VALUE)[0], record({})))
            entry = field(_KEY, METADATA_KEY.encode()) + field(_VALUE, to_json(metadata).encode())
            parts.append(field(_METADATA, entry))
        else:
            parts.append(bytes(whole))
    return b"".join(parts)
