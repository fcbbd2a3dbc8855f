"""The accuracy gate."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import tfiseg
from degraded_networks import DEGRADATIONS, write_degraded
from plain_model import PLAIN_MODEL
from tfiseg.calibration.gate import DEFAULTS, Thresholds, gate_report, require_passed
from tfiseg.calibration.graph import Network
from tfiseg.export.engine.lower import PrecisionSettings, lower
from tfiseg.runtime.evaluate.comparison import (
    Comparison,
    FrameComparison,
    compare,
    noise_floor,
    write_worst_sheet,
)
from tfiseg.runtime.evaluate.metrics import PanopticCounts
from tfiseg.runtime.evaluate.stable_instances import StableCounts
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="module")
def scenes():
    camera = SyntheticCamera()
    return [camera._read(60 * k).image for k in range(3)]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Write the default network with noise on the weights of two layers."""
    network = Network(onnx.load(PLAIN_MODEL))
    rng = np.random.default_rng(0)
    for name in ("network.backbone.blocks.7.body.2.weight", "network.backbone.blocks.9.body.4.weight"):
        weight = network.weight(name)
        network.set_weight(name, weight + rng.normal(0, 1.5 * weight.std(), weight.shape).astype(np.float32))
    path = tmp_path_factory.mktemp("write_damaged") / "write_damaged.onnx"
    onnx.save(network.model, path)
    return path


def test_network_agrees_with_itself(scenes):
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    report = gate_report(compare(segmenter, segmenter, scenes), DEFAULTS["fp16"])
    assert report["passed"]
    assert (report["label_agreement"], report["PQ"], report["snr_db"]) == (100, 100, {"logits": None})
    require_passed(report, "")


def test_damaged_network_fails_with_figures(scenes, noisy, tmp_path):
    reference, candidate = tfiseg.Segmenter(PLAIN_MODEL), tfiseg.Segmenter(noisy)
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
    write_worst_sheet(reference, candidate, scenes, comparison, tmp_path / "sheet.png", 2)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert gate_report(comparison, Thresholds(0, 0))["passed"]


def test_frames_without_instances_count_for_labels_only(scenes):
    gray = np.full((96, 128, 3), 120, np.uint8)
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    comparison = compare(segmenter, segmenter, [gray])
    assert (comparison.quality, comparison.label_agreement) == (100, 100)


def test_noise_floor_is_below_a_hundred(scenes):
    floor = noise_floor(tfiseg.Segmenter(PLAIN_MODEL), scenes)
    assert 90 < floor.label_agreement < 100


def test_no_frames_and_infinite_outputs_raise_errors(model, scenes, noisy, tmp_path):
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    with pytest.raises(tfiseg.InputError, match="no frames to compare on"):
        compare(segmenter, segmenter, [])
    network = Network(onnx.load(PLAIN_MODEL))
    name = "network.heads.logits.bias"
    network.set_weight(name, np.full(network.weight(name).shape, np.inf, np.float32))
    onnx.save(network.model, tmp_path / "inf.onnx")
    with pytest.raises(tfiseg.TfisegError, match="logits of frame 0 are not finite"):
        compare(segmenter, tfiseg.Segmenter(tmp_path / "inf.onnx"), scenes)


@pytest.fixture(scope="module")
def floor(scenes):
    return noise_floor(tfiseg.Segmenter(), scenes)


@pytest.mark.parametrize("degrade", DEGRADATIONS, ids=lambda degrade: degrade.__name__)
def test_degraded_networks_fail_with_any_noise_floor(degrade, scenes, floor, tmp_path):
    comparison = compare(tfiseg.Segmenter(), tfiseg.Segmenter(write_degraded(degrade, tmp_path)), scenes)
    for precision in ("fp16", "int8"):
        report = gate_report(comparison, DEFAULTS[precision], lambda: floor)
        assert not report["passed"], report
        assert "noise_floor" in report


