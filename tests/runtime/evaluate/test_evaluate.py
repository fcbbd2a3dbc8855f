"""Test the evaluation of instances, and the operator's benchmark."""

import json
import shutil

import cv2
import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.evaluate.bench import bench, bench_table, center_field
from tfiseg.runtime.evaluate.evaluate import evaluate
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="module")
def synthetic_set(tmp_path_factory):
    """Return an evaluation set of three frames of the synthetic source."""
    folder = tmp_path_factory.mktemp("set")
    for name in ("images", "instances", "semantic"):
        (folder / name).mkdir()
    for frame, _ in zip(SyntheticCamera(people=3), range(3), strict=False):
        for name, picture in (
            ("images", frame.image),
            ("instances", frame.truth_label_map.astype(np.uint16)),
            ("semantic", frame.truth_class_map),
        ):
            cv2.imwrite(str(folder / name / f"{frame.name}.png"), picture)
    (folder / "classes.json").write_text(json.dumps({"15": "person"}))
    return folder


def test_true_masks(synthetic_set, tmp_path):
    report = evaluate(synthetic_set, out=tmp_path, quiet=True)
    assert report["pictures"] == 3
    assert report["PQ"] > 40
    assert report["true_positives"] + report["false_negatives"] == 9
    assert set(report) >= {"AP", "AP50", "AP75", "per_class_PQ", "median_ms", "best", "median", "worst"}
    assert all(cv2.imread(str(tmp_path / f"{name}.png")) is not None for name in ("best", "median", "worst"))


def test_gain_over_baselines(synthetic_set):
    report = evaluate(synthetic_set, quiet=True, against=("components", "shape"))
    assert report["gain"]["shape"]["PQ_gain"] == 0  # the same finder
    assert report["gain"]["components"]["PQ_gain"] == round(
        report["PQ"] - report["gain"]["components"]["PQ"], 2
    )
    by_model = evaluate(
        synthetic_set, "model", tfiseg.Segmenter(quality="fast"), quiet=True, against=["shape"]
    )
    assert by_model["gain"]["shape"]["PQ"] == by_model["PQ"]
    with pytest.raises(tfiseg.InputError, match="unknown baseline"):
        evaluate(synthetic_set, quiet=True, against=["luck"])


def test_predicted_masks(synthetic_set):
    report = evaluate(synthetic_set, "model", tfiseg.Segmenter(), quiet=True)
    assert report["per_class_IoU"]["person"] > 0.6
    assert 0 < report["mIoU"] <= 1


def test_min_area_of_a_network_for_small_objects(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DEFAULT_INSTANCE_MODEL)
    for p in model.metadata_props:
        p.value = p.value.replace('"view_px": 192', '"view_px": 192, "min_area": 9')
    onnx.save(model, tmp_path / "small.onnx")
    class_map = np.zeros((60, 80), np.uint8)
    class_map[10:14, 10:14] = class_map[30:50, 30:50] = 1
    class_map[55:57, 70:74] = 1  # 8 px
    instances = tfiseg.cluster(class_map, split=0, min_area=0).label_map
    for name, picture in (
        ("images", class_map * 200),
        ("instances", instances.astype(np.uint16)),
        ("semantic", class_map),
    ):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), picture)
    (tmp_path / "classes.json").write_text(json.dumps({"1": "cell"}))
    for path, correct in ((None, 1), (tmp_path / "small.onnx", 2)):
        assert evaluate(tmp_path, refiner=tfiseg.Refiner(path), quiet=True)["true_positives"] == correct
        assert evaluate(tmp_path, refiner=tfiseg.Refiner(path), min_area=0, quiet=True)["true_positives"] == 3
        report = evaluate(tmp_path, refiner=tfiseg.Refiner(path), quiet=True, against=["components"])
        assert report["gain"]["components"]["PQ_gain"] == 0  # on the same objects
        report = evaluate(tmp_path, refiner=tfiseg.Refiner(path), quiet=True, against=["shipped"])
        assert (report["gain"]["shipped"]["PQ_gain"] > 0) == (correct == 2)
        same = evaluate(tmp_path, refiner=tfiseg.Refiner(path), quiet=True, against=["shipped"], min_area=9)
        assert same["gain"]["shipped"]["PQ_gain"] == 0
    with pytest.raises(tfiseg.InputError, match="shipped compares instance networks on true class maps"):
        evaluate(tmp_path, "model", tfiseg.Segmenter(), quiet=True, against=["shipped"])
    assert evaluate(tmp_path, min_area=10, quiet=True)["true_positives"] == 2
    for min_area, expected in ((None, 9), (50, 50)):
        segmenter = tfiseg.Segmenter(
            refine="components", instance_model=tmp_path / "small.onnx", min_area=min_area
        )
        assert segmenter._frame_min_area((480, 640)) == expected
    outlined = tfiseg.Segmenter(outlines=True, instance_model=tmp_path / "small.onnx")
    assert outlined._frame_min_area((480, 640)) == 9


def test_a_folder_that_is_no_evaluation_set(tmp_path):
    with pytest.raises(tfiseg.InputError, match="has no images"):
        evaluate(tmp_path, quiet=True)


def test_a_map_with_colors_or_without_a_file_is_an_error(synthetic_set, tmp_path):
    folder = shutil.copytree(synthetic_set, tmp_path / "set")
    damaged = sorted((folder / "semantic").iterdir())[-1]
    cv2.imwrite(str(damaged), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(tfiseg.InputError, match=f"{damaged.name} is a color image of 3 channels"):
        evaluate(folder, quiet=True)
    damaged.unlink()
    with pytest.raises(tfiseg.InputError, match=f"lacks the maps of 1 of 3 images, e.g. {damaged.name}"):
        evaluate(folder, quiet=True)


def test_bench_reports_ratios():
    report = bench(side_px=128, peers=True)
    assert report["geometric_ms_per_mp"] > 0
    assert set(report["peer_over_ours"]) == set(report["peers_ms_per_mp"])
    assert "ms/MP" in bench_table(report)
    with pytest.raises(tfiseg.InputError, match="side"):
        bench(side_px=5000)


def test_clustering_of_a_center_field_restores_the_instances():
    label_map = np.zeros((60, 90), np.int32)
    label_map[5:50, 5:40], label_map[5:50, 40:85] = 1, 2
    class_map = (label_map > 0).astype(np.uint8)
    assert np.array_equal(tfiseg.cluster(class_map, center_field(label_map)).label_map, label_map)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "minimum"), [("pennfudan", 87.0), ("coco", 71.5), ("voc2007", 78.5), ("dsb2018", 90.0)]
)
def test_default_settings_on_true_masks(eval_sets, name, minimum):
    """The same default is good for people, COCO's 80 classes, VOC and nuclei."""
    assert evaluate(eval_sets / name, quiet=True)["PQ"] >= minimum
