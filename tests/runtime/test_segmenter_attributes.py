"""Test attributes of a ``Segmenter`` that are set between frames, and options of a wrong type."""

import json

import numpy as np
import onnx
import pytest
import tfiseg
from tfiseg.runtime.networks.model_info import METADATA_KEY
from tfiseg.runtime.networks.session import DEFAULT_MODEL


@pytest.fixture(scope="module")
def segmenter():
    return tfiseg.Segmenter(quality="fast", threads=1)


@pytest.fixture(scope="module")
def astronaut():
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[:, :, ::-1])


@pytest.fixture(autouse=True)
def reset(segmenter):
    yield
    segmenter.things = segmenter.min_score = segmenter.min_area = None


@pytest.mark.parametrize(
    ("value", "ids"),
    [(["person", 7], (15, 7)), ("person", (15,)), (np.int64(15), (15,)), (["15"], (15,)), ([], ())],
)
def test_classes_are_set_by_name_or_id(segmenter, value, ids):
    segmenter.things = value
    assert segmenter.things == tfiseg.Segmenter(quality="fast", things=value).things == ids


def test_set_classes_are_segmented(segmenter, astronaut):
    segmenter.things = "person"
    assert set(segmenter(astronaut).names) == {"person"}
    segmenter.things = ["bicycle"]
    assert len(segmenter(astronaut)) == 0


def test_none_restores_the_defaults(segmenter, astronaut):
    before = segmenter(astronaut)
    segmenter.things, segmenter.min_score, segmenter.min_area = ["car"], 0.9, 10**6
    assert len(segmenter(astronaut)) == 0
    segmenter.things = segmenter.min_score = segmenter.min_area = None
    assert np.array_equal(segmenter(astronaut).label_map, before.label_map)


WRONG = [
    ("min_score", 50, "min_score must lie in 0..1, got 50"),
    ("min_score", "0.5", "min_score must lie in 0..1, got '0.5'"),
    ("min_score", float("nan"), "min_score must lie in 0..1"),
    ("min_area", -1, "min_area must lie in 0"),
    ("min_area", 0.5, "min_area must lie in 0"),
    ("max_instances", 0, "max_instances must lie in 1"),
    ("max_instances", "9", "max_instances must lie in 1..65535, got '9'"),
    ("things", ["persn"], "unknown class 'persn'.*Did you mean 'person'"),
    ("things", 1.5, "things must be class names or ids, got 1.5"),
    ("things", [0], "unknown class 0"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_values_are_errors_at_once(segmenter, name, value, message):
    before = getattr(segmenter, name)
    with pytest.raises(tfiseg.InputError, match=message):
        setattr(segmenter, name, value)
    assert getattr(segmenter, name) == before


OF_WRONG_TYPE = [
    ("long_side_px", "512", "long_side_px must lie in 64..4096, got '512'"),
    ("max_views", "3", "max_views must be at least 1, got '3'"),
    ("tiles", "2", "tiles must lie in 1..8, got '2'"),
    ("threads", "2", "threads must be at least 1.*got '2'"),
]


@pytest.mark.parametrize(("name", "value", "message"), [*WRONG, *OF_WRONG_TYPE])
def test_wrong_options_are_errors(name, value, message):
    with pytest.raises(tfiseg.InputError, match=message):
        tfiseg.Segmenter(quality="best", **{name: value})


FIXED = ["quality", "model", "outlines", "tiles", "flip", "long_side_px", "device", "split", "threads"]


@pytest.mark.parametrize("name", FIXED)
def test_options_of_open_networks_cannot_be_changed(segmenter, name):
    # it was accepted without effect: results stayed those of the old option
    with pytest.raises(
        tfiseg.InputError, match=rf"{name} of a segmenter can't be changed.*Segmenter\({name}="
    ):
        setattr(segmenter, name, getattr(segmenter.settings, name))


@pytest.mark.parametrize(
    ("quality", "value"),
    [
        ("balanced", "components"),
        ("balanced", "best"),
        ("fast", "frame"),
        ("best", "shape"),
        ("best", "frame"),
    ],
)
def test_refine_can_be_changed_only_to_what_the_open_networks_do(quality, value):
    segmenter = tfiseg.Segmenter(quality=quality, threads=1)
    before = segmenter.refine
    with pytest.raises(tfiseg.InputError, match=f"refine can't be changed to '{value}' here"):
        segmenter.refine = value
    segmenter.refine = before


def test_all_classes_of_a_name_are_segmented(tmp_path):
    # only the first of them was
    model = onnx.load(DEFAULT_MODEL)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    metadata = json.loads(entry.value)
    metadata["class_names"][7] = "person"
    entry.value = json.dumps(metadata)
    onnx.save(model, tmp_path / "twice.onnx")
    segmenter = tfiseg.Segmenter(tmp_path / "twice.onnx", quality="fast", things="person")
    assert segmenter.things == (7, 15)
    for background in ("background", 0):
        with pytest.raises(tfiseg.InputError, match="unknown class"):
            segmenter.things = [background]
