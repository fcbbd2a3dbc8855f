"""Metadata and rules of instance networks."""

import numpy as np
import pytest
from tfiseg.errors import ModelError
from tfiseg.plugins.neck import EVIDENCE_FEATURES
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.open_session import open_instance_session
from tfiseg.runtime.refine.join_rule import JOIN_FEATURES
from tfiseg.runtime.refine.refiner import Refiner


def test_networks_for_groups_use_exhaustive_refinement(tmp_path):
    assert not Refiner().thorough
    model = DEFAULT_INSTANCE_MODEL.read_bytes()
    given = (
        b'"view_px": 192, "outline_px": 128'  # the replacement has the same length, so the file stays valid
    )
    for odds, thorough in ((b"0.28", True), (b"6.5", False), (b"1.0", False)):
        path = tmp_path / "m.onnx"
        path.write_bytes(model.replace(given, (b'"view_px": 192, "lone_odds": ' + odds).ljust(len(given))))
        assert Refiner(path).thorough == thorough
        assert not Refiner(path, thorough=False).thorough
    for odds in (b"-3.0", b"NaN", b"true", b'"1"', b"0"):
        path.write_bytes(model.replace(given, (b'"view_px": 192, "lone_odds": ' + odds).ljust(len(given))))
        with pytest.raises(ModelError, match=r"lone_odds must be a positive number|NaN is no number"):
            open_instance_session(path)


def test_models_of_an_older_format_are_rejected(tmp_path):
    model = DEFAULT_INSTANCE_MODEL.read_bytes()
    (tmp_path / "old.onnx").write_bytes(model.replace(b'"instance_format": 2', b'"instance_format": 1'))
    with pytest.raises(ModelError, match="its format is 1"):
        open_instance_session(tmp_path / "old.onnx")


@pytest.mark.parametrize("side", [b'"x"', b"nul"])
def test_models_with_damaged_metadata_are_rejected(tmp_path, side):
    (tmp_path / "m.onnx").write_bytes(
        DEFAULT_INSTANCE_MODEL.read_bytes().replace(b'"view_px": 192', b'"view_px": ' + side)
    )
    with pytest.raises(ModelError, match="metadata is damaged"):
        open_instance_session(tmp_path / "m.onnx")


def test_older_models_have_views_of_one_side(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DEFAULT_INSTANCE_MODEL)
    for given in model.graph.input:
        for axis in (1, 2):
            given.type.tensor_type.shape.dim[axis].dim_value = 160
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="has views of 192 px, but the network takes 160"):
        open_instance_session(tmp_path / "m.onnx")
    for p in model.metadata_props:
        p.value = p.value.replace('"view_px": 192, "outline_px": 128', '"view_px": 160')
    onnx.save(model, tmp_path / "m.onnx")
    session = open_instance_session(tmp_path / "m.onnx")
    assert session.view_px == session.outline_px == 160
    assert session.foreground(
        np.zeros((1, 160, 160, 3), np.uint8), np.ones((1, 160, 160), np.uint8)
    ).shape == (1, 80, 80)


def test_the_included_network_is_small_and_has_rules():
    session = open_instance_session()
    assert session.path.stat().st_size < 10e6
    for name in ("merge", "part"):
        assert (len(session.rules[name]) - 1) % (len(EVIDENCE_FEATURES) + 2) == 0
    assert (len(session.rules["join"]) - 1) % (len(JOIN_FEATURES) + 2) == 0
