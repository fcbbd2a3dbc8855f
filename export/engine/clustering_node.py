"""The clustering operator as an ONNX node for TensorRT: add it, remove it, infer its shapes.

ONNX Runtime and TensorRT-RTX don't support the node. It is added to a copy of the network when an engine is
built, never to NAME.onnx.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...errors import InputError
from ...plugins.plugin_library import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from ...plugins.problem import TABLE_COLUMNS
from ...plugins.settings import ClusterSettings

DOMAIN = "tfiseg"
OUTPUTS = ("label_map", "semantic_map", "count", "table")
MAX_INSTANCES = 256
_EVIDENCE = ("displacement", "boundary", "affinity")
_METADATA = "tfiseg.clustering_node"  # what strip_clustering needs to restore the network


def graft_clustering(
    model: onnx.ModelProto,
    settings: ClusterSettings | None = None,
    *,
    output_size_hw: tuple[int, int] | None = None,
    output_scale: int = 1,
    affinity_stride: int = 1,
    names: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return a copy of a network with the clustering operator after its outputs.

    Args:
        model: network with the output ``logits`` (N, C, h, w) and, optionally, ``displacement``
            (N, 2, h, w), ``boundary`` (N, 1, h, w) and ``affinity`` (N, A, h / stride, w / stride). They
            become the node's inputs. All have one type, float32 or float16.
        settings: clustering settings; default: the defaults, with at most 256 instances.
        output_size_hw: (H, W) of the result; default: the grid's size times ``output_scale``.
        affinity_stride: grid pixels per affinity cell.
        names: other names of the outputs, e.g. ``{"logits": "output_0"}``.

    Returns:
        The network with the outputs ``label_map`` int32 (N, H, W), ``semantic_map`` int32 (N, H, W),
        ``count`` int32 (N,) and ``table`` float32 (N, max_instances, 10), followed by its other outputs.

    Raises:
        InputError: the network has no output ``logits``, or already has the node.
    """
    if any(n.domain == DOMAIN for n in model.graph.node):
        raise InputError("the network already has the clustering node; remove it with strip_clustering()")
    known = {o.name: o for o in model.graph.output}
    taken = {name: known.get((names or {}).get(name, name)) for name in ("logits", *_EVIDENCE)}
    if taken["logits"] is None:
        raise InputError(
            f'the network has no output "logits", but {", ".join(known)}: pass names={{"logits": ...}}'
        )
    inputs = [value for value in taken.values() if value is not None]
    attributes = _attributes(settings or ClusterSettings(max_instances=MAX_INSTANCES), taken, affinity_stride)
    if output_size_hw is not None:
        attributes["output_size"] = [int(side) for side in output_size_hw]
    else:
        attributes["output_scale"] = output_scale
    node = helper.make_node(
        PLUGIN_NAME, [v.name for v in inputs], OUTPUTS, name="tfiseg_clustering", domain=DOMAIN, **attributes
    )
    grafted = onnx.ModelProto()
    grafted.CopyFrom(model)
    before = [base64.b64encode(o.SerializeToString()).decode() for o in model.graph.output]
    grafted.metadata_props.add(key=_METADATA, value=json.dumps({"outputs": before}))
    grafted.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    grafted.graph.node.append(node)
    rest = [o for o in model.graph.output if o not in inputs]
    del grafted.graph.output[:]
    grafted.graph.output.extend([*clustering_shapes(node, taken["logits"]), *rest])
    return grafted


def _attributes(
    settings: ClusterSettings, taken: Mapping[str, onnx.ValueInfoProto | None], affinity_stride: int
) -> dict[str, Any]:
    """Return the node's attributes, without its output size; those of absent inputs are left out."""
    attributes: dict[str, Any] = {
        "plugin_version": PLUGIN_VERSION,
        "plugin_namespace": PLUGIN_NAMESPACE,
        "split": _ratios(settings),
        "min_area": settings.min_area,
        "max_instances": settings.max_instances,
        "merge_affinity": settings.merge_affinity,
        "centre_radius": settings.centre_radius,
        **{f"has_{name}": int(taken[name] is not None) for name in _EVIDENCE},
    }
    if settings.things is not None:
        attributes["things"] = np.flatnonzero(settings.thing_flags).tolist() or [0]  # [0]: none
    if taken["boundary"] is not None:
        attributes["sharpen"] = settings.sharpen
    if taken["affinity"] is not None:
        attributes["affinity_offsets_yx"] = settings.affinity_offsets.ravel().tolist()
        attributes["affinity_stride"] = affinity_stride
        if settings.merge_rule is not None:
            attributes["merge_rule"] = settings.merge_rule.tolist()
        if settings.part_rule is not None and taken["boundary"] is not None:
            attributes["part_rule"] = settings.part_rule.tolist()
    return attributes


def strip_clustering(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network as it was before ``graft_clustering``; raises InputError if it has no node."""
    kept = next((p for p in model.metadata_props if p.key == _METADATA), None)
    nodes = [n for n in model.graph.node if n.domain == DOMAIN]
    if kept is None or not nodes:
        raise InputError("the network has no clustering node of graft_clustering()")
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    for node in nodes:
        stripped.graph.node.remove(node)
    stripped.metadata_props.remove(kept)
    for opset in [o for o in stripped.opset_import if o.domain == DOMAIN]:
        stripped.opset_import.remove(opset)
    del stripped.graph.output[:]
    for text in json.loads(kept.value)["outputs"]:
        stripped.graph.output.append(onnx.ValueInfoProto.FromString(base64.b64decode(text)))
    return stripped


def clustering_shapes(node: onnx.NodeProto, logits: onnx.ValueInfoProto) -> list[onnx.ValueInfoProto]:
    """Return types and shapes of the node's four outputs, from those of the logits (N, C, h, w).

    Unknown sizes are expressions of the names of the logits' sizes."""
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    n, _, h, w = _sizes(logits)
    scale = settings.get("output_scale", 1)
    size = settings.get("output_size") or [_times(h, scale), _times(w, scale)]
    shapes = {
        "label_map": (TensorProto.INT32, [n, *size]),
        "semantic_map": (TensorProto.INT32, [n, *size]),
        "count": (TensorProto.INT32, [n]),
        "table": (TensorProto.FLOAT, [n, settings["max_instances"], len(TABLE_COLUMNS)]),
    }
    return [
        helper.make_tensor_value_info(name, *shapes[output])
        for name, output in zip(node.output, OUTPUTS, strict=True)
    ]


def _sizes(value: onnx.ValueInfoProto) -> list[int | str | None]:
    if not value.type.tensor_type.HasField("shape"):
        return [None] * 4
    sizes = [
        d.dim_value if d.HasField("dim_value") else d.dim_param or None
        for d in value.type.tensor_type.shape.dim
    ]
    if len(sizes) != 4:
        raise InputError(f"logits must have 4 dimensions (N, C, h, w), {value.name} has {sizes}")
    return sizes


def _times(size: int | str | None, scale: int) -> int | str | None:
    if isinstance(size, int) or size is None or scale == 1:
        return size * scale if isinstance(size, int) else size
    return f"{scale}*{size}"


def _ratios(settings: ClusterSettings) -> list[float]:
    """Return the ratios as the node stores them: one if all classes agree; negative = by shape."""
    ratios = [-1.0 if ratio != ratio else float(ratio) for ratio in settings.split_table]
    return ratios[:1] if len(set(ratios)) == 1 else ratios
