import gc
import json
import pickle
import subprocess
import sys
import weakref

import cv2
import numpy as np
import onnx
import pytest
import tfiseg
from onnx import TensorProto, helper
from plain_model import PLAIN_MODEL
from tfiseg.runtime.evaluate.evaluate import evaluate
from tfiseg.runtime.networks.model_info import METADATA_KEY
from tfiseg.runtime.networks.onnx_session import OnnxSession
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.sources.synthetic import SyntheticCamera


@pytest.fixture(scope="module")
def segmenter():
    return tfiseg.Segmenter()


@pytest.fixture(scope="module")
def astronaut():
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[:, :, ::-1])


def tiny_model(path, metadata=None, output="logits"):
    """A model whose logits are the frame's first two colors."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Slice", ["nchw", "from", "to", "axis"], [output]),
    ]
    constants = [
        helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("from", 0), ("to", 2), ("axis", 1))
    ]
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "h", "w", 3])
    logits = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 2, "h", "w"])
    graph = helper.make_graph(nodes, "tiny", [frame], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.save(model, path)
    return path


GOOD = json.dumps({"format_version": 1, "class_names": ["background", "green"], "things": [1], "stride": 1})


def test_a_person_is_found_and_measured(segmenter, astronaut):
    found = segmenter(astronaut)
    person = max((i for i in found if i.class_name == "person"), key=lambda i: i.area)
    assert person.score > 0.7
    assert 0.3 < person.area / astronaut[..., 0].size < 0.7
    assert found.label_map.shape == astronaut.shape[:2] == found.semantic_map.shape
    assert set(found.stage_ms) == {"network", "cluster", "upsample"}


@pytest.mark.parametrize("hw", [(1, 1), (37, 501), (480, 640), (1080, 1920)])
def test_frames_of_any_size(segmenter, hw):
    found = segmenter(np.random.default_rng(0).integers(0, 255, (*hw, 3), np.uint8))
    assert found.label_map.shape == hw


def test_index_and_time_of_frames_are_kept(segmenter):
    frame = next(iter(tfiseg.open_source("synthetic")))
    found = segmenter(frame)
    assert (found.frame_index, found.capture_time_ns) == (frame.index, frame.capture_time_ns)
    assert "decode" in found.stage_ms


def test_things_by_name(astronaut):
    only = tfiseg.Segmenter(things=["person"])(astronaut)
    assert {i.class_name for i in only} == {"person"}
    with pytest.raises(tfiseg.InputError, match=r"unknown class 'unicorn'; this model knows aeroplane"):
        tfiseg.Segmenter(things=["unicorn"])


@pytest.mark.parametrize("refine", [None, "components"])
def test_default_minimum_area(tmp_path, refine):
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[10:14, 10:14, 1], frame[30:36, 30:36, 1] = 255, 255  # 16 and 36 green pixels
    network = tiny_model(tmp_path / "tiny.onnx", GOOD)
    for min_area, areas in ((None, [36]), (10, [16, 36]), (40, [])):
        assert tfiseg.Segmenter(network, refine=refine, min_area=min_area)(frame).area.tolist() == areas
    for_small = tiny_model(
        tmp_path / "small.onnx", json.dumps({**json.loads(GOOD), "clustering": {"min_area": 10}})
    )
    for min_area, areas in ((None, [16, 36]), (20, [36])):
        assert tfiseg.Segmenter(for_small, refine=refine, min_area=min_area)(frame).area.tolist() == areas
    with pytest.raises(tfiseg.InputError, match="min_area must lie in 0"):
        tfiseg.Segmenter(network, min_area=-1)


def test_min_score(astronaut):
    everything = tfiseg.Segmenter(min_score=0)(astronaut)
    sure = tfiseg.Segmenter(min_score=0.8)(astronaut)
    assert len(sure) <= len(everything)
    assert (sure.score >= 0.8).all()


def test_things_by_one_name(astronaut):
    assert tfiseg.Segmenter(things="person").things == tfiseg.Segmenter(things=["15"]).things == (15,)
    with pytest.raises(tfiseg.InputError, match="split must be"):
        tfiseg.Segmenter(split=7)


def test_min_area(astronaut):
    assert len(tfiseg.Segmenter(min_area=10**6)(astronaut)) == 0


def test_other_models_in_the_format(tmp_path):
    segmenter = tfiseg.Segmenter(tiny_model(tmp_path / "tiny.onnx", GOOD))
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[10:30, 10:30, 1] = 200
    found = segmenter(frame)
    assert [(i.class_name, i.area) for i in found] == [("green", 400)]


@pytest.mark.parametrize(
    ("metadata", "output", "message"),
    [
        (None, "logits", "has no tfiseg metadata.*tfiseg.cluster"),
        ("{broken", "logits", "metadata is damaged"),
        ('{"format_version": 1}', "logits", "metadata is damaged"),
        ('{"format_version": 99}', "logits", "format 99, this version reads 1"),
        (GOOD, "mask", "expected input 'frame' and output 'logits'"),
    ],
)
def test_errors_of_models(tmp_path, metadata, output, message):
    with pytest.raises(tfiseg.ModelError, match=message):
        tfiseg.Segmenter(tiny_model(tmp_path / "tiny.onnx", metadata, output))


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(tfiseg.ModelError, match="there is no model"):
        tfiseg.Segmenter(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(tfiseg.ModelError, match="can't load"):
        tfiseg.Segmenter(tmp_path / "text.onnx")
    with pytest.raises(tfiseg.ModelError, match="no provider"):
        OnnxSession(PLAIN_MODEL, providers=["NoSuchProvider"])


def test_nan_logits_are_an_error(tmp_path):
    path = tiny_model(tmp_path / "nan.onnx", GOOD)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "finite"
    model.graph.node.append(
        helper.make_node("Div", ["finite", "finite"], ["logits"])
    )  # 0 / 0 in black pixels
    onnx.save(model, path)
    with pytest.raises(tfiseg.InputError, match="logits contain NaN"):
        tfiseg.Segmenter(path)(np.zeros((4, 4, 3), np.uint8))


def test_the_default_model_fits_in_the_package():
    assert PLAIN_MODEL.stat().st_size <= 10e6
    session = OnnxSession(PLAIN_MODEL)
    assert len(session.info.class_names) == 21
    assert {"training_data", "licence", "clustering", "weights_sha256"} <= set(session.info.extra)
    (logits,) = session.infer(np.zeros((480, 640, 3), np.uint8)).values()
    assert logits.shape[1] == 21


@pytest.mark.shared
def test_people_on_street_photos(shared):
    """It fails if the network is broken; `tfiseg eval` measures its quality."""
    segmenter = tfiseg.Segmenter(things=["person"])
    folder = shared / "data" / "eval" / "pennfudan"
    both = either = 0
    for path in sorted((folder / "images").iterdir())[:10]:
        truth = cv2.imread(str(folder / "semantic" / f"{path.stem}.png"), -1) == 15
        guess = segmenter(cv2.imread(str(path))).semantic_map == 15
        both, either = both + (truth & guess).sum(), either + (truth | guess).sum()
    assert both / either > 0.6


def test_instance_heads_separate_people_that_shape_does_not():
    image = next(iter(SyntheticCamera(people=3, seed=4))).image
    by_frame = tfiseg.Segmenter(refine="frame")(image)
    assert set(by_frame.stage_ms) >= {"network", "cluster"}
    assert "instance network" not in by_frame.stage_ms  # one pass
    with_model = tfiseg.Segmenter(DEFAULT_MODEL)(image)  # a model that has heads uses them
    assert np.array_equal(by_frame.label_map, with_model.label_map)


@pytest.mark.shared
def test_instance_heads_keep_most_of_the_gain_of_components(eval_sets):
    """At least 80 % of the PQ that refinement adds to connected components (37.1 to 52.9)."""
    report = evaluate(
        eval_sets / "pennfudan", "model", tfiseg.Segmenter(refine="frame"), quiet=True, against=["components"]
    )
    assert report["gain"]["components"]["PQ_gain"] >= 0.8 * (52.9 - 37.1)


def test_a_pickled_segmenter_keeps_changed_attributes(astronaut, tmp_path):
    segmenter = tfiseg.Segmenter(threads=1, things=(name for name in ["person", "tvmonitor"]))
    segmenter.min_score, segmenter.min_area, segmenter.max_instances = 0.2, 100, 3
    again = pickle.loads(pickle.dumps(segmenter))
    names = ("things", "min_score", "min_area", "max_instances")
    assert [getattr(again, n) for n in names] == [getattr(segmenter, n) for n in names]
    (tmp_path / "both").write_bytes(pickle.dumps((segmenter, astronaut)))
    code = (
        "import pickle, sys; segmenter, image = pickle.load(open(sys.argv[1], 'rb')); "
        "found = segmenter(image); print(found.names, found.area.tolist())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "both"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = segmenter(astronaut)
    assert there.stdout == f"{found.names} {found.area.tolist()}\n"


def test_a_pickled_segmenter_keeps_a_changed_refine(astronaut):
    segmenter = tfiseg.Segmenter()
    segmenter.refine = "shape"
    again = pickle.loads(pickle.dumps(segmenter))
    assert again.refine == "shape"
    assert np.array_equal(again(astronaut).label_map, segmenter(astronaut).label_map)
    again.refine = "frame"
    assert np.array_equal(again(astronaut).label_map, tfiseg.Segmenter()(astronaut).label_map)


def test_a_pickled_segmenter_keeps_its_defaults():
    again = pickle.loads(pickle.dumps(tfiseg.Segmenter(quality="fast")))
    assert again.settings.quality == "fast"
    assert again.min_score == tfiseg.Segmenter(quality="fast").min_score
    assert again.settings.min_score is None


@pytest.mark.parametrize("quality", ["fast", "balanced", "best"])
def test_the_last_reference_frees_the_networks(quality, astronaut):
    """In a cycle of references, they would stay in memory until a garbage collection."""
    gc.disable()
    try:
        segmenter = tfiseg.Segmenter(quality=quality)
        segmenter(astronaut)
        networks = [weakref.ref(segmenter.session)]
        if segmenter.refiner is not None:
            networks.append(weakref.ref(segmenter.refiner.session))
        del segmenter
        assert [network() for network in networks] == [None] * len(networks)
    finally:
        gc.enable()
