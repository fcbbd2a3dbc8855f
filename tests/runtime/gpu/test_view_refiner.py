"""Test view refinement on an emulated GPU against the same steps on the CPU and ``Refiner``."""

import ctypes
import logging
import sys
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from skimage import data
from tfiseg.plugins.operator import MergeStoppedWarning, cluster, cluster_batch
from tfiseg.plugins.problem import Clustering
from tfiseg.plugins.settings import SHARPEN, ClusterSettings, thing_flags
from tfiseg.plugins.views import Scene, ViewClusterings, place_instances, render_views
from tfiseg.runtime.gpu.refined_frame import RefinedFrame
from tfiseg.runtime.gpu.view_refiner import DEFAULT_VIEWS, MAX_PARTS, DeviceViews
from tfiseg.runtime.networks import instance_onnx, onnx_cuda_session
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.onnx_binding import BoundContext
from tfiseg.runtime.networks.open_session import open_instance_session

sys.path.insert(0, str(Path(__file__).parents[1]))
import emulated_gpu
from emulated_engines import engine_of, gpu, same
from scenes import pile

__all__ = ["gpu"]  # a fixture


@pytest.fixture
def instance_engine(tmp_path):
    return engine_of(DEFAULT_INSTANCE_MODEL, tmp_path, "instance.engine")


@pytest.fixture
def segmenter(gpu, monkeypatch, tmp_path, instance_engine):
    emulated_gpu.install(monkeypatch, gpu)
    model = engine_of(PLAIN_MODEL, tmp_path)
    return tfiseg.Segmenter(
        model, refine="components", instance_model=instance_engine, outlines=False, min_score=0
    )


