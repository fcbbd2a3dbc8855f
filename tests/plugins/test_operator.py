"""Arguments, results and errors of ``tfiseg.cluster``."""

import warnings

import numpy as np
import pytest
import tfiseg
from tfiseg.plugins.settings import AFFINITY_OFFSETS

TWO = np.zeros((20, 40), np.uint8)
TWO[5:15, 5:15] = 15
TWO[5:15, 25:35] = 7


def test_class_map_gives_instances():
    found = tfiseg.cluster(TWO, class_names=["background"] + [f"c{i}" for i in range(1, 21)])
    assert [(i.class_name, i.area, i.box_xyxy) for i in found] == [
        ("c15", 100, (5, 5, 15, 15)),
        ("c7", 100, (25, 5, 35, 15)),
    ]
    assert found.score.tolist() == [1, 1]
    assert found.label_map.dtype == np.int32
    assert np.array_equal(found.semantic_map, TWO)


def test_logits_are_clustered_and_scaled_up():
    logits = np.zeros((16, 20, 40), np.float32)
    logits[0] = 2
    logits[15, 5:15, 5:15] = 4
    found = tfiseg.cluster(logits, output_size_hw=(80, 160))
    assert found.label_map.shape == (80, 160)
    assert len(found) == 1
    assert found.class_id.tolist() == [15]
    assert found.area[0] == pytest.approx(1600, rel=0.1)
    assert 0.5 < found.score[0] < 1


def test_cluster_batch_returns_lists():
    found = tfiseg.cluster_batch(np.stack([TWO, np.zeros_like(TWO)]))
    assert [len(f) for f in found] == [2, 0]


def test_number_of_axes_is_checked():
    with pytest.raises(tfiseg.InputError, match=r"shape \(2, 20, 40\): cluster takes one map"):
        tfiseg.cluster(np.stack([TWO, TWO]))
    with pytest.raises(tfiseg.InputError, match=r"shape \(20, 40\): cluster_batch takes \(N, H, W\)"):
        tfiseg.cluster_batch(TWO)


def test_min_area_is_in_pixels_of_the_result():
    logits = np.zeros((2, 40, 40), np.float32)
    logits[0] = 1
    logits[1, 10, 10] = 3
    area = tfiseg.cluster(logits, output_size_hw=(160, 160), min_area=1).area[0]
    assert len(tfiseg.cluster(logits, output_size_hw=(160, 160), min_area=area)) == 1
    assert len(tfiseg.cluster(logits, output_size_hw=(160, 160), min_area=area + 1)) == 0


def test_scores_of_large_instances():
    logits = np.zeros((2, 3600, 3600), np.float32)
    logits[1] = 8
    assert tfiseg.cluster(logits).score[0] == pytest.approx(0.99966, abs=1e-4)


def test_results_may_be_larger_than_the_maximum_grid():
    logits = np.zeros((2, 4, 160), np.float32)
    logits[1] = 1
    assert tfiseg.cluster(logits, output_size_hw=(20, 6000)).area.tolist() == [120_000]


def test_strides_that_do_not_divide():
    for grid, cells in (((10, 40), (3, 10)), ((1, 40), (1, 10))):
        assert len(tfiseg.cluster(np.ones(grid, np.uint8), affinity=np.ones((14, *cells)))) == 1


def test_more_threads_than_the_system_provides():
    assert len(tfiseg.cluster(TWO, threads=200_000)) == 2


def test_an_empty_batch():
    assert tfiseg.cluster_batch(np.zeros((0, 8, 8), np.uint8)) == []


def test_things_select_classes():
    assert tfiseg.cluster(TWO, things=[7]).class_id.tolist() == [7]


def test_split_can_differ_by_class():
    bell = np.zeros((30, 70), np.uint8)
    bell[5:25, 5:25] = bell[5:25, 45:65] = 1
    bell[12:18, 25:45] = 1
    both = np.vstack([bell, bell * 2])
    assert len(tfiseg.cluster(both, split={1: 0.0, 2: 1.0})) == 3


def test_evidence_may_be_an_integer_factor_smaller():
    whole = np.ones((16, 24), np.uint8)
    found = tfiseg.cluster(whole, affinity=np.ones((14, 4, 6)), boundary=np.zeros((8, 12)))
    assert len(found) == 1
    assert len(AFFINITY_OFFSETS) == 14


