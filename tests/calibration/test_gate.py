"""The gate: passes what is the same, stops what isn't, and says by how much."""

import numpy as np
import onnx
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.calibration.gate import DEFAULTS, Thresholds, gate_report, require_passed
from tfiseg.calibration.graph import Network
from tfiseg.runtime.evaluate.comparison import compare, noise_floor, worst_sheet
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="module")
def scenes():
    camera = SyntheticCamera()
    return [camera._read(60 * k).image for k in range(3)]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The default network with noise on the weights of its middle."""
    network = Network(onnx.load(PLAIN_MODEL))
    rng = np.random.default_rng(0)
    for name in ("network.backbone.blocks.7.body.3.weight", "network.backbone.blocks.9.body.6.weight"):
        weight = network.weight(name)
        network.set_weight(name, weight + rng.normal(0, 1.5 * weight.std(), weight.shape).astype(np.float32))
    path = tmp_path_factory.mktemp("spoilt") / "spoilt.onnx"
    onnx.save(network.model, path)
    return path


def test_a_network_agrees_with_itself(scenes):
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    report = gate_report(compare(segmenter, segmenter, scenes), DEFAULTS["fp16"])
    assert report["passed"]
    assert (report["label_agreement"], report["PQ"], report["snr_db"]) == (100, 100, {"logits": None})
    require_passed(report, "")


def test_a_spoilt_network_is_stopped_with_figures(scenes, spoilt, tmp_path):
    reference, candidate = tfiseg.Segmenter(PLAIN_MODEL), tfiseg.Segmenter(spoilt)
    comparison = compare(reference, candidate, scenes, ["a", "b", "c"])
    report = gate_report(comparison, DEFAULTS["int8"])
    assert not report["passed"]
    assert report["worst_frame"]["name"] == comparison.worst(1)[0].name
    assert report["snr_db"]["logits"] < 30
    with pytest.raises(
        tfiseg.GateError,
        match=r"label agreement [\d.]+%, expected at least 98%.*nothing was written.*--no-gate",
    ):
        require_passed(report, "nothing was written")
    worst_sheet(reference, candidate, scenes, comparison, tmp_path / "sheet.png", 2)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert gate_report(comparison, Thresholds(0, 0))["passed"]


def test_frames_without_instances_count_for_labels_only(scenes):
    grey = np.full((96, 128, 3), 120, np.uint8)
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    comparison = compare(segmenter, segmenter, [grey])
    assert (comparison.quality, comparison.label_agreement) == (100, 100)


def test_the_noise_floor_is_a_yardstick_under_a_hundred(scenes):
    floor = noise_floor(tfiseg.Segmenter(PLAIN_MODEL), scenes)
    assert 90 < floor["label_agreement"] < 100


def test_other_classes_no_frames_and_infinite_outputs_are_sentences(model, scenes, spoilt, tmp_path):
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    with pytest.raises(tfiseg.InputError, match="no frames to compare on"):
        compare(segmenter, segmenter, [])
    network = Network(onnx.load(PLAIN_MODEL))
    name = "network.heads.logits.bias"
    network.set_weight(name, np.full(network.weight(name).shape, np.inf, np.float32))
    onnx.save(network.model, tmp_path / "inf.onnx")
    with pytest.raises(tfiseg.TfisegError, match="logits of frame 0 are not finite"):
        compare(segmenter, tfiseg.Segmenter(tmp_path / "inf.onnx"), scenes)