def crowd(height=192, width=256):
    """Return an image of two touching copies of a person."""
    one = cv2.resize(np.ascontiguousarray(data.astronaut()[:400, 60:380, ::-1]), (width // 2, height))
    return np.concatenate([one, one], 1)


def test_graph_equals_the_single_steps(segmenter, gpu):
    network, image = open_instance_session(), crowd()
    maps = tfiseg.Segmenter(PLAIN_MODEL, threads=1).session.infer(image)
    components = cluster(maps["logits"][0], split=0.0, output_size_hw=image.shape[:2], min_area=25)
    table = np.zeros((len(components), 10), np.float32)
    table[:, 0], table[:, 1], table[:, 2:6], table[:, 6] = (
        components.class_id,
        components.score,
        components.box_xyxy,
        components.area,
    )
    scene = Scene(image, components.label_map, table, thing_flags(None))
    views = render_views(scene, DEFAULT_VIEWS, network.view_px)
    assert views.views[0, 3]
    maps = network.infer(views.images, views.masks)
    settings = ClusterSettings(
        min_area=0,
        affinity_offsets=network.affinity_offsets,
        merge_rule=network.rules["merge"],
        part_rule=network.rules["part"],
        sharpen=SHARPEN,
    )
    parts = cluster_batch(views.own, affinity=maps.affinity, boundary=maps.boundary[:, 0], settings=settings)
    by_shape = ClusterSettings(split=1.0, min_area=0)
    regions = [len(one) for one in cluster_batch(views.own, settings=by_shape)]
    tables = np.zeros((DEFAULT_VIEWS, 64, 10), np.float32)
    for k, one in enumerate(parts):
        tables[k, : len(one), 6] = one.area
    counts = [len(one) for one in parts]
    found = ViewClusterings(
        np.stack([p.label_map for p in parts]),
        np.array(counts, np.int32),
        np.array(regions, np.int32),
        tables,
    )
    expected = place_instances(scene, views, found)
    assert len(expected.table) > len(components)
    for _ in range(3):  # enqueued, captured, and replayed
        with segmenter.session.refine(
            image,
            segmenter._gpu._component_settings(image.shape[:2]),
            segmenter._gpu._view_settings(segmenter.refiner),
        ) as refined:
            assert np.array_equal(refined.parts.label_map[0], expected.label_map)
            assert np.array_equal(refined.component_of, expected.component_of)
            assert np.array_equal(refined.views, views.views)
            np.testing.assert_allclose(refined.parts.table[0], expected.table, rtol=1e-5)
            rendered, displacement, affinity = refined.join_inputs(0)
            assert np.array_equal(rendered, views.images[0])
            np.testing.assert_allclose(displacement, maps.displacement[0], atol=1e-4)
            np.testing.assert_allclose(affinity, maps.affinity[0], atol=1e-4)
    assert gpu.launches >= 1


@pytest.mark.parametrize("has_parts", [True, False])
def test_a_merge_that_stops_in_a_view_is_reported(segmenter, gpu, monkeypatch, has_parts):
    """Rows behind the last part of a view contain anything."""
    cluster_views = DeviceViews.cluster
    row = 0 if has_parts else MAX_PARTS - 1

    def stop(views, stream_handle):
        cluster_views(views, stream_handle)
        flags = int(views.parts["table"]) + (row * 10 + 9) * 4
        gpu.enqueue(stream_handle, lambda: setattr(ctypes.c_float.from_address(flags), "value", 2.0))

    monkeypatch.setattr(DeviceViews, "cluster", stop)
    for _ in range(3):  # enqueued, captured, and replayed
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            assert len(segmenter(crowd()))
        assert [one.category for one in given] == [MergeStoppedWarning] * has_parts


def test_frames_of_other_sizes_and_on_the_gpu(segmenter, gpu):
    for size in ((192, 256), (120, 160), (192, 256), (192, 256)):
        image = crowd(*size)
        same(segmenter(emulated_gpu.DeviceArray(image)), segmenter(image))
    for _ in range(2):
        segmenter.close()
    assert not gpu.memory


def test_only_things_are_reported(segmenter):
    image = crowd()
    assert len(segmenter(image))
    segmenter.things = (1,)
    assert not len(segmenter(image))


def test_parts_are_joined_as_on_the_cpu(segmenter, monkeypatch):
    """The rule of this test joins all candidates."""
    image = crowd()
    rule = segmenter.refiner.session.rules["join"]
    for bias, fewer in ((-1e6, False), (1e6, True)):
        rule[:] = 0
        rule[-1] = bias
        on_cpu = tfiseg.Segmenter(PLAIN_MODEL, refine="components", outlines=False, min_score=0, threads=1)
        on_cpu.refiner.session.rules["join"] = rule
        found, expected = segmenter(image), on_cpu(image)
        assert len(found) == len(expected)
        if not fewer:
            apart = len(found)
    assert len(found) <= apart


@pytest.mark.parametrize("in_view", [20, 1])
def test_a_frame_with_a_crowd_is_refined_on_the_cpu(segmenter, monkeypatch, in_view):
    """A crowd has many regions in its view, or in the frame if the view is too coarse."""
    image, truth = pile(512, 15)
    class_map = np.where(truth > 0, 15, 0).astype(np.uint8)
    crowd = cluster(class_map, split=0)
    table = np.zeros((1, 10), np.float32)
    table[0, 0], table[0, 1], table[0, 2:6], table[0, 6] = 15, 0.8, crowd.box_xyxy[0], crowd.area[0]
    parts = Clustering(crowd.label_map[None], class_map[None], np.ones(1, np.int32), table[None])
    one, views = np.ones(1, np.int32), np.array([[0, 0, 600, 15, 1]], np.int32)

    @contextmanager
    def refine(image, settings, view_settings):
        yield RefinedFrame(
            parts, one, table, views, one * in_view, 250, lambda k: None, lambda k: None, lambda: image
        )

    monkeypatch.setattr(segmenter.session, "refine", refine)
    found = segmenter(image)
    assert len(found) > 200
    assert found.stage_ms["crowds"] > 0
    assert set(found.class_id.tolist()) == {15}
    segmenter.max_instances = 50
    assert np.array_equal(np.sort(segmenter(image).area)[::-1], np.sort(found.area)[::-1][:50])
    segmenter.things = (1,)
    monkeypatch.setattr(segmenter.refiner, "refine", None)  # crowds of other classes are not refined again
    assert not len(segmenter(image))


def use_onnx_runtime(gpu, monkeypatch):
    """Run segmenters with ONNX Runtime on the emulated GPU; return the semantic network's session."""
    gpu.may_capture = False  # this is the CPU provider, which enqueues nothing
    emulated_gpu.install(monkeypatch, gpu)
    session = onnx_cuda_session.OnnxGpuSession(PLAIN_MODEL, 1, ["CPUExecutionProvider"], device="cpu")
    monkeypatch.setattr("tfiseg.runtime.segmenter.open_session", lambda *_: session)
    monkeypatch.setattr(instance_onnx.OnnxInstanceSession, "on_gpu", True)
    monkeypatch.setattr(instance_onnx, "BoundContext", partial(BoundContext, device="cpu"))
    return session


def test_onnx_runtime_uses_our_memory(gpu, monkeypatch):
    use_onnx_runtime(gpu, monkeypatch)
    segmenter = tfiseg.Segmenter(refine="components", outlines=False)
    found = [segmenter(crowd()) for _ in range(2)]
    monkeypatch.undo()
    expected = tfiseg.Segmenter(refine="components", outlines=False, threads=1)(crowd())
    for one in found:
        assert agreement(one, expected) > 0.98


def test_steps_on_the_cpu_are_logged(gpu, monkeypatch, tmp_path, instance_engine, caplog):
    caplog.set_level(logging.WARNING, "tfiseg")
    emulated_gpu.install(monkeypatch, gpu)
    engine = engine_of(PLAIN_MODEL, tmp_path)
    expected = tfiseg.Segmenter(PLAIN_MODEL, refine="components", outlines=False, threads=1)(crowd())
    assert agreement(tfiseg.Segmenter(engine, refine="components", outlines=False)(crowd()), expected) == 1
    assert "components are refined on the CPU" in caplog.text
    assert "tfiseg-instance.onnx runs there; `tfiseg build` makes an engine of it" in caplog.text
    thorough = tfiseg.Segmenter(
        engine, refine="components", instance_model=instance_engine, thorough=True, outlines=False
    )
    assert len(thorough(crowd()))
    assert "exhaustive refinement is planned step by step" in caplog.text
    with pytest.raises(
        tfiseg.InputError, match=r"refined on the CPU .exhaustive refinement .*: pass a frame in host memory"
    ):
        thorough(emulated_gpu.DeviceArray(crowd()))
    with pytest.raises(
        tfiseg.InputError, match=r"tfiseg-voc21.onnx runs on the CPU: pass a frame in host memory"
    ):
        tfiseg.Segmenter()(emulated_gpu.DeviceArray(crowd()))


def test_an_engine_with_a_small_batch_is_not_in_the_graph(
    gpu, monkeypatch, tmp_path, instance_engine, caplog
):
    emulated_gpu.install(monkeypatch, gpu, views=4)
    segmenter = tfiseg.Segmenter(
        engine_of(PLAIN_MODEL, tmp_path), refine="components", instance_model=instance_engine, outlines=False
    )
    assert "takes 4 views at once, not 16: build it without --batch, or set max_views" in caplog.text
    expected = tfiseg.Segmenter(PLAIN_MODEL, refine="components", outlines=False, threads=1)(crowd())
    assert agreement(segmenter(crowd()), expected) == 1
    engines = {"model": engine_of(PLAIN_MODEL, tmp_path), "instance_model": instance_engine}
    few = tfiseg.Segmenter(**engines, refine="components", max_views=4, outlines=False)
    found = few(emulated_gpu.DeviceArray(crowd()))
    assert agreement(found, expected) > 0.98
    with pytest.raises(tfiseg.InputError, match="max_views must be at least 1"):
        tfiseg.Segmenter(refine="components", max_views=0)
    with pytest.raises(tfiseg.InputError, match="has no effect without"):
        tfiseg.Segmenter(max_views=4)


def test_compiled_kernels_of_both_networks_are_saved(segmenter, tmp_path):
    segmenter(crowd())
    assert len(list((tmp_path / "cache").rglob("*.cache"))) == 2


def test_instance_engine_equals_its_network(gpu, monkeypatch, instance_engine):
    emulated_gpu.install(monkeypatch, gpu)
    engine, network = open_instance_session(instance_engine), open_instance_session(threads=1)
    rng = np.random.default_rng(0)
    views, masks = (
        rng.integers(0, 256, (11, 192, 192, 3)).astype(np.uint8),
        rng.integers(0, 2, (11, 192, 192)).astype(np.uint8),
    )
    for foreground in (False, True):
        found, expected = engine.infer(views, masks, foreground), network.infer(views, masks, foreground)
        for name in ("displacement", "affinity", "boundary", "foreground"):
            if getattr(expected, name) is not None:
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
    assert engine.can_refine_masks
    assert engine.min_area is None
    engine.close()
    assert not gpu.memory


def test_an_engine_of_another_network_is_rejected(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    with pytest.raises(tfiseg.ModelError, match="is no engine of an instance network"):
        open_instance_session(engine_of(PLAIN_MODEL, tmp_path))


def agreement(found, expected):
    """Return the panoptic quality of one result compared with another."""
    total, matched = 0.0, 0
    for i in range(len(expected)):
        mask = expected.mask(i)
        numbers, counts = np.unique(found.label_map[mask], return_counts=True)
        for number, count in zip(numbers, counts, strict=True):
            iou = 0 if not number else count / (mask.sum() + found.area[number - 1] - count)
            if iou > 0.5:
                total, matched = total + iou, matched + 1
    return total / max(1, matched + (len(found) - matched + len(expected) - matched) / 2)


@pytest.mark.shared
def test_photos_of_people(segmenter, gpu, shared):
    segmenter.min_score = 0.3
    on_cpu = tfiseg.Segmenter(PLAIN_MODEL, refine="components", outlines=False, threads=1)
    by_shape = tfiseg.Segmenter(PLAIN_MODEL, threads=1)
    cut = 0
    for path in sorted((shared / "data" / "eval" / "pennfudan" / "images").iterdir())[:4]:
        image = cv2.resize(cv2.imread(str(path)), (320, 256), interpolation=cv2.INTER_AREA)
        found = segmenter(image)
        assert agreement(found, on_cpu(image)) > 0.97
        cut += agreement(found, by_shape(image)) < 0.9
    assert cut
