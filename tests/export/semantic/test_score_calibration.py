"""Score calibration, fitted on synthetic images."""

import json

import cv2
import numpy as np
import pytest
import tfiseg

pytest.importorskip("torch", reason="training needs torch: make test-export")

import onnx
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import main
from tfiseg.export.semantic import score_calibration
from tfiseg.export.semantic.data import Picture
from tfiseg.export.semantic.score_calibration import (
    ScoreFit,
    _logistic,
    add_score_calibration,
    fit_score_calibration,
)
from tfiseg.runtime.networks.model_info import METADATA_KEY


def pictures(count):
    """Return images of large red disks, the objects, and small green specks of the same predicted class."""
    made = []
    for k in range(count):
        rng = np.random.default_rng(k)
        image, semantic = np.zeros((160, 240, 3), np.uint8), np.zeros((160, 240), np.uint8)
        for x in (60, 180):
            at, radius = (x, int(rng.integers(60, 100))), int(rng.integers(25, 50))
            cv2.circle(image, at, radius, (0, 0, 200), -1)
            cv2.circle(semantic, at, radius, 1, -1)
        cv2.circle(image, (120, int(rng.integers(10, 150))), 6, (0, 200, 0), -1)
        made.append(Picture(f"{k}", image, semantic, np.full((1, 1), 255, np.uint8)))
    return made


def color_segmenter(image):
    class_map = (image.max(2) > 70).astype(np.uint8)
    return tfiseg.cluster(class_map, split=0.0, scores=np.full(class_map.shape, 0.9, np.float32), min_area=9)


def identity_refiner(image, components):
    return components


identity_refiner.min_area = 25


def test_calibration_separates_specks_from_objects():
    fit = fit_score_calibration(color_segmenter, pictures(80), identity_refiner, quiet=True)
    assert fit.objects > 100
    assert fit.instances - fit.objects > 50
    before, after = fit.held_quality
    assert after > before + 5
    assert after > 95


def test_too_few_instances_raise_input_error():
    with pytest.raises(tfiseg.InputError, match="expected at least 50 of each"):
        fit_score_calibration(color_segmenter, pictures(22), identity_refiner, quiet=True)


def test_logistic_regression_recovers_the_true_weights():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (20_000, 3)) * [2, 0.5, 1] + [5, -3, 0]
    true = np.array([0.7, -1.5, 2.0, -3.0])
    hit = rng.random(20_000) < 1 / (1 + np.exp(-(features @ true[:-1] + true[-1])))
    assert np.allclose(_logistic(features, hit), true, atol=0.35)


def test_only_the_metadata_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(
        score_calibration,
        "fit_score_calibration",
        lambda *_, **__: ScoreFit([1.0, 2.0, 3.0, 4.0], 10, 5, (1.0, 2.0)),
    )
    monkeypatch.setattr(score_calibration, "load_pictures", lambda *_: [])
    report = add_score_calibration(
        PLAIN_MODEL, tmp_path, tmp_path, None, tmp_path / "scored.onnx", quiet=True
    )
    assert report["rule"]["bias"] == 4.0
    before, after = onnx.load(PLAIN_MODEL), onnx.load(tmp_path / "scored.onnx")
    assert before.graph == after.graph
    properties = ({p.key: p.value for p in m.metadata_props} for m in (before, after))
    old, new = (json.loads(p[METADATA_KEY]) for p in properties)
    assert new["clustering"].pop("score_rule") == [1.0, 2.0, 3.0, 4.0]
    old["clustering"].pop("score_rule")
    assert new == old
    assert tfiseg.Segmenter(tmp_path / "scored.onnx").score_rule == [1.0, 2.0, 3.0, 4.0]


def test_uncountable_classes_are_no_objects():
    with_wall = pictures(80)
    for picture in with_wall:
        picture.semantic[picture.semantic == 0] = 2
    plain = fit_score_calibration(color_segmenter, pictures(80), identity_refiner, quiet=True)
    assert (
        fit_score_calibration(
            color_segmenter, with_wall, identity_refiner, things=[1], quiet=True
        ).held_quality
        == plain.held_quality
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"--images": "nowhere"}, "there is no folder"),
        ({}, "no image in"),
        ({"--model": "nowhere.onnx"}, "there is no network"),
        ({"--model": "noise.onnx"}, "is no ONNX network"),
        ({"-o": "nowhere/scored.onnx"}, "there is no folder"),
    ],
)
def test_command_line_names_what_is_missing(tmp_path, capsys, arguments, message):
    for kind in ("images", "semantic"):
        (tmp_path / kind).mkdir()
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 100)
    given = {"--images": "images", "--semantic": "semantic", "-o": "scored.onnx", **arguments}
    words = [word for name, value in given.items() for word in (name, str(tmp_path / value))]
    assert main(["train", "score", *words, "--json"]) == 1
    assert message in capsys.readouterr().err
