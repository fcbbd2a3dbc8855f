"""Mask refinement on an emulated GPU against the same steps on the CPU, and ``Refiner.outlined``."""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.plugins.mask_refinement import PredictedMasks, refine_masks
from tfiseg.plugins.mask_views import render_mask_views
from tfiseg.plugins.operator import cluster
from tfiseg.plugins.problem import Clustering
from tfiseg.plugins.views import Scene
from tfiseg.runtime.gpu import captured_frame
from tfiseg.runtime.gpu.refined_frame import RefinedFrame
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.refine.mask_refinement import instance_table, with_refined_masks

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import emulated_gpu
from emulated_engines import engine_of, gpu, same
from scenes import pile
from test_view_refiner import agreement, crowd, instance_engine, use_onnx_runtime

__all__ = ["gpu", "instance_engine"]  # fixtures
VIEWS = 4


@pytest.fixture
def segmenter(gpu, monkeypatch, tmp_path, instance_engine):
    emulated_gpu.install(monkeypatch, gpu)
    engine = engine_of(PLAIN_MODEL, tmp_path)
    networks = {"model": engine, "instance_model": instance_engine}
    return tfiseg.Segmenter(**networks, refine="components", min_score=0, max_views=VIEWS)


def predict(views, masks):
    """Return the foreground maps of views, as the emulated engine computes them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(DEFAULT_INSTANCE_MODEL, options)
    return session.run(["foreground"], {"views": views, "masks": masks})[0][:, 0]


def refined_by_steps(segmenter, image, instances):
    """Refine masks by single calls of the C API on the CPU; return instances and the number of new views."""
    class_of = np.concatenate([[0], instances.class_id]).astype(np.uint8)
    components = cluster(class_of[instances.label_map], split=0.0, min_area=0)
    table = instance_table(components)
    table[:, 6] = components.area
    scene = Scene(image, components.label_map, table, np.ones(256, np.uint8))
    size_hw, route = image.shape[:2], segmenter._gpu
    settings = route._component_settings(size_hw), route._view_settings(segmenter.refiner)
    with segmenter.session.refine(image, *settings) as refined:
        known = [refined.foreground(k) for k in range(VIEWS)]
    side = segmenter.refiner.session.view_px
    rendered = render_mask_views(scene, refined.views, side, VIEWS, side)
    foregrounds = [*known, *predict(rendered.images, rendered.masks)]
    given = PredictedMasks(
        instances.label_map,
        instance_table(instances),
        components.label_map,
        table,
        rendered.views,
        foregrounds,
    )
    found = with_refined_masks(instances, refine_masks(given))
    used = rendered.views[:, 4] > 0
    return (
        found.select(found.area >= segmenter._frame_min_area(size_hw)),
        used[:VIEWS].sum(),
        used[VIEWS:].sum(),
    )


def without_masks(segmenter, image):
    """Return the instances of an image before mask refinement."""
    kept = segmenter._mask_refiner
    segmenter._mask_refiner, segmenter._gpu.refines_masks = None, False
    found = segmenter(image)
    segmenter._mask_refiner, segmenter._gpu.refines_masks = kept, True
    return found


def test_graph_equals_the_single_steps(segmenter, gpu):
    image = crowd()
    instances = without_masks(segmenter, image)
    expected, known, new = refined_by_steps(segmenter, image, instances)
    assert (known, new) == (1, 0)
    assert not np.array_equal(expected.label_map, instances.label_map)
    captures = gpu.captures
    for _ in range(3):  # enqueued, captured, and replayed
        same(segmenter(image), expected)
    assert gpu.captures == captures + 1  # the frame's graph was captured before
    assert agreement(expected, tfiseg.Segmenter(PLAIN_MODEL, refine="components", min_score=0)(image)) > 0.95


def test_components_that_lost_a_part_get_another_view(segmenter):
    image = crowd()
    segmenter.min_area = int(without_masks(segmenter, image).area.min()) + 1
    instances = without_masks(segmenter, image)
    expected, known, new = refined_by_steps(segmenter, image, instances)
    assert len(instances)
    assert (known, new) == (0, 1)
    assert not np.array_equal(expected.label_map, instances.label_map)
    for _ in range(2):
        same(segmenter(image), expected)


def test_joined_and_dropped_parts(segmenter):
    """The join rule of this test joins all candidates, and small or uncertain instances are dropped."""
    image = crowd()
    rule = segmenter.refiner.session.rules["join"]
    rule[:] = 0
    rule[-1] = 1e6
    for min_area, min_score in ((25, 0.0), (600, 0.0), (25, 0.6), (10**6, 0.0)):
        segmenter.min_area, segmenter.min_score = min_area, min_score
        instances = without_masks(segmenter, image)
        expected, *_ = refined_by_steps(segmenter, image, instances)
        same(segmenter(image), expected)


def test_frames_of_other_sizes_and_on_the_gpu(segmenter, gpu):
    for size in ((192, 256), (120, 160), (192, 256), (192, 256)):
        image = crowd(*size)
        found = segmenter(image)
        same(segmenter(emulated_gpu.DeviceArray(image)), found)
        assert len(found)
        assert found.stage_ms["outlines"] > 0
    segmenter.close()
    assert not gpu.memory


def test_frames_that_are_too_large_are_refined_on_the_cpu(segmenter, monkeypatch):
    image = crowd()
    expected = segmenter(image)
    monkeypatch.setattr(captured_frame, "MAX_SIDE", 200)
    segmenter.things = [*segmenter.things[:-1]]  # other settings: the frame is set up again
    for frame in (image, emulated_gpu.DeviceArray(image)):
        found = segmenter(frame)
        assert agreement(found, expected) > 0.95
        assert found.stage_ms["instance network"] > 0  # of masks, on the CPU


@pytest.mark.parametrize("on_gpu", [False, True])
def test_masks_of_a_frame_with_a_crowd_are_refined_on_the_cpu(segmenter, monkeypatch, on_gpu):
    image, truth = pile(256, 15)
    class_map = np.where(truth > 0, 15, 0).astype(np.uint8)
    whole = cluster(class_map, split=0)
    table = instance_table(whole)
    table[:, 6] = whole.area
    parts = Clustering(whole.label_map[None], class_map[None], np.ones(1, np.int32), table[None])
    one, views = np.ones(1, np.int32), np.array([[0, 0, 600, 15, 1]], np.int32)
    unused = [lambda k: None] * 2

    @contextmanager
    def refine(image, settings, view_settings):
        frame = getattr(image, "image", image)
        yield RefinedFrame(parts, one, table, views, one * 20, 250, *unused, lambda: frame, lambda *_: 1 / 0)

    monkeypatch.setattr(segmenter.session, "refine", refine)
    found = segmenter(emulated_gpu.DeviceArray(image) if on_gpu else image)
    assert len(found) > 20
    assert {"crowds", "outlines"} <= {*found.stage_ms}


def test_onnx_runtime_refines_masks_in_smaller_views(gpu, monkeypatch):
    session = use_onnx_runtime(gpu, monkeypatch)
    segmenter = tfiseg.Segmenter(refine="components", max_views=VIEWS)
    assert segmenter._gpu.refines_masks
    found = [segmenter(crowd()) for _ in range(2)]
    (_, masks) = next(iter(session._all_lanes[0]._views.values()))
    assert masks.side == 128
    assert set(masks.map_sides.tolist()) == {96, 64}
    monkeypatch.undo()
    expected = tfiseg.Segmenter(refine="components", threads=1)(crowd())
    for one in found:
        assert agreement(one, expected) > 0.95
