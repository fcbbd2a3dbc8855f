"""Variants of a model file: without heads, and with another input size."""

import json

import numpy as np
import pytest
from plain_model import PLAIN_MODEL
from tfiseg import InputError
from tfiseg.runtime.networks.model_info import METADATA_KEY
from tfiseg.runtime.networks.model_variants import Variant, with_long_side, without_heads
from tfiseg.runtime.networks.onnx_session import OnnxSession
from tfiseg.runtime.networks.session import DEFAULT_MODEL

IMAGE = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)


def test_without_heads_equals_the_semantic_network():
    onnx = pytest.importorskip("onnx")
    whole, plain = onnx.load(DEFAULT_MODEL), onnx.load(PLAIN_MODEL)
    assert [o.name for o in plain.graph.output] == ["logits"]
    assert not any(i.name.startswith("heads.") for i in plain.graph.initializer)
    onnx.checker.check_model(plain)
    metadata = [
        json.loads(next(p.value for p in m.metadata_props if p.key == METADATA_KEY)) for m in (whole, plain)
    ]
    assert metadata[1]["stride"] == 4
    assert "without_heads" not in metadata[1]
    assert metadata[1]["clustering"] == metadata[0]["without_heads"]["clustering"]
    logits = OnnxSession(PLAIN_MODEL).infer(IMAGE)["logits"]
    halves = OnnxSession(DEFAULT_MODEL).infer(IMAGE)["logits"]
    assert halves.shape[2:] == (2 * logits.shape[2], 2 * logits.shape[3])


def test_a_session_opens_a_variant_without_a_second_file():
    with_heads, without = OnnxSession(DEFAULT_MODEL), OnnxSession(DEFAULT_MODEL, variant=Variant(heads=False))
    assert with_heads.has("affinity")
    assert not without.has("affinity")
    assert np.array_equal(without.infer(IMAGE)["logits"], OnnxSession(PLAIN_MODEL).infer(IMAGE)["logits"])


@pytest.mark.parametrize(("long_side_px", "grid_hw"), [(256, (48, 64)), (512, (96, 128))])
def test_long_side_sets_the_input_size(long_side_px, grid_hw):
    session = OnnxSession(PLAIN_MODEL, variant=Variant(long_side_px=long_side_px))
    assert session.infer(IMAGE)["logits"].shape[2:] == grid_hw
    assert session.info.extra["long_side_px"] == long_side_px


def test_impossible_variants():
    assert without_heads(PLAIN_MODEL.read_bytes()) is None
    with pytest.raises(InputError, match=r"must lie in 64\.\.4096 pixels, got 5000"):
        with_long_side(PLAIN_MODEL.read_bytes(), 5000)
    whole = PLAIN_MODEL.read_bytes()
    assert Variant(heads=False).read(PLAIN_MODEL) == whole