def frame_of(label_agreement, same, missing, change=0.0):
    """Return a frame with ``same`` matched stable instances of IoU 1, and ``missing`` ones."""
    counts = PanopticCounts(float(same), same, 0, missing)
    stable = StableCounts(counts, change * same)
    return FrameComparison("f", label_agreement, counts, stable, {"logits": 1.0}, {"logits": 1.0}, (1.0, 1.0))


def comparison_of(frames):
    return Comparison("a", "b", frames)


@pytest.mark.parametrize(
    ("candidate", "noise", "passes"),
    [
        # as good as the yardstick, which is below the threshold
        ([frame_of(99.4, 7, 1)] * 10, [frame_of(99.4, 7, 1)] * 10, False),  # PQ 93.3: more than 5 below
        ([frame_of(99.4, 39, 1)] * 10, [frame_of(99.4, 39, 1)] * 10, True),
        ([frame_of(99.4, 39, 1)] * 10, [frame_of(99.9, 39, 1)] * 10, False),  # labels are worse
        # worse on some frames, better on others: not significant
        ([frame_of(99.9, 38, 2)] * 5 + [frame_of(99.9, 40, 0)] * 5, [frame_of(99.9, 39, 1)] * 10, True),
        ([frame_of(99.9, 38, 2)] * 10, [frame_of(99.9, 39, 1)] * 10, False),
        # with a few frames, the values decide
        ([frame_of(99.9, 38, 2)] * 2 + [frame_of(99.9, 40, 0)], [frame_of(99.9, 39, 1)] * 3, False),
        # frames without differences do not widen the interval
        (
            [frame_of(99.9, 38, 2)] * 3 + [frame_of(100, 0, 0)] * 97,
            [frame_of(99.9, 39, 1)] * 3 + [frame_of(100, 0, 0)] * 97,
            False,
        ),
        # scores
        ([frame_of(99.9, 40, 0, 0.03)] * 10, [frame_of(99.9, 40, 0, 0.01)] * 10, False),
        ([frame_of(99.9, 40, 0, 0.03)] * 10, [frame_of(99.9, 40, 0, 0.04)] * 10, True),
    ],
)
def test_yardstick_decides_below_a_threshold(candidate, noise, passes):
    report = gate_report(comparison_of(candidate), DEFAULTS["fp16"], lambda: comparison_of(noise))
    assert report["passed"] is passes, report["failures"]
    absolute = gate_report(comparison_of(candidate), DEFAULTS["fp16"])
    assert not absolute["passed"]
    given = replace(DEFAULTS["fp16"], relative=frozenset())
    assert not gate_report(comparison_of(candidate), given, lambda: comparison_of(noise))["passed"]


def test_yardstick_is_not_measured_without_need():
    def measure():
        raise AssertionError("measured")

    report = gate_report(comparison_of([frame_of(99.9, 100, 0)]), DEFAULTS["fp16"], measure)
    assert report["passed"]
    assert report["intervals"] == {
        "label_agreement": [99.9, 99.9],
        "stable_PQ": [100, 100],
        "score_agreement": [100, 100],
    }


def test_given_thresholds_are_absolute():
    given = PrecisionSettings("fp16", frames="x", label_agreement=90, quality=60).thresholds
    assert (given.label_agreement, given.quality, given.score_agreement) == (90, 60, 60)
    assert given.relative == {"score_agreement"}
    assert PrecisionSettings("int8", frames="x").thresholds == DEFAULTS["int8"]


@pytest.mark.shared
def test_fp16_of_the_included_network_passes_on_cars_from_above(shared):
    settings = PrecisionSettings("fp16", frames=str(shared / "data/videos/car-detection.mp4"), gate_frames=32)
    gate = lower(onnx.load(DEFAULT_MODEL), settings, for_cpu=False).gate
    assert gate["passed"], gate["failures"]
    assert gate["stable_PQ"] > 99.5
