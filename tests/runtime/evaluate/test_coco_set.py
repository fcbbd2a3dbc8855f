"""Test evaluation on COCO annotations."""

import json

import cv2
import numpy as np
import pytest
import tfiseg
from pycocotools import mask as coco
from tfiseg.runtime.evaluate.coco_set import load_coco_set
from tfiseg.runtime.evaluate.evaluate import evaluate

CATEGORIES = [{"id": 7, "name": "car"}, {"id": 0, "name": "person"}]


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def write_set(folder, annotations, **content):
    """Write one image of 60 x 80 pixels and its annotations."""
    cv2.imwrite(str(folder / "a.png"), np.full((60, 80, 3), 120, np.uint8))
    image = {"id": 4, "file_name": "train/a.png", "height": 60, "width": 80}
    objects = [{"id": k, "image_id": 4, "category_id": 0, **one} for k, one in enumerate(annotations)]
    content = {"images": [image], "annotations": objects, "categories": CATEGORIES, **content}
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def test_polygons_and_masks(tmp_path):
    car = np.zeros((60, 80), np.uint8, order="F")
    car[40:55, 50:75] = 1
    compressed = coco.encode(car)
    runs = {"size": [60, 80], "counts": [0, 60, 60 * 79]}  # the first column
    path = write_set(
        tmp_path,
        [
            {"segmentation": rectangle(15, 10, 20, 20)},
            {"segmentation": rectangle(10, 10, 40, 50), "category_id": 7},  # behind the person
            {"segmentation": {"size": [60, 80], "counts": compressed["counts"].decode()}, "category_id": 7},
            {"segmentation": runs, "iscrowd": 1},
        ],
    )
    pictures, names = load_coco_set(tmp_path, path)
    assert names == {1: "person", 2: "car"}
    picture = pictures[0]
    assert picture.name == "a"
    assert (picture.semantic[11:20, 15:20] == 1).all()
    assert picture.semantic[30, 30] == picture.semantic[50, 60] == 2
    assert (picture.semantic[:, 0] == 255).all()
    assert (picture.truth[:, 0] == 0).all()
    assert len(np.unique(picture.truth)) == 1 + 3
    report = evaluate(tmp_path, annotations=path, quiet=True, out=tmp_path / "sheets")
    assert set(report["per_class_PQ"]) == {"person", "car"}
    assert report["true_positives"] == 3


def test_results_of_a_run_are_annotations(tmp_path, capsys):
    from tfiseg.cli.main import main

    frame = next(iter(tfiseg.open_source("synthetic"))).image
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), frame)
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "photos"), "--format", "coco", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["instances"]
    assert found
    arguments = ["--annotations", str(out / "coco.json"), "--semantic", "model", "--json"]
    assert main(["eval", str(tmp_path / "photos"), *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["true_positives"], report["false_positives"]) == (found, 0)
    assert report["PQ"] == 100


@pytest.mark.parametrize(
    ("annotation", "content", "message"),
    [
        ({"bbox": [1, 2, 3, 4], "segmentation": []}, {}, "a box is not enough"),
        ({"bbox": [1, 2, 3, 4]}, {}, r"annotations\[0\]\.segmentation missing"),
        ({"segmentation": rectangle(1, 1, 9, 9), "category_id": 3}, {}, "category_id 3 does not exist"),
        ({"segmentation": rectangle(1, 1, 9, 9), "image_id": 3}, {}, "image_id 3 does not exist"),
        ({"segmentation": {"size": [60, 80], "counts": [5]}}, {}, "is damaged"),
        ({"segmentation": {"size": [60, 80], "counts": "\\]"}}, {}, "is damaged"),
        ({"segmentation": {"size": [80, 60], "counts": [4800]}}, {}, r"has size \(80, 60\)"),
        ({"segmentation": rectangle(1, 1, 9, 9)}, {"categories": []}, "categories must be a list"),
        ({"segmentation": rectangle(1, 1, 9, 9)}, {"images": []}, "lists no image"),
        (
            {"segmentation": rectangle(1, 1, 9, 9)},
            {"images": [{"id": 4, "file_name": "b.png", "height": 60, "width": 80}]},
            "lacks 1 of the 1 images in .*, e.g. b.png",
        ),
        (
            {"segmentation": rectangle(1, 1, 9, 9)},
            {"images": [{"id": 4, "file_name": "a.png", "height": 80, "width": 60}]},
            r"has 60x80 pixels \(height x width\), its annotations say 80x60",
        ),
    ],
)
def test_damaged_annotations(annotation, content, message, tmp_path):
    path = write_set(tmp_path, [annotation], **content)
    with pytest.raises(tfiseg.InputError, match=message):
        evaluate(tmp_path, annotations=path, quiet=True)