@pytest.mark.parametrize(
    ("semantic", "kwargs", "message"),
    [
        (np.zeros((4, 4), float), {}, "must be logits"),
        (np.zeros((4, 4), complex), {}, "integer class map or floating-point logits"),
        (np.zeros(4, int), {}, r"must be \(H, W\)"),
        (np.zeros((48, 64, 3), np.uint8), {}, "looks like an image"),
        (np.full((4, 4), 300), {}, "class ids must lie in 0..255"),
        (np.full((4, 4), -1), {}, "class ids must lie in 0..255"),
        (np.zeros((0, 4), int), {}, "sides must lie in 1..4096"),
        (np.zeros((4097, 1), np.uint8), {}, "sides must lie in 1..4096"),
        (np.full((3, 4, 4), np.nan), {}, "NaN"),
        (np.zeros((300, 4, 4)), {}, "2 to 255 classes"),
        (np.zeros((4, 4), int), {"displacement": np.zeros((2, 3, 4))}, "displacement must be"),
        (np.zeros((4, 4), int), {"displacement": np.full((2, 4, 4), np.nan)}, "displacement contains NaN"),
        (np.zeros((4, 4), int), {"boundary": np.full((4, 4), 2.0)}, r"must lie in \[0, 1\].*sigmoid"),
        (np.zeros((4, 4), int), {"boundary": np.zeros((3, 4))}, "boundary"),
        (np.zeros((4, 4), int), {"affinity": np.zeros((3, 4, 4))}, "one channel for each of the 14 offsets"),
        (np.zeros((4, 4), int), {"scores": np.full((4, 4), np.nan)}, "scores must lie in"),
        (np.zeros((4, 4), int), {"things": [300]}, "0..254"),
        (np.zeros((4, 4), int), {"split": "best"}, "split must be"),
        (np.zeros((4, 4), int), {"split": 1.5}, "split must be"),
        (np.zeros((4, 4), int), {"max_instances": 0}, "max_instances"),
        (np.zeros((4, 4), int), {"threads": 0}, "threads"),
        (np.zeros((4, 4), int), {"output_size_hw": (8, 8)}, "needs logits"),
        (np.zeros((4, 4), int), {"things": ["person"]}, "class ids are integers"),
        (np.zeros((4, 4), int), {"max_instances": 10.5}, "max_instances"),
        (np.zeros((4, 4), int), {"min_area": 3_000_000_000}, "min_area"),
        (np.zeros((4, 4), int), {"merge_affinity": np.nan}, "merge_affinity"),
        (np.zeros((4, 4), int), {"boundary": np.zeros((0, 0))}, "boundary"),
        (np.full((3, 4, 4), 1e39), {}, "NaN or infinity"),
    ],
)
def test_invalid_input_raises_input_error(semantic, kwargs, message):
    with pytest.raises(tfiseg.InputError, match=message):
        tfiseg.cluster(semantic, **kwargs)


def test_probable_mistakes_raise_or_warn():
    with pytest.warns(UserWarning, match="255 means ignore"):
        tfiseg.cluster((TWO > 0).astype(np.uint8) * 255)
    with pytest.warns(UserWarning, match="transpose"):
        tfiseg.cluster(np.zeros((100, 100, 21)))


def test_errors_have_one_base_class():
    assert issubclass(tfiseg.InputError, tfiseg.TfisegError)
    assert issubclass(tfiseg.InputError, ValueError)


