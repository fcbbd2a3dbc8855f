"""Quantization to int8."""

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


def test_layers_are_in_order_and_samples_are_their_inputs(model, frames):
    network = Network(model)
    layers = {layer.name: layer for layer in find_layers(network)}
    assert list(layers) == ["stem", "project_a", "expand", "depthwise", "project_b", "head", "classifier"]
    assert edge_layers(network) == ["stem", "classifier"]
    for name in ("stem", "expand", "depthwise"):
        layer = layers[name]
        outputs = network.producer[layer.output].input[0]
        values = next(run_tensors(network.model, [layer.input, outputs], frames))
        # the layer's output at random positions, from samples and weights
        samples = layer.samples(values[layer.input], 50, np.random.default_rng(1))
        rng = np.random.default_rng(1)
        h, w = values[outputs].shape[2:]
        ys, xs = rng.integers(0, h, 50), rng.integers(0, w, 50)
        computed = layer.matrix(network.weight(layer.weight)) @ samples
        expected = values[outputs][0][:, ys, xs] - network.weight(layer.bias)[:, None]
        assert np.allclose(computed.reshape(expected.shape), expected, atol=1e-4)


def test_equalizing_changes_ranges_only(model, frames, tools):
    run, _ = tools
    network = Network(model)
    tensors, writers, readers = residual_groups(network)[0]
    assert {m.name for m in writers} == {"project_a", "project_b"}
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
    mixing = rng.normal(0, 1, (12, 4))  # neighboring pixels and channels are correlated
    samples = (mixing @ rng.normal(0, 1, (1, 4, 4000)) + 0.1 * rng.normal(0, 1, (1, 12, 4000)) + 0.7).astype(
        np.float32
    )
    matrix, bias = rng.normal(0, 1, (1, 8, 12)), rng.normal(0, 1, (1, 8))
    moments = Moments()
    moments.add(samples)
    q, scale, shifted = round_weights(matrix, bias, moments.mean())
    exact = matrix @ samples + bias[..., None]
    rounded = (q * scale[..., None]) @ samples + shifted[..., None]
    nearest = (np.round(matrix / scale[..., None]) * scale[..., None]) @ samples + bias[..., None]
    assert np.square(rounded - exact).mean() < 0.3 * np.square(nearest - exact).mean()
    # the bias absorbs the mean error
    assert np.abs((rounded - exact).mean(2)).max() < 0.01 * np.abs(exact).mean()


def test_rounding_of_a_dead_channel_and_a_single_sample():
    moments = Moments()
    moments.add(np.ones((1, 3, 1), np.float32))
    q, scale, _ = round_weights(np.zeros((1, 2, 3)), np.zeros((1, 2)), moments.mean())
    assert (q == 0).all()
    assert (scale >= np.finfo(np.float16).smallest_normal).all()


@pytest.mark.parametrize("scheme", [SIGNED, UNSIGNED])
def test_int8_network_is_close_to_float32(model, frames, calibration, tools, scheme):
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
    # with a scale of shape (1,), TensorRT-RTX silently computes in float
    assert all(len(i.dims) == 0 for i in scalars)


def test_zero_is_exact_and_ranges_hold():
    for scheme in (SIGNED, UNSIGNED):
        for low, high in ((-1.0, 3.0), (0.0, 6.0), (-2.0, 0.0), (0.0, 0.0), (1.0, 2.0)):
            scale, zero = scheme.scale_and_zero(low, high)
            info = np.iinfo(scheme.dtype)
            assert info.min <= zero <= info.max
            assert (info.max - zero) * scale >= high - scale
            assert (info.min - zero) * scale <= low + scale or low > 0


