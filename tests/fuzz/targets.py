"""The fuzzed inputs: for each kind of file, valid content and an action that reads changed content."""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import tfiseg
from mutations import mutated, mutated_json
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, features
from tfiseg.calibration.quantize import Calibration
from tfiseg.calibration.rounding import QuantizedWeights
from tfiseg.export.frame_graph import PixelFormat, fixed_size_nodes, frame_value, long_side_nodes, pixel_nodes
from tfiseg.runtime.inspect.model_file import inspect_file
from tfiseg.runtime.inspect.model_text import inspection_text
from tfiseg.runtime.networks.engine_file import sidecar_path, write_engine
from tfiseg.runtime.sources.synthetic import SyntheticCamera

Action = Callable[[], object]
MAX_FRAMES = 500  # limit; the valid video has 20
FRAME = np.asarray(next(iter(SyntheticCamera((96, 128)))).image)
CLASSES = ["background", "person", "car"]
METADATA = {
    "format_version": 1,
    "name": "tiny",
    "class_names": CLASSES,
    "things": [1, 2],
    "stride": 4,
    "long_side_px": 64,
    "clustering": {
        "split": "auto",
        "min_area": 1,
        "affinity_offsets": [[0, 1], [1, 0]],
        "affinity_stride": 1,
        "sharpen": 2,
        "merge_rule": [0.1] * 20,
        "part_rule": [0.1] * 20,
        "score_rule": [0.1, 0.2, 0.3, -0.4],
    },
    "training_data": "none",
    "licence": "Apache-2.0",
}


def network(metadata: bytes | str = json.dumps(METADATA), fixed: bool = False) -> onnx.ModelProto:
    """Return a tiny network in tfiseg's format, with instance heads."""
    rng = np.random.default_rng(0)
    before, constants = fixed_size_nodes((48, 64)) if fixed else long_side_nodes(64, 32)
    pixels, more = pixel_nodes(PixelFormat())
    outputs = {"logits": len(CLASSES), "affinity": 2, "boundary": 1}
    nodes, weights = [*before, *pixels], [*constants, *more]
    for name, channels in outputs.items():
        weight = rng.normal(0, 1, (channels, 3, 4, 4)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        raw = name if name == "logits" else f"{name}.raw"
        nodes.append(helper.make_node("Conv", ["image", f"{name}.weight"], [raw], strides=[4, 4]))
        if raw != name:
            nodes.append(helper.make_node("Sigmoid", [raw], [name]))
    outputs_info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "h", "w"])
        for name, channels in outputs.items()
    ]
    graph = helper.make_graph(nodes, "tiny", [frame_value()], outputs_info, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key = "tfiseg"
    entry.value = metadata.decode("utf-8", "replace") if isinstance(metadata, bytes) else metadata
    return model


def _segment(path: Path, quality: str = "balanced") -> str:
    segmenter = tfiseg.Segmenter(path, threads=1, quality=quality, min_score=0)
    found = segmenter(FRAME)
    found.draw(FRAME)
    json.dumps(found.to_dict(), allow_nan=False)
    return f"{len(found)} instances"


def _inspect(path: Path) -> str:
    return inspection_text(inspect_file(path), True)[:20]


def models(folder: Path) -> Callable[[int], Action]:
    """Return a maker of model files with changed bytes."""
    good = [network().SerializeToString(), network(fixed=True).SerializeToString()]

    def make(seed: int) -> Action:
        rng, path = np.random.default_rng(seed), folder / "m.onnx"
        path.write_bytes(mutated(rng, good[seed % 2]))
        if seed % 5 == 0:
            return lambda: _inspect(path)
        return lambda: _segment(path, "fast" if seed % 3 == 0 else "balanced")

    return make


def metadata(folder: Path) -> Callable[[int], Action]:
    """Return a maker of models with changed metadata."""

    def make(seed: int) -> Action:
        rng, path = np.random.default_rng(seed), folder / "m.onnx"
        path.write_bytes(network(mutated_json(rng, METADATA)).SerializeToString())
        if seed % 5 == 0:
            return lambda: _inspect(path)
        return lambda: _segment(path, "fast" if seed % 3 == 0 else "balanced")

    return make


def records(folder: Path) -> Callable[[int], Action]:
    """Return a maker of engines with changed records."""
    engine = folder / "e.engine"
    built_with = {
        "flavour": "tensorrt",
        "version": "10.3.0",
        "platform": "linux-x86_64",
        "compute_capability": "8.9",
        "gpu": "x",
    }
    shapes = {"min_hw": [240, 320], "opt_hw": [480, 640], "max_hw": [1080, 1920], "batch": 1}
    write_engine(
        engine,
        b"not a plan" * 100,
        {
            "built_from": {
                "onnx": "a.onnx",
                "onnx_sha256": "0" * 64,
                "command": "tfiseg build a.onnx",
                "shapes": shapes,
            },
            "built_with": built_with,
            "precision": {
                "asked": "fp16",
                "layers": {"fp16": 3},
                "kept_high": ["a"],
                "proved_by": {"log": 3},
            },
            "gate": {"passed": True, "label_agreement": 99.9, "PQ": 99.1, "frames": 8, "reference": "fp32"},
            "model": METADATA,
            "plugin": {"name": "p", "version": "1", "namespace": "tfiseg", "sha256": "0" * 64},
        },
    )
    good = json.loads(sidecar_path(engine).read_text())

    def inspect_and_open() -> str:
        text = _inspect(engine)
        return f"{text} {tfiseg.Segmenter(engine)}"

    def make(seed: int) -> Action:
        sidecar_path(engine).write_bytes(mutated_json(np.random.default_rng(seed), good))
        return inspect_and_open

    return make


def caches(folder: Path) -> Callable[[int], Action]:
    """Return a maker of calibration caches with changed bytes."""
    path = folder / "c.npz"
    layer = QuantizedWeights(np.ones((4, 3, 3, 3), np.int8), np.ones(4, np.float32), np.zeros(4, np.float32))
    key = {"version": "1", "method": "minmax"}
    Calibration(key, {"a": np.ones(8, np.float32)}, {"a": (0.0, 1.0)}, {"layer": layer}).save(path)
    good = path.read_bytes()

    def make(seed: int) -> Action:
        path.write_bytes(mutated(np.random.default_rng(seed), good))
        return lambda: len(Calibration.load(path).ranges)

    return make


def _encoded(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def pictures(folder: Path) -> Callable[[int], Action]:
    """Return a maker of images of all formats with changed bytes."""
    image = Image.fromarray(FRAME[..., ::-1].copy())
    grey = Image.fromarray(FRAME[..., 0].astype(np.uint16) * 257)
    good = {
        "jpg": _encoded(
            image,
            format="JPEG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
        ),
        "png": _encoded(image, format="PNG"),
        "webp": _encoded(image, format="WEBP"),
        "tif": _encoded(image, format="TIFF", compression="tiff_lzw"),
        "bmp": _encoded(image, format="BMP"),
        "16.png": _encoded(grey, format="PNG"),
        "p.png": _encoded(image.convert("P"), format="PNG"),
        "ppm": _encoded(image, format="PPM"),
        **({"avif": _encoded(image, format="AVIF")} if features.check("avif") else {}),
        **({"jp2": _encoded(image, format="JPEG2000")} if features.check("jpg_2000") else {}),
    }
    names = [*good]

    def make(seed: int) -> Action:
        name = names[seed % len(names)]
        path = folder / f"p.{name}"
        path.write_bytes(mutated(np.random.default_rng(seed), good[name], [(0, 300)]))

        def read() -> int:
            total = 0
            for frame in tfiseg.open_source(str(path)):
                assert frame.image.dtype == np.uint8
                assert frame.image.ndim == 3
                total += frame.image.size
            return total

        return read

    return make


def _video(path: Path, codec: str) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        if codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        for _, frame in zip(range(20), SyntheticCamera((120, 160)), strict=False):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="bgr24")))
        container.mux(stream.encode())
    return path.read_bytes()


