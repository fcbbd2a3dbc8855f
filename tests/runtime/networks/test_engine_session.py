"""Engines on an emulated GPU: instances are bit-exact with ONNX Runtime."""

import gc
import logging
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from skimage import data
from tfiseg.runtime.networks import engine_file
from tfiseg.runtime.networks.open_session import open_session
from tfiseg.runtime.networks.session import DEFAULT_MODEL

sys.path.insert(0, str(Path(__file__).parents[1]))
import emulated_gpu
from emulated_engines import MACHINE, engine_of, gpu, same

__all__ = ["gpu"]  # a fixture


def picture(height=120, width=160):
    import cv2

    return cv2.resize(data.astronaut()[:, :, ::-1], (width, height), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("model", [PLAIN_MODEL, DEFAULT_MODEL])
def test_engine_equals_its_network(gpu, monkeypatch, tmp_path, model):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter, expected = tfiseg.Segmenter(engine_of(model, tmp_path)), tfiseg.Segmenter(model, threads=1)
    for size in ((120, 160), (120, 160), (96, 128), (120, 160), (120, 160)):
        same(segmenter(picture(*size)), expected(picture(*size)))
    assert len(segmenter(picture())) >= 1
    assert gpu.captures >= 2
    assert gpu.launches >= 1


def test_results_do_not_share_memory(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter, expected = (
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path)),
        tfiseg.Segmenter(PLAIN_MODEL, threads=1),
    )
    found = [segmenter(np.roll(picture(), 9 * k, 1)) for k in range(6)]
    for k, one in enumerate(found):  # compared at the end, after later frames
        same(one, expected(np.roll(picture(), 9 * k, 1)))
    assert gpu.launches >= 2


def test_two_threads_at_once(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter, expected = (
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path)),
        tfiseg.Segmenter(PLAIN_MODEL, threads=1),
    )
    pictures = [np.roll(picture(), 7 * k, 1) for k in range(12)]
    source = [tfiseg.Frame(p, k, 1) for k, p in enumerate(pictures)]

    class Pictures(tfiseg.Source):
        def _read(self, index):
            return source[index] if index < len(source) else None

    with tfiseg.Pipeline(Pictures("pictures"), segmenter, workers=2) as pipeline:
        results = list(pipeline)
    assert [r.frame.index for r in results] == list(range(12))
    for result in results:
        same(result.instances, expected(result.frame))
    assert not getattr(gpu.current, "depth", 0)


def test_a_frame_on_the_gpu(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter = tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))
    for _ in range(3):
        same(segmenter(emulated_gpu.DeviceArray(picture())), segmenter(picture()))
    assert gpu.waits == ["all"] * 3  # the frame names no stream
    segmenter(emulated_gpu.DeviceArray(picture(), stream=None))
    assert len(gpu.waits) == 3  # the frame is complete
    segmenter(emulated_gpu.DeviceArray(picture(), stream=77))
    assert gpu.waits[3:] == [77]
    with pytest.raises(tfiseg.EngineError, match="must be uint8"):
        segmenter(emulated_gpu.DeviceArray(picture().astype(np.float32)))


def test_settings_apply_to_the_next_frame(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter, expected = (
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path)),
        tfiseg.Segmenter(PLAIN_MODEL, threads=1),
    )
    same(segmenter(picture()), expected(picture()))
    for one in (segmenter, expected):
        one.min_area = 5000
    same(segmenter(picture()), expected(picture()))
    for one in (segmenter, expected):
        one.things = (1,)
    same(segmenter(picture()), expected(picture()))
    assert len(segmenter(picture())) == 0


def test_failed_capture_is_logged_once(gpu, monkeypatch, tmp_path, caplog):
    gpu.may_capture = False
    emulated_gpu.install(monkeypatch, gpu)
    segmenter, expected = (
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path)),
        tfiseg.Segmenter(PLAIN_MODEL, threads=1),
    )
    for size in ((120, 160), (120, 160), (96, 128)):
        same(segmenter(picture(*size)), expected(picture(*size)))
    assert (
        caplog.text.count(
            "runs without CUDA graphs: cuStreamBeginCapture_v2 failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        )
        == 1
    )
    assert gpu.launches == 0


def test_clustering_on_the_cpu_without_the_library(gpu, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "tfiseg")
    monkeypatch.delenv("TFISEG_PLUGIN", raising=False)
    emulated_gpu.install(monkeypatch, gpu, operator=False)
    segmenter, expected = (
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path)),
        tfiseg.Segmenter(PLAIN_MODEL, threads=1),
    )
    same(segmenter(picture()), expected(picture()))
    assert "clustering runs on the CPU" in caplog.text
    assert "tfiseg plugin build" in caplog.text


