"""Quantization: exact where it must be, better than plain rounding, nothing that ONNX Runtime makes of it
that was not meant."""

import numpy as np
import onnx
import onnxruntime
import pytest
import tfiseg
from onnx import numpy_helper
from tfiseg.calibration.equalize import equalize, residual_groups
from tfiseg.calibration.frames import FrameSample, sample_frames
from tfiseg.calibration.graph import Network, run_tensors
from tfiseg.calibration.layers import find_layers
from tfiseg.calibration.qdq import Scheme
from tfiseg.calibration.quantize import Calibration, calibrate, edge_layers, matching_layers, quantize
from tfiseg.calibration.ranges import METHODS, range_finder
from tfiseg.calibration.rounding import Moments, round_weights
from tfiseg.calibration.sensitivity import exclude_until, rank_layers
from tfiseg.runtime.inspect.onnx_layers import layer_precisions

SIGNED, UNSIGNED = Scheme(signed=True), Scheme(signed=False)


@pytest.fixture(scope="module")
def calibration(model, frames):
    return calibrate(model, frames)


def test_layers_are_found_in_order_and_samples_are_what_the_layer_multiplies(model, frames):
    network = Network(model)
    layers = {layer.name: layer for layer in find_layers(network)}
    assert list(layers) == ["stem", "project_a", "expand", "depthwise", "project_b", "head", "classifier"]
    assert edge_layers(network) == ["stem", "classifier"]
    for name in ("stem", "expand", "depthwise"):
        layer = layers[name]
        outputs = network.producer[layer.output].input[0]
        values = next(run_tensors(network.model, [layer.input, outputs], frames))
        # the layer's own output at random places, from samples and weights alone
        samples = layer.samples(values[layer.input], 50, np.random.default_rng(1))
        rng = np.random.default_rng(1)
        h, w = values[outputs].shape[2:]
        ys, xs = rng.integers(0, h, 50), rng.integers(0, w, 50)
        ours = layer.matrix(network.weight(layer.weight)) @ samples
        theirs = values[outputs][0][:, ys, xs] - network.weight(layer.bias)[:, None]
        assert np.allclose(ours.reshape(theirs.shape), theirs, atol=1e-4)


def test_equalizing_changes_ranges_and_nothing_else(model, frames, tools):
    run, _ = tools
    network = Network(model)
    tensors, makers, readers = residual_groups(network)[0]
    assert {m.name for m in makers} == {"project_a", "project_b"}
    assert {r.name for r in readers} == {"expand", "head"}
    peaks = {
        t: np.abs(v).max((0, 2, 3)) for t, v in next(run_tensors(network.model, tensors, frames)).items()
    }
    before = max(peaks["sum"]) / min(peaks["sum"])
    assert equalize(network, peaks) == 1
    after = np.abs(next(run_tensors(network.model, ["sum"], frames))["sum"]).max((0, 2, 3))
    assert after.max() / after.min() < before / 3
    assert np.allclose(run(model, frames[0]), run(network.model, frames[0]), atol=1e-3)


def test_second_order_rounding_beats_nearest():
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (12, 4))  # neighbouring pixels and channels tell much the same
    samples = (mixing @ rng.normal(0, 1, (1, 4, 4000)) + 0.1 * rng.normal(0, 1, (1, 12, 4000)) + 0.7).astype(
        np.float32
    )
    matrix, bias = rng.normal(0, 1, (1, 8, 12)), rng.normal(0, 1, (1, 8))
    moments = Moments()
    moments.see(samples)
    q, scale, shifted = round_weights(matrix, bias, moments.mean())
    exact = matrix @ samples + bias[..., None]
    ours = (q * scale[..., None]) @ samples + shifted[..., None]
    nearest = (np.round(matrix / scale[..., None]) * scale[..., None]) @ samples + bias[..., None]
    assert np.square(ours - exact).mean() < 0.3 * np.square(nearest - exact).mean()
    assert (
        np.abs((ours - exact).mean(2)).max() < 0.01 * np.abs(exact).mean()
    )  # the bias takes up the mean error


def test_a_dead_channel_and_a_single_sample_round():
    moments = Moments()
    moments.see(np.ones((1, 3, 1), np.float32))
    q, scale, _ = round_weights(np.zeros((1, 2, 3)), np.zeros((1, 2)), moments.mean())
    assert (q == 0).all()
    assert (scale >= np.finfo(np.float16).smallest_normal).all()


@pytest.mark.parametrize("scheme", [SIGNED, UNSIGNED])
def test_a_network_in_int8_says_nearly_the_same(model, frames, calibration, tools, scheme):
    _, snr_db = tools
    network = quantize(model, calibration, ["classifier"], scheme)
    onnx.checker.check_model(network, full_check=True)
    precisions = {layer.name: layer.precision for layer in layer_precisions(network)}
    assert precisions == {**dict.fromkeys(precisions, "int8"), "classifier": "fp32"}
    assert snr_db(model, network, frames) > 25
    scalars = [
        i
        for i in network.graph.initializer
        if i.name.endswith(".scale") and ".weight" not in i.name and ".bias" not in i.name
    ]
    assert all(
        len(i.dims) == 0 for i in scalars
    )  # TensorRT-RTX takes a scale of shape (1,) and silently computes in float


