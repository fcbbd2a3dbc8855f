"""Adding the clustering node to networks, and removing it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from plain_model import PLAIN_MODEL
from tfiseg import InputError
from tfiseg.export.engine.clustering_node import graft_clustering, strip_clustering
from tfiseg.plugins.settings import ClusterSettings


def network(outputs: dict[str, list], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a network without nodes, with outputs of these shapes."""
    nodes = [helper.make_node("Identity", [f"in_{name}"], [name]) for name in outputs]
    made = [
        [helper.make_tensor_value_info(prefix + name, kind, shape) for name, shape in outputs.items()]
        for prefix in ("in_", "")
    ]
    return helper.make_model(
        helper.make_graph(nodes, "network", *made), opset_imports=[helper.make_opsetid("", 18)]
    )


def shape_of(value: onnx.ValueInfoProto) -> list:
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


def attributes_of(model: onnx.ModelProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in model.graph.node[-1].attribute}


ALL = {
    "logits": ["N", 21, "h", "w"],
    "displacement": ["N", 2, "h", "w"],
    "boundary": ["N", 1, "h", "w"],
    "affinity": ["N", 14, "h", "w"],
}


@pytest.mark.parametrize(
    "outputs",
    [
        {"logits": [1, 21, 96, 128]},
        ALL,
        {"other": [1], **ALL},
        {"affinity": ["N", 14, 4, 4], "logits": ["N", 2, 8, 8]},
    ],
)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_round_trips_are_exact(outputs, kind):
    model = network(outputs, kind)
    before = model.SerializeToString(deterministic=True)
    grafted = graft_clustering(model, ClusterSettings(things=[3, 1], split={2: 0.5}), output_scale=4)
    assert model.SerializeToString(deterministic=True) == before, "the given model is left alone"
    onnx.checker.check_model(grafted)
    again = onnx.load_from_string(grafted.SerializeToString())
    assert strip_clustering(again).SerializeToString(deterministic=True) == before


def test_default_network_round_trip():
    model = onnx.load(PLAIN_MODEL)
    grafted = graft_clustering(model, output_size_hw=(480, 640))
    onnx.checker.check_model(grafted)
    assert [o.name for o in grafted.graph.output] == ["label_map", "semantic_map", "count", "table"]
    assert shape_of(grafted.graph.output[0]) == [1, 480, 640]
    assert strip_clustering(grafted) == model


def test_shapes_and_types():
    grafted = graft_clustering(network(ALL), ClusterSettings(max_instances=64), output_scale=4)
    shapes = {o.name: (o.type.tensor_type.elem_type, shape_of(o)) for o in grafted.graph.output}
    assert shapes == {
        "label_map": (TensorProto.INT32, ["N", "4*h", "4*w"]),
        "semantic_map": (TensorProto.INT32, ["N", "4*h", "4*w"]),
        "count": (TensorProto.INT32, ["N"]),
        "table": (TensorProto.FLOAT, ["N", 64, 10]),
    }
    fixed = graft_clustering(network({"logits": [2, 5, 10, 12]}), output_scale=3)
    assert shape_of(fixed.graph.output[1]) == [2, 30, 36]
    same = graft_clustering(network({"logits": [2, 5, "h", 12]}))
    assert shape_of(same.graph.output[1]) == [2, "h", 12]


def test_node_has_the_plugins_name_and_fields():
    rules = ClusterSettings(merge_rule=[0.5] * 20, part_rule=[0.25] * 20)
    node = graft_clustering(network(ALL), rules, affinity_stride=2).graph.node[-1]
    assert (node.op_type, node.domain) == ("DisplacementFieldClustering", "tfiseg")
    assert list(node.input) == ["logits", "displacement", "boundary", "affinity"]
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (settings["plugin_version"], settings["plugin_namespace"]) == (b"1", b"tfiseg")
    assert [settings[f"has_{name}"] for name in ("displacement", "boundary", "affinity")] == [1, 1, 1]
    assert settings["affinity_stride"] == 2
    assert settings["merge_rule"] == [0.5] * 20
    assert settings["part_rule"] == [0.25] * 20
    assert len(settings["affinity_offsets_yx"]) == 28
    assert settings["split"] == [-1.0]


def test_settings():
    nothing = ClusterSettings(things=[], split={2: 0.5})
    settings = attributes_of(graft_clustering(network({"logits": [1, 5, 8, 8]}), nothing))
    assert settings["things"] == [0], "no class is countable"
    assert len(settings["split"]) == 256
    assert np.flatnonzero(np.array(settings["split"]) >= 0).tolist() == [2]
    assert "things" not in attributes_of(graft_clustering(network({"logits": [1, 5, 8, 8]})))
    assert "affinity_stride" not in attributes_of(graft_clustering(network({"logits": [1, 5, 8, 8]})))


def test_other_names_and_outputs_are_kept():
    model = network({"out_0": [1, 5, 8, 8], "features": [1, 64]})
    grafted = graft_clustering(model, names={"logits": "out_0"})
    assert list(grafted.graph.node[-1].input) == ["out_0"]
    assert [o.name for o in grafted.graph.output][-1] == "features"


def test_invalid_networks_raise_errors():
    with pytest.raises(InputError, match='no output "logits", but mask'):
        graft_clustering(network({"mask": [1, 2, 4, 4]}))
    grafted = graft_clustering(network({"logits": [1, 2, 4, 4]}))
    with pytest.raises(InputError, match="already"):
        graft_clustering(grafted)
    with pytest.raises(InputError, match="has no clustering node"):
        strip_clustering(network({"logits": [1, 2, 4, 4]}))
    with pytest.raises(InputError, match="4 dimensions"):
        graft_clustering(network({"logits": [2, 4, 4]}))