def test_refinement_with_an_engine(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    path = engine_of(PLAIN_MODEL, tmp_path)
    same(
        tfiseg.Segmenter(path, refine="components", threads=1)(picture()),
        tfiseg.Segmenter(PLAIN_MODEL, refine="components", threads=1)(picture()),
    )


def test_several_passes_with_an_engine(gpu, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "tfiseg")
    emulated_gpu.install(monkeypatch, gpu)
    several = {"scales": (1, 1.5), "flip": True}
    segmenter = tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path), **several)
    assert "average class maps on the CPU" in caplog.text
    same(segmenter(picture()), tfiseg.Segmenter(PLAIN_MODEL, threads=1, **several)(picture()))
    with pytest.raises(tfiseg.InputError, match=r"a window of this frame at scale 8: .*got 20x20"):
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path), scales=[8])(picture())


def test_memory_is_freed(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter = tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))
    for k in range(6):
        segmenter(picture(64 + 8 * k, 128))
    in_use = len(gpu.memory)
    for k in range(6):
        segmenter(picture(64 + 8 * k, 128))
    assert len(gpu.memory) == in_use  # only a few sizes are kept
    segmenter.session.close()
    assert not gpu.memory
    assert not gpu.graphs


def test_memory_of_a_session_that_is_not_closed_is_freed(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter = tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))
    segmenter(picture())
    assert gpu.memory
    assert gpu.graphs
    del segmenter
    gc.collect()
    assert not gpu.memory
    assert not gpu.graphs


def test_rtx_saves_compiled_kernels(gpu, monkeypatch, tmp_path):
    trt = emulated_gpu.install(monkeypatch, gpu)
    path = engine_of(PLAIN_MODEL, tmp_path)
    with tfiseg.Segmenter(path) as segmenter:
        segmenter(picture())
    assert trt.caches[0].content == b"empty warm"
    assert trt.configs[0].dynamic_shapes_kernel_specialization_strategy == 1
    tfiseg.Segmenter(path)
    assert trt.caches[1].content == b"empty warm"


def test_frames_of_unsupported_sizes(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    segmenter = tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))
    with pytest.raises(
        tfiseg.InputError, match=r"takes frames of 32x32 to 512x640.*got 600x640.*--shape-max"
    ):
        segmenter(np.zeros((600, 640, 3), np.uint8))


def test_a_plan_that_tensorrt_cannot_load(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu, fails=True)
    with pytest.raises(tfiseg.EngineError, match=r"can't load .*net.engine: the plan is of another world"):
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))


def test_missing_pycuda_error_names_the_package(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(tfiseg.MissingDependencyError, match="pip install pycuda"):
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))


def test_tensorrt_never_gets_an_engine_for_another_machine(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu, fails=True)
    monkeypatch.setattr(engine_file, "this_machine", lambda: replace(MACHINE, tensorrt_rtx="1.5.0"))
    with pytest.raises(tfiseg.EngineError, match=r"the engine has 1.7.1.116, this machine 1.5.0"):
        tfiseg.Segmenter(engine_of(PLAIN_MODEL, tmp_path))


def test_an_engine_that_contains_the_operator(gpu, monkeypatch, tmp_path):
    """Its label map has a grid of its own and is upsampled to the frame's size."""
    from tfiseg.runtime.networks.gpu_session import upsample_clustering

    class_map = np.zeros((30, 40), np.uint8)
    class_map[5:15, 5:15] = class_map[18:28, 20:36] = 3
    small = tfiseg.cluster(class_map, min_area=0)
    table = np.zeros((len(small), 10), np.float32)
    table[:, 0], table[:, 1], table[:, 2:6], table[:, 6], table[:, 7:9] = (
        3,
        1,
        small.box_xyxy,
        small.area,
        small.centroid_xy,
    )
    label_map, semantic_map, large = upsample_clustering(
        small.label_map, small.semantic_map, table, (120, 160)
    )
    expected = tfiseg.cluster(class_map.repeat(4, 0).repeat(4, 1), min_area=0)
    assert np.array_equal(label_map, expected.label_map)
    assert np.array_equal(semantic_map, expected.semantic_map)
    assert np.array_equal(large[:, 2:6], expected.box_xyxy)
    assert np.array_equal(large[:, 6], expected.area)