def test_zero_is_exact_and_ranges_hold():
    for scheme in (SIGNED, UNSIGNED):
        for low, high in ((-1.0, 3.0), (0.0, 6.0), (-2.0, 0.0), (0.0, 0.0), (1.0, 2.0)):
            scale, zero = scheme.scale_and_zero(low, high)
            info = np.iinfo(scheme.dtype)
            assert info.min <= zero <= info.max
            assert (info.max - zero) * scale >= high - scale
            assert (info.min - zero) * scale <= low + scale or low > 0


def test_kept_layers_really_are_kept_by_onnxruntime(model, frames, calibration, tmp_path):
    """ONNX Runtime quantizes float convolutions between a DQ and a Q by itself; ours it must leave alone, in
    any session."""
    onnx.save(quantize(model, calibration, ["depthwise"], UNSIGNED), tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    node = next(n for n in optimised.graph.node if n.name == "depthwise")
    weights = {i.name: numpy_helper.to_array(i) for i in optimised.graph.initializer}
    assert weights[node.input[1]].dtype == np.float32


def test_clips_that_saturation_does_anyway_are_gone(model, calibration):
    unsigned, signed = quantize(model, calibration, (), UNSIGNED), quantize(model, calibration, (), SIGNED)
    assert sum(n.op_type == "Clip" for n in unsigned.graph.node) == 0
    assert (
        sum(n.op_type == "Clip" for n in signed.graph.node) == 4
    )  # around zero there is no saturation at zero


@pytest.mark.parametrize("method", METHODS)
def test_every_range_method_finds_ranges_within_what_was_seen(method):
    finder, rng = range_finder(method), np.random.default_rng(0)
    for _ in range(3):
        finder.see("x", np.concatenate([rng.normal(0, 1, 50000), [40.0]]).astype(np.float32))
    low, high = finder.ranges()["x"]
    assert low < 0 < high
    assert high == 40 if method == "minmax" else high < 40


def test_an_unknown_method_and_no_frames_are_sentences(model, tmp_path):
    with pytest.raises(tfiseg.InputError, match="unknown range method 'mean'"):
        range_finder("mean")
    with pytest.raises(tfiseg.InputError, match="has no frames to calibrate on"):
        calibrate(model, FrameSample("nowhere", [], []))
    with pytest.raises(tfiseg.SourceError):
        sample_frames(tmp_path, 4)
    with pytest.raises(tfiseg.InputError, match="at least 1 frame"):
        sample_frames("synthetic", 0)


def test_the_cache_is_used_for_the_same_network_frames_and_method_only(model, frames, calibration, tmp_path):
    cache = tmp_path / "cache.npz"
    made = calibrate(model, frames, cache=cache)
    assert made.rounded.keys() == calibration.rounded.keys()
    stamp = cache.stat().st_mtime_ns
    again = calibrate(model, frames, cache=cache)
    assert cache.stat().st_mtime_ns == stamp
    for name, layer in made.rounded.items():
        assert np.array_equal(layer.q, again.rounded[name].q)
    assert quantize(model, made) == quantize(model, again)
    other = calibrate(model, frames.part(0, 6), cache=cache)
    assert other.key != made.key
    assert Calibration.load(cache).key == other.key
    cache.write_bytes(b"nonsense")
    with pytest.raises(tfiseg.InputError, match="not a calibration cache"):
        calibrate(model, frames, cache=cache)


def test_samples_are_seeded(tmp_path, frames):
    def first(seed):
        return sample_frames("synthetic", 3, seed)

    one, again, other = first(1), first(1), first(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert one.names != other.names
    assert one.sha256() == again.sha256() != other.sha256()


def test_layers_are_named_by_pattern_or_weight(model):
    layers = find_layers(Network(model))
    assert matching_layers(layers, ["project_*", "stem.weight"]) == ["project_a", "project_b", "stem"]
    with pytest.raises(tfiseg.InputError, match="no layer is called 'nope'; there are: stem"):
        matching_layers(layers, ["nope"])


def test_the_most_sensitive_layer_is_found(model, frames, calibration):
    spoilt = Calibration(
        calibration.key,
        calibration.peaks,
        {**calibration.ranges, "head.relu": (0.0, 300.0)},
        calibration.rounded,
    )
    ranking = rank_layers(model, spoilt, frames.part(0, 3), UNSIGNED)
    assert ranking[0][0] == "head"
    assert [noise for _, noise in ranking] == sorted((noise for _, noise in ranking), reverse=True)


@pytest.mark.parametrize("enough", [0, 1, 3, 7, 10])
def test_exclusion_stops_at_the_fewest_layers(enough):
    ranking = [(f"layer{k}", 1.0 / (k + 1)) for k in range(10)]

    def judge(names):
        count = len(names)
        return {"passed": count >= enough, "label_agreement": 90 + count, "stable_PQ": 80.0 + count}

    names, tried = exclude_until(lambda: ranking, 10, judge)
    assert names == [f"layer{k}" for k in range(enough)]
    assert len(tried) <= 9
    failed = {"passed": False, "label_agreement": 0.0}
    hopeless, _ = exclude_until(lambda: ranking, 4, lambda names: {**failed, "stable_PQ": float(len(names))})
    assert len(hopeless) == 4


def test_nodes_without_a_name_get_one_of_their_own():
    graph = onnx.parser.parse_graph("g (float[1] x) => (float[1] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    graph.node[2].name = "Relu_1"
    names = [node.name for node in Network(onnx.helper.make_model(graph)).graph.node]
    assert names == ["Relu_0", "Relu_1_", "Relu_1"]