@pytest.mark.shared
def test_learned_affinities_split_people(shared):
    """Learned affinities give better results than connected components on street photos."""
    import cv2
    import onnxruntime
    from tfiseg.runtime.evaluate.metrics import PictureScore, panoptic_counts

    session = onnxruntime.InferenceSession(str(shared / "models" / "instance-prototype.onnx"))
    names = [i.name for i in session.get_inputs()]
    folder = shared / "data" / "eval" / "pennfudan"
    scores = {"components": PictureScore(), "affinity": PictureScore()}
    for path in sorted((folder / "images").iterdir())[:24]:
        truth = cv2.imread(str(folder / "instances" / f"{path.stem}.png"), -1).astype(np.int32)
        semantic = cv2.imread(str(folder / "semantic" / f"{path.stem}.png"), -1)
        zoom = 448 / max(semantic.shape)
        size_wh = tuple(max(1, round(side * zoom / 32)) * 32 for side in semantic.shape[::-1])
        small = cv2.resize(semantic, size_wh, interpolation=cv2.INTER_NEAREST)
        mask = (small == 15).astype(np.float32)
        distance = np.minimum(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) / 16, 2)
        image = (
            cv2.resize(cv2.imread(str(path)), size_wh, interpolation=cv2.INTER_AREA)[:, :, ::-1]
            .transpose(2, 0, 1)[None]
            .astype(np.float32)
            - 127
        ) / 128
        feeds = dict(zip(names, (image, np.stack([mask, distance])[None].astype(np.float32)), strict=True))
        values = {o.name: v for o, v in zip(session.get_outputs(), session.run(None, feeds), strict=True)}
        affinity = 1 / (1 + np.exp(-values["aff"][0]))
        height, width = semantic.shape
        for name, kwargs in (
            ("components", {"split": 0.0}),
            ("affinity", {"affinity": affinity, "affinity_offsets": AFFINITY_OFFSETS[:10]}),
        ):
            found = tfiseg.cluster(small, **kwargs)
            label_map = cv2.resize(
                found.label_map.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST
            ).astype(np.int32)
            label_map[semantic != 15] = 0
            scores[name].add(panoptic_counts(label_map, found.class_id, truth, semantic))
    quality = {name: score.pooled.quality for name, score in scores.items()}
    assert quality["affinity"] > quality["components"] + 5, quality


def test_tensors_of_every_dtype_are_accepted():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 60, 80)).astype(np.float32))
    expected = tfiseg.cluster(logits.bfloat16().float().numpy())
    for given in (logits.bfloat16(), logits.bfloat16().requires_grad_()):
        assert np.array_equal(tfiseg.cluster(given).label_map, expected.label_map)
    expected = tfiseg.cluster(logits.numpy(), scores=np.full((60, 80), 0.5, np.float32))
    found = tfiseg.cluster(logits.requires_grad_(), scores=torch.full((60, 80), 0.5).bfloat16())
    assert np.array_equal(found.score, expected.score)


def test_things_may_be_one_number():
    class_map = np.ones((60, 80), np.uint8)
    assert len(tfiseg.cluster(class_map, things=1)) == 1
    assert len(tfiseg.cluster(class_map, things=np.int64(2))) == 0
    with pytest.raises(tfiseg.InputError, match=r"things must be class ids in 0\.\.254, got 1\.5"):
        tfiseg.cluster(class_map, things=1.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [2, 21])
def test_probabilities_are_recognized(channels, dtype):
    logits = np.random.default_rng(1).normal(0, 3, (channels, 150, 40))
    odds = np.exp(logits)
    probabilities = (odds / odds.sum(0)).astype(dtype)
    with pytest.warns(UserWarning, match=r"sum to 1.*np\.log\(semantic"):
        low = tfiseg.cluster(probabilities, min_area=0)
    right = tfiseg.cluster(np.log(probabilities.clip(1e-6)), min_area=0)
    assert np.array_equal(low.label_map, right.label_map)
    assert low.score.mean() < right.score.mean() - 0.1


def test_logits_are_no_probabilities():
    rng = np.random.default_rng(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfiseg.cluster(rng.normal(size=(5, 60, 80)).astype(np.float32))
        tfiseg.cluster(rng.random((5, 60, 80)).astype(np.float32))
        tfiseg.cluster(np.log(np.full((5, 6, 8), 0.2)))


@pytest.mark.parametrize("names", ["voc21", ["background", 1], 5, np.array(["background", "person"])])
def test_class_names_are_a_list(names):
    # the letters of a text were taken for the names
    with pytest.raises(tfiseg.InputError, match="class_names must be a list of texts"):
        tfiseg.cluster(np.ones((8, 8), np.uint8), class_names=names)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(tfiseg.InputError, match="semantic must be an integer class map"):
        tfiseg.cluster_batch(None)
