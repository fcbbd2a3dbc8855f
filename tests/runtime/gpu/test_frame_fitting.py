"""Preprocessing by our kernel, in sessions on an emulated GPU."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.plugins.native import fit_frame
from tfiseg.runtime.gpu.frame_fitting import FittedFrame, can_fit_frames
from tfiseg.runtime.networks import native_preprocessing, onnx_session
from tfiseg.runtime.networks.onnx_cuda_session import OnnxGpuSession
from tfiseg.runtime.networks.session import DEFAULT_MODEL

sys.path.insert(0, str(Path(__file__).parents[1]))
import emulated_gpu
from emulated_engines import gpu, same

__all__ = ["gpu"]  # a fixture
SETTINGS = tfiseg.plugins.settings.ClusterSettings()


@pytest.fixture
def split(gpu, monkeypatch):
    """Split preprocessing off, which the fixture ``gpu`` prevents."""
    monkeypatch.setattr(onnx_session, "split_preprocessing", native_preprocessing.split_preprocessing)


def photo(height=120, width=160, seed=0):
    """Return a frame with a person-sized shape in noise."""
    frame = np.random.default_rng(seed).integers(0, 120, (height, width, 3), np.uint8)
    frame[height // 4 : -height // 8, width // 3 : width // 2] += 100
    return frame


def open_on_gpu(model):
    return OnnxGpuSession(model, 1, ["CPUExecutionProvider"], device="cpu")


def test_fitted_frame_equals_the_cpu(gpu, monkeypatch):
    emulated_gpu.install(monkeypatch, gpu)
    cuda = tfiseg.runtime.gpu.cuda.Cuda()
    with cuda.current():
        frame, stream = photo(50, 70), cuda.stream()
        memory = cuda.allocate(frame.nbytes)
        cuda.upload(int(memory), frame, stream)
        fitted = FittedFrame(cuda, int(memory), (50, 70), (32, 48))
        fitted.enqueue(stream.handle)
        found = np.empty(fitted.shape, np.float32)
        cuda.download(found, int(fitted.memory), stream)
    assert np.array_equal(found[0], fit_frame(frame, (32, 48)))


def test_error_of_the_kernel_names_the_step(gpu, monkeypatch):
    emulated_gpu.install(monkeypatch, gpu)
    cuda = tfiseg.runtime.gpu.cuda.Cuda()
    monkeypatch.setattr(emulated_gpu.OperatorLibrary, "tfiseg_fit_frame_cuda", lambda *_: 2)
    with cuda.current():
        fitted = FittedFrame(cuda, 0, (50, 70), (32, 48))
        with pytest.raises(
            tfiseg.EngineError, match="preprocessing on the GPU failed: a shape is out of range"
        ):
            fitted.enqueue(1)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("model", [PLAIN_MODEL, DEFAULT_MODEL])
def test_instances_equal_the_cpu(gpu, monkeypatch, model):
    emulated_gpu.install(monkeypatch, gpu)
    session = open_on_gpu(model)
    monkeypatch.setattr("tfiseg.runtime.segmenter.open_session", lambda *_: session)
    segmenter = tfiseg.Segmenter(model)
    monkeypatch.undo()
    emulated_gpu.install(monkeypatch, gpu)
    expected = tfiseg.Segmenter(model, threads=1)
    assert session.network.preprocessing.input_name == "pre.small"
    for size in ((120, 160), (96, 128), (120, 160), (120, 160)):
        same(segmenter(photo(*size)), expected(photo(*size)))
        same(segmenter(emulated_gpu.DeviceArray(photo(*size))), expected(photo(*size)))
    session.close()
    assert not gpu.memory


@pytest.mark.usefixtures("split")
def test_frame_is_fitted_between_upload_and_network(gpu, monkeypatch):
    emulated_gpu.install(monkeypatch, gpu)
    session = open_on_gpu(PLAIN_MODEL)
    order = []
    monkeypatch.setattr(gpu, "enqueue", recorder(gpu.enqueue, order))
    context = session._all_lanes[0]._context
    execute = context.execute_async_v3
    monkeypatch.setattr(
        context, "execute_async_v3", lambda stream: order.append("network") or execute(stream)
    )
    first = session.cluster(photo(), SETTINGS)  # runs once without graphs, and is then captured
    steps = ["upload", "tfiseg_fit_frame_cuda", "network", "tfiseg_cluster_cuda"]
    assert [step for step in order if step in steps][:4] == steps
    assert gpu.captures == 2  # upload and preprocessing before the network; the operator and copies after it
    order.clear()
    assert np.array_equal(session.cluster(photo(), SETTINGS).label_map, first.label_map)
    assert order == ["network"]  # nothing but the network is enqueued step by step
    assert gpu.launches == 2
    order.clear()
    session.cluster(emulated_gpu.DeviceArray(photo()), SETTINGS)
    assert "tfiseg_fit_frame_cuda" in order


def recorder(enqueue, order):
    """Return an ``enqueue`` that notes the name of the function that calls it."""

    def recorded(stream_handle, work):
        order.append(sys._getframe(1).f_code.co_name)
        enqueue(stream_handle, work)

    return recorded


@pytest.mark.usefixtures("split")
def test_without_the_library_the_network_preprocesses(gpu, monkeypatch):
    monkeypatch.delenv("TFISEG_PLUGIN", raising=False)
    emulated_gpu.install(monkeypatch, gpu, operator=False)
    session = open_on_gpu(PLAIN_MODEL)
    assert session.network.preprocessing is None
    found = session.infer(photo())["logits"]
    np.testing.assert_allclose(
        found, tfiseg.Segmenter(PLAIN_MODEL, threads=1).session.infer(photo())["logits"], atol=1e-3
    )


@pytest.mark.usefixtures("split")
def test_with_an_older_library_the_network_preprocesses(gpu, monkeypatch):
    emulated_gpu.install(monkeypatch, gpu)
    assert can_fit_frames()
    monkeypatch.delattr(emulated_gpu.OperatorLibrary, "tfiseg_fit_frame_cuda")
    assert not can_fit_frames()
    session = open_on_gpu(PLAIN_MODEL)
    assert session.network.preprocessing is None
    assert session.cluster(photo(), SETTINGS).label_map.shape == (1, 120, 160)


def test_arguments_match_the_c_api(gpu, monkeypatch):
    """The emulated library hands them on to the CPU's function, which has the same ones but the stream."""
    emulated_gpu.install(monkeypatch, gpu)
    seen = []
    monkeypatch.setattr(
        emulated_gpu.OperatorLibrary, "tfiseg_fit_frame_cuda", lambda _self, *given: seen.extend(given) or 0
    )
    cuda = tfiseg.runtime.gpu.cuda.Cuda()
    with cuda.current():
        fitted = FittedFrame(cuda, 256, (50, 70), (32, 48))
        fitted.enqueue(7)
    assert [type(value) for value in seen] == [
        *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32) * 2,
        ctypes.c_void_p,
    ]
    assert [value.value for value in seen] == [256, 50, 70, int(fitted.memory), 32, 48, 7]
