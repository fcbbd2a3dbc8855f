"""Test that every option has an effect or raises an error, with every kind of model."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import main
from tfiseg.errors import InputError
from tfiseg.runtime.networks.built_in_operator import BuiltInOperator
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.option_effects import check_built_in_operator, check_engine_options
from tfiseg.runtime.segmenter_settings import SegmenterSettings
from tfiseg.runtime.sources.synthetic import SyntheticCamera

sys.path.insert(0, str(Path(__file__).parent))
import emulated_gpu
from emulated_engines import engine_of, gpu, same

__all__ = ["gpu"]  # a fixture

OPERATOR = BuiltInOperator((1, 2), "auto", 300, 256, heads=True)


def check(**options):
    settings = SegmenterSettings(**options)
    check_built_in_operator(settings, OPERATOR, options.get("things", (1, 2)), "net.engine")


@pytest.mark.parametrize(
    "options",
    [{}, {"split": "auto"}, {"min_area": 300}, {"min_area": 500}, {"max_instances": 10}, {"things": (2,)}],
)
def test_options_that_the_operator_inside_an_engine_supports(options):
    check(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 0.5}, "splits by 'auto', not by 0.5"),
        ({"split": {1: 0.0}}, "splits by"),
        ({"min_area": 299}, "leaves out instances below 300 pixels, min_area is 299"),
        ({"max_instances": 257}, "gives at most 256 instances, max_instances is 257"),
        ({"things": (1, 3)}, r"clusters the classes \[1, 2\], not \[3\]"),
        ({"quality": "fast"}, "uses instance heads, not shape alone"),
        ({"refine": "shape"}, "uses instance heads"),
    ],
)
def test_options_that_the_operator_inside_an_engine_does_not_support(options, message):
    with pytest.raises(InputError, match=message + ".*--no-operator"):
        check(**options)


def test_operator_settings_are_read_from_the_record():
    model = {"things": [1], "clustering": {"min_area": 7, "merge_rule": [0.0]}}
    assert BuiltInOperator.from_record({"model": model}) == BuiltInOperator((1,), "auto", 7, 256, True)
    recorded = {"things": [2], "split": 0.5, "min_area": 9, "max_instances": 3, "heads": False}
    assert BuiltInOperator.from_record({"model": model, "operator": recorded}) == BuiltInOperator(
        (2,), 0.5, 9, 3, False
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_side_px": 512}, "long_side_px has no effect"),
        ({"providers": ["CUDAExecutionProvider"]}, "providers are"),
        ({"backend": "torch"}, "backend is"),
    ],
)
def test_options_of_onnx_models_are_refused_with_an_engine(options, message):
    check_engine_options(SegmenterSettings(model="net.onnx", **options))
    with pytest.raises(InputError, match=message):
        check_engine_options(SegmenterSettings(model="net.engine", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be one of 'cpu', 'cuda', got 'gpu'"),
        ({"backend": "pytorch"}, "got 'pytorch'. Did you mean 'torch'?"),
        ({"device": "cuda", "providers": ["CUDAExecutionProvider"]}, "providers replace device and backend"),
    ],
)
def test_device_and_backend_are_checked(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        SegmenterSettings(**options)


def test_the_device_chooses_the_provider():
    assert SegmenterSettings(device="cuda").onnx_providers == ("CUDAExecutionProvider",)
    assert SegmenterSettings(device="cuda", backend="torch").torch_device == "cuda"
    assert SegmenterSettings().torch_device is None


def test_fast_does_not_use_the_heads_of_an_engine(gpu, monkeypatch, tmp_path):
    emulated_gpu.install(monkeypatch, gpu)
    engine = engine_of(DEFAULT_MODEL, tmp_path)
    frame = next(iter(SyntheticCamera())).image
    with tfiseg.Segmenter(engine, quality="fast") as segmenter:
        fast = segmenter(frame)
    with tfiseg.Segmenter(engine) as segmenter:
        balanced = segmenter(frame)
        maps = segmenter.session.infer(frame)
    segmenter = tfiseg.Segmenter(DEFAULT_MODEL)
    segmenter.refine = "shape"
    same(fast, segmenter.cluster_maps(maps, frame.shape[:2]))
    segmenter.refine = "frame"
    same(balanced, segmenter.cluster_maps(maps, frame.shape[:2]))


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_an_engine_is_calibrated_as_its_network_is_without_heads(gpu, monkeypatch, tmp_path, quality):
    """Its heads stay in the engine; their score calibration was used for instances without them."""
    emulated_gpu.install(monkeypatch, gpu)
    rule = tfiseg.Segmenter(quality=quality).score_rule
    assert rule != tfiseg.Segmenter().score_rule
    with tfiseg.Segmenter(engine_of(DEFAULT_MODEL, tmp_path), quality=quality) as segmenter:
        assert segmenter.score_rule == rule


def test_a_fixed_split_needs_quality_fast():
    tfiseg.Segmenter(split=0.5, quality="fast")
    tfiseg.Segmenter(PLAIN_MODEL, split=0.5)  # it has no heads
    for options in ({}, {"quality": "best"}, {"refine": "components"}):
        with pytest.raises(InputError, match=r"split has no effect with refine=.* use quality=\"fast\""):
            tfiseg.Segmenter(split=0.5, **options)


def test_an_explicit_minimum_score_equal_to_the_default_is_kept():
    segmenter = tfiseg.Segmenter(PLAIN_MODEL)
    assert segmenter.score_rule is not None
    assert segmenter.min_score == 0.3
    image = next(iter(SyntheticCamera())).image
    found = segmenter(image)
    weak = tfiseg.Instances(**{**vars(found), "score": np.full(len(found), 0.4, np.float32)})
    assert len(segmenter.filter_instances(weak, found.size_hw, calibrated=False)) == 0
    segmenter.min_score = 0.3
    assert len(segmenter.filter_instances(weak, found.size_hw, calibrated=False)) == len(found) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": 0.5, "affinity": np.ones((14, 8, 8))}, "split has no effect"),
        ({"split": 0.5, "displacement": np.zeros((2, 8, 8))}, "split has no effect"),
        ({"centre_radius": 1.0}, "centre_radius has no effect without"),
        ({"merge_affinity": 0.5}, "merge_affinity has an effect only with"),
        ({"threads": 10**7}, "threads must be an integer in 1..1048576"),
        ({"threads": 2**40}, "threads must be"),
        ({"min_area": 0.5}, "min_area must lie in"),
        ({"class_names": None}, "class_names must be"),
        ({"class_names": [1, 2]}, "class_names must be"),
        ({"split": {"a": 0.5}}, "split: class ids"),
        ({"split": {float("nan"): 0.5}}, "split: class ids"),
        ({"boundary": "x"}, "boundary must hold numbers"),
        ({"merge_affinity": "x"}, "merge_affinity must lie"),
    ],
)
def test_options_of_cluster_without_effect_or_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        tfiseg.cluster(np.ones((8, 8), np.uint8), **settings)


@pytest.mark.parametrize("size", ["ab", 5, (5,), (5, 5, 5), (float("nan"), 5), (0, 5)])
def test_sizes_of_the_result_are_checked(size):
    with pytest.raises(InputError, match="output_size_hw"):
        tfiseg.cluster(np.zeros((3, 8, 8), np.float32), output_size_hw=size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [str(DEFAULT_INSTANCE_MODEL), "--no-gate", "--shape", "480x640"],
            "--shape: no effect on an instance network",
        ),
        ([str(DEFAULT_INSTANCE_MODEL), "--no-gate", "--shape-min", "48x64"], "--shape-min: no effect"),
        ([str(DEFAULT_INSTANCE_MODEL), "--frames", "x", "--min-pq", "9"], "--min-pq: no effect"),
        (
            [str(PLAIN_MODEL), "--target", "onnxruntime", "--no-gate", "--shape", "480x640"],
            "--shape: no effect with",
        ),
        (
            [str(PLAIN_MODEL), "--target", "onnxruntime", "--no-gate", "--portable"],
            "--portable: no effect with",
        ),
        ([str(PLAIN_MODEL), "--no-gate", "--cache", "c.npz"], "--cache: no effect with --precision fp16"),
        ([str(PLAIN_MODEL), "--precision", "fp32", "--keep", "x"], "--keep: no effect with --precision fp32"),
    ],
)
def test_build_options_without_effect(arguments, message, capsys):
    pytest.importorskip("onnx")
    assert main(["build", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_cli_uses_the_split_of_the_model(tmp_path):
    from tfiseg.runtime.networks.model_variants import with_metadata

    path = tmp_path / "m.onnx"
    model = with_metadata(
        PLAIN_MODEL.read_bytes(), lambda m: m | {"clustering": {**m["clustering"], "split": 0.0}}
    )
    path.write_bytes(model)
    out = tmp_path / "out"
    assert main(["run", "synthetic", "--frames", "1", "--model", str(path), "--out", str(out), "--json"]) == 0
    found = json.loads((out / "instances.jsonl").read_text())["instances"]
    image = next(iter(SyntheticCamera())).image
    assert len(found) == len(tfiseg.Segmenter(path)(image)) == len(tfiseg.Segmenter(path, split=0.0)(image))


@pytest.mark.parametrize("options", [{}, {"quality": "fast"}, {"quality": "best"}, {"outlines": True}])
def test_frames_with_a_side_over_4096_px_work_in_every_mode(options):
    frame = np.full((40, 4200, 3), 90, np.uint8)
    assert tfiseg.Segmenter(long_side_px=128, **options)(frame).size_hw == (40, 4200)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_a_binary_mask_of_0_and_255_gives_a_warning(dtype):
    mask = np.zeros((32, 32), dtype)
    mask[8:24, 8:24] = 255
    with pytest.warns(UserWarning, match="has only 0 and 255"):
        assert len(tfiseg.cluster(mask)) == 0