def videos(folder: Path) -> Callable[[int], Action]:
    """Return a maker of videos in five containers with changed bytes."""
    kinds = (
        ("v.mp4", "libx264"),
        ("v.mkv", "libx264"),
        ("v.ts", "mpeg2video"),
        ("v.avi", "mpeg4"),
        ("v.webm", "libvpx"),
    )
    good = {name: _video(folder / name, codec) for name, codec in kinds}
    names = [*good]

    def make(seed: int) -> Action:
        name = names[seed % len(names)]
        data, path = good[name], folder / f"fuzz-{name}"
        spans = [(0, 1500), (0, len(data)), (max(0, len(data) - 1500), len(data))]
        path.write_bytes(mutated(np.random.default_rng(seed), data, spans))

        def read() -> int:
            count = 0
            with tfiseg.open_source(str(path)) as source:
                for _ in source:
                    count += 1
                    if count > MAX_FRAMES:
                        raise RuntimeError(f"more than {MAX_FRAMES} frames of 20")
            return count

        return read

    return make


def checkpoints(folder: Path) -> Callable[[int], Action]:
    """Return a maker of checkpoints with changed bytes (needs torch)."""
    import torch
    from tfiseg.export.checkpoint import read_checkpoint

    path = folder / "c.pt"
    torch.save({"recipe": {"classes": 3, "backbone": "lite0"}, "average": {"w": torch.ones(4, 3)}}, path)
    good = path.read_bytes()

    def make(seed: int) -> Action:
        path.write_bytes(mutated(np.random.default_rng(seed), good))
        return lambda: len(read_checkpoint(path, "a checkpoint"))

    return make


def prepare() -> None:
    """Import the modules of the children once, and suppress warnings about damaged files."""
    logging.getLogger("tfiseg").setLevel(logging.CRITICAL)
    for module in ("onnxruntime", "tfiseg.runtime.segmenter", "tfiseg.plugins.native"):
        importlib.import_module(module)
