"""Test samples/triton_client.py with a server of Triton's protocol on a repository of `tfiseg triton`."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from skimage import data
from tfiseg.runtime.networks.onnx_session import OnnxSession

pytest.importorskip("onnx")
grpc = pytest.importorskip("grpc")
pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "triton_client.py"
PHOTO = np.ascontiguousarray(data.astronaut()[:, :, ::-1])


class Server(pb2_grpc.GRPCInferenceServiceServicer):
    """A server of one model; with ``segmenter``, it behaves like an engine with the clustering plugin."""

    def __init__(self, folder, segmenter=None):
        self.folder, self.segmenter = folder, segmenter
        self.session = OnnxSession(folder / "1" / "model.onnx")

    def ModelConfig(self, request, context):
        from google.protobuf import text_format

        if request.name != self.folder.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {request.name}")
        reply = pb2.ModelConfigResponse()
        text_format.Parse((self.folder / "config.pbtxt").read_text(encoding="utf-8"), reply.config)
        return reply

    def ModelInfer(self, request, context):
        assert [(t.name, t.datatype) for t in request.inputs] == [("frame", "UINT8")]
        image = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)[0]
        reply = pb2.ModelInferResponse(model_name=request.model_name)
        for name, value in (self.cluster(image) if self.segmenter else self.session.infer(image)).items():
            datatype = {"float32": "FP32", "int32": "INT32"}[str(value.dtype)]
            reply.outputs.add(name=name, datatype=datatype, shape=value.shape)
            reply.raw_output_contents.append(np.ascontiguousarray(value).tobytes())
        return reply

    def cluster(self, image):
        found = self.segmenter(image)
        table = np.zeros((1, 256, 10), np.float32)
        for k, i in enumerate(found):
            table[0, k] = [i.class_id, i.score, *i.box_xyxy, i.area, *i.centroid_xy, 0]
        labels, classes = found.label_map[None], found.semantic_map[None].astype(np.int32)
        return {
            "label_map": labels,
            "semantic_map": classes,
            "count": np.array([len(found)], np.int32),
            "table": table,
        }


@pytest.fixture(params=["network", "engine"])
def address(request, tmp_path):
    from tfiseg.export.triton import write_repository

    write_repository(PLAIN_MODEL, tmp_path / "models", "people")
    server = grpc.server(ThreadPoolExecutor(2))
    segmenter = tfiseg.Segmenter(PLAIN_MODEL, min_score=0) if request.param == "engine" else None
    if segmenter is not None:
        segmenter.score_rule = None  # the plugin's table has mean class probabilities
    pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        Server(tmp_path / "models" / "people", segmenter), server
    )
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(0)


def run_client(*args):
    return subprocess.run(
        [sys.executable, SAMPLE, *map(str, args)], capture_output=True, text=True, timeout=120
    )


def test_the_client_equals_the_segmenter(address, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.png"), PHOTO)
    done = run_client(
        tmp_path / "photo.png", "--model", "people", "--url", address, "--out", tmp_path / "view.png"
    )
    assert done.returncode == 0, done.stderr
    expected = [
        f"{i.class_name}, score {i.score:.2f}, {i.area} px" for i in tfiseg.Segmenter(PLAIN_MODEL)(PHOTO)
    ]
    assert expected
    assert [line.split(": ")[1].split(", box")[0] for line in done.stdout.splitlines()] == expected
    assert cv2.imread(str(tmp_path / "view.png")).shape == PHOTO.shape


def test_a_model_that_the_server_does_not_have(address):
    done = run_client("synthetic", "--frames", 1, "--model", "cats", "--url", address)
    assert done.returncode == 1
    assert "unknown model cats" in done.stderr