@pytest.mark.parametrize("model", [PLAIN_MODEL, DEFAULT_MODEL])
def test_onnx_runtime_uses_our_memory(gpu, monkeypatch, model):
    """The CPU provider binds to addresses as CUDA's does. It enqueues nothing, so nothing is captured."""
    from tfiseg.runtime.networks.onnx_cuda_session import OnnxGpuSession

    gpu.may_capture = False
    emulated_gpu.install(monkeypatch, gpu)
    session = OnnxGpuSession(model, 1, ["CPUExecutionProvider"], device="cpu")
    monkeypatch.setattr("tfiseg.runtime.segmenter.open_session", lambda *_: session)
    segmenter = tfiseg.Segmenter(model)
    monkeypatch.undo()
    emulated_gpu.install(monkeypatch, gpu)
    expected = tfiseg.Segmenter(model, threads=1)
    for size in ((120, 160), (96, 128), (120, 160)):
        same(segmenter(picture(*size)), expected(picture(*size)))
    session.close()
    assert not gpu.memory


def test_cuda_without_pycuda_clusters_on_the_cpu(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(tfiseg.ModelError, match="CUDAExecutionProvider"):  # from the session on the CPU
        tfiseg.Segmenter(providers=["CUDAExecutionProvider"])
    assert "clustering runs on the CPU: PyCUDA, which this GPU backend needs" in caplog.text


def test_onnx_runtime_is_never_captured(gpu, monkeypatch):
    """Two of its sessions in one graph end the process, so only operator and copies are captured."""
    from tfiseg.runtime.networks.onnx_cuda_session import OnnxGpuSession

    emulated_gpu.install(monkeypatch, gpu)
    session = OnnxGpuSession(PLAIN_MODEL, 1, ["CPUExecutionProvider"], device="cpu")
    runs = []
    eager = session._all_lanes[0]._context.execute_async_v3

    def execute(stream_handle):
        assert gpu.streams[stream_handle].recorded is None, "ONNX Runtime runs while the stream is captured"
        runs.append(stream_handle)
        return eager(stream_handle)

    monkeypatch.setattr(session._all_lanes[0]._context, "execute_async_v3", execute)
    settings = tfiseg.plugins.settings.ClusterSettings()
    expected = session.cluster(picture(), settings)
    for _ in range(3):
        assert np.array_equal(session.cluster(picture(), settings).label_map, expected.label_map)
    assert len(runs) == 4
    assert gpu.captures == 2  # before the network, and after it
    assert gpu.launches == 6


@pytest.mark.parametrize("kind", ["engine", "onnx"])
def test_alternating_frame_sizes_keep_their_graphs(gpu, monkeypatch, tmp_path, kind):
    from tfiseg.runtime.networks.onnx_cuda_session import OnnxGpuSession

    emulated_gpu.install(monkeypatch, gpu)
    if kind == "onnx":
        session = OnnxGpuSession(PLAIN_MODEL, 1, ["CPUExecutionProvider"], device="cpu")
    else:
        session = open_session(engine_of(PLAIN_MODEL, tmp_path))
    settings = tfiseg.plugins.settings.ClusterSettings()
    expected = tfiseg.Segmenter(PLAIN_MODEL, threads=1)
    for _ in range(2):  # one run and one capture for each size
        for size in ((120, 160), (96, 128)):
            for _ in range(2):
                session.cluster(picture(*size), settings)
    captures = gpu.captures
    for _ in range(3):
        for size in ((120, 160), (96, 128)):
            found = session.cluster(picture(*size), settings)
            assert np.array_equal(found.semantic_map[0], expected(picture(*size)).semantic_map)
    assert gpu.captures == captures
    session.close()
    assert not gpu.memory


def test_a_closed_session_rejects_frames(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    session = open_session(engine_of(PLAIN_MODEL, tmp_path))
    lanes = [session._lanes.take() for _ in range(2)]
    refused = []

    def run():
        with pytest.raises(tfiseg.EngineError, match="was closed"):
            session.infer(picture())
        refused.append(True)

    waiting = threading.Thread(target=run)
    waiting.start()
    while not session._lanes._waiting:
        time.sleep(0.001)
    closing = threading.Thread(target=session.close)
    closing.start()
    waiting.join(10)
    for lane in lanes:
        session._lanes.give(lane)
    closing.join(10)
    assert refused == [True]
    assert not closing.is_alive()
    run()
    session.close()


def test_the_primary_context_is_one_object(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    for name in ("a.engine", "b.engine"):
        open_session(engine_of(PLAIN_MODEL, tmp_path, name))
    assert gpu.contexts == 1