def test_onnxruntime_does_not_quantize_kept_layers(model, frames, calibration, tmp_path):
    """ONNX Runtime quantizes float convolutions between a DQ and a Q, which must not happen to ours."""
    onnx.save(quantize(model, calibration, ["depthwise"], UNSIGNED), tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    node = next(n for n in optimized.graph.node if n.name == "depthwise")
    weights = {i.name: numpy_helper.to_array(i) for i in optimized.graph.initializer}
    assert weights[node.input[1]].dtype == np.float32


def test_clips_implied_by_saturation_are_removed(model, calibration):
    unsigned, signed = quantize(model, calibration, (), UNSIGNED), quantize(model, calibration, (), SIGNED)
    assert sum(n.op_type == "Clip" for n in unsigned.graph.node) == 0
    assert sum(n.op_type == "Clip" for n in signed.graph.node) == 4  # int8 does not saturate at zero


@pytest.mark.parametrize("method", METHODS)
def test_range_methods_stay_within_the_values(method):
    finder, rng = range_finder(method), np.random.default_rng(0)
    for _ in range(3):
        finder.add("x", np.concatenate([rng.normal(0, 1, 50000), [40.0]]).astype(np.float32))
    low, high = finder.ranges()["x"]
    assert low < 0 < high
    assert high == 40 if method == "minmax" else high < 40


def test_unknown_method_and_no_frames_raise_errors(model, tmp_path):
    with pytest.raises(tfiseg.InputError, match=r"method must be one of 'minmax', .*got 'mean'"):
        range_finder("mean")
    with pytest.raises(tfiseg.InputError, match="method must be one of"):  # before any frame is read
        calibrate(model, FrameSample("nowhere", [], []), "mean")
    with pytest.raises(tfiseg.InputError, match="has no frames to calibrate on"):
        calibrate(model, FrameSample("nowhere", [], []))
    with pytest.raises(tfiseg.SourceError):
        sample_frames(tmp_path, 4)
    with pytest.raises(tfiseg.InputError, match="at least 1 frame"):
        sample_frames("synthetic", 0)


def test_cache_is_used_for_the_same_network_frames_and_method_only(model, frames, calibration, tmp_path):
    cache = tmp_path / "cache.npz"
    first = calibrate(model, frames, cache=cache)
    assert first.rounded.keys() == calibration.rounded.keys()
    stamp = cache.stat().st_mtime_ns
    again = calibrate(model, frames, cache=cache)
    assert cache.stat().st_mtime_ns == stamp
    for name, layer in first.rounded.items():
        assert np.array_equal(layer.q, again.rounded[name].q)
    assert quantize(model, first) == quantize(model, again)
    other = calibrate(model, frames.part(0, 6), cache=cache)
    assert other.key != first.key
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


def test_most_sensitive_layer_is_ranked_first(model, frames, calibration):
    changed = Calibration(
        calibration.key,
        calibration.peaks,
        {**calibration.ranges, "head.relu": (0.0, 300.0)},
        calibration.rounded,
    )
    ranking = rank_layers(model, changed, frames.part(0, 3), UNSIGNED)
    assert ranking[0][0] == "head"
    assert [noise for _, noise in ranking] == sorted((noise for _, noise in ranking), reverse=True)


@pytest.mark.parametrize("enough", [0, 1, 3, 7, 10])
def test_exclusion_stops_at_the_fewest_layers(enough):
    ranking = [(f"layer{k}", 1.0 / (k + 1)) for k in range(10)]

    def judge(names):
        count = len(names)
        return {"passed": count >= enough, "label_agreement": 90 + count, "stable_PQ": 80.0 + count}

    names, trials = exclude_until(lambda: ranking, 10, judge)
    assert names == [f"layer{k}" for k in range(enough)]
    assert len(trials) <= 9
    failed = {"passed": False, "label_agreement": 0.0}
    hopeless, _ = exclude_until(lambda: ranking, 4, lambda names: {**failed, "stable_PQ": float(len(names))})
    assert len(hopeless) == 4


def test_unnamed_nodes_get_unique_names():
    graph = onnx.parser.parse_graph("g (float[1] x) => (float[1] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    graph.node[2].name = "Relu_1"
    names = [node.name for node in Network(onnx.helper.make_model(graph)).graph.node]
    assert names == ["Relu_0", "Relu_1_", "Relu_1"]
