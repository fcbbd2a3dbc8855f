import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tfiseg
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from tfiseg import rle


@pytest.fixture
def two() -> tfiseg.Instances:
    class_map = np.zeros((30, 50), np.uint8)
    class_map[4:20, 3:15] = 15
    class_map[8:12, 6:10] = 0
    class_map[10:29, 25:50] = 7
    return tfiseg.cluster(class_map, split=0.0, class_names=[f"c{i}" for i in range(21)])


def test_rows_and_masks_agree(two):
    assert len(two) == 2
    for one in two:
        mask = two.mask(one.index)
        ys, xs = np.nonzero(mask)
        assert mask.dtype == bool
        assert one.area == mask.sum()
        assert one.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert one.centroid_xy == pytest.approx((xs.mean(), ys.mean()), abs=1e-4)
        x0, y0, x1, y1 = map(int, one.box_xyxy)
        assert np.array_equal(two.crop(one.index), mask[y0:y1, x0:x1])


@pytest.mark.parametrize("seed", range(8))
def test_rle_equals_pycocotools(seed):
    rng = np.random.default_rng(seed)
    found = tfiseg.cluster(
        (rng.random((rng.integers(1, 60), rng.integers(1, 60))) < 0.6).astype(np.uint8), split=0.0, min_area=1
    )
    for one in found:
        mask = found.mask(one.index)
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert found.rle(one.index) == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert np.array_equal(coco.decode(found.rle(one.index)), mask)


def test_polygons_surround_the_mask(two):
    (outline,) = two.polygon(1)
    painted = cv2.fillPoly(np.zeros((30, 50), np.uint8), [outline], 1)
    assert np.array_equal(painted > 0, two.mask(1))


def test_drawing_copies_and_changes_instances_only(two):
    frame = np.full((30, 50, 3), 90, np.uint8)
    view = two.draw(tfiseg.Frame(frame))
    assert (frame == 90).all()
    assert (view[two.label_map > 0] != 90).any(-1).all()
    assert np.array_equal(two.draw(frame), view)


def test_labels_keep_most_of_a_crowd_visible():
    y, x = np.mgrid[:200, :400] % 20 - 9
    crowd = tfiseg.cluster(
        (x**2 + y**2 < 64).astype(np.uint8), split=0, class_names=["background", "nucleus"]
    )
    assert len(crowd) == 200
    view = crowd.draw(np.full((200, 400, 3), 90, np.uint8))
    unlike = (view != 90).any(-1) & (crowd.label_map == 0)
    assert 0.02 < unlike.mean() < 0.25  # outlines and some labels; all labels would cover most of the image


def test_drawing_on_a_frame_of_another_size_raises_input_error(two):
    with pytest.raises(tfiseg.InputError, match="draw them on their own frame"):
        two.draw(np.zeros((60, 100, 3), np.uint8))


def test_conversion_to_supervision(two):
    detections = two.to_supervision()
    assert detections.mask.shape == (2, 30, 50)
    assert detections.data["class_name"].tolist() == ["c15", "c7"]


def test_selection_renumbers_instances(two):
    second = two.select(two.class_id == 7)
    assert len(second) == 1
    assert np.array_equal(second.mask(0), two.mask(1))
    assert two.select([True, True]) is two
    with pytest.raises(tfiseg.InputError, match=r"bool \(2,\)"):
        two.select([True])


def test_empty_instances():
    none = tfiseg.cluster(np.zeros((8, 8), np.uint8))
    assert len(none) == 0
    assert list(none) == []
    assert none.draw(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8, 3)
    assert len(none.to_supervision()) == 0


def test_indices_are_checked(two):
    assert two[-1].number == 2
    with pytest.raises(IndexError, match="indices go from 0 to 1"):
        two.mask(2)
    assert two.class_name(99) == "class 99"


def hand_made(label_map, class_id=(), **more) -> tfiseg.Instances:
    """Return instances of a literal label map, with row numbers in all columns but the area."""
    label_map = np.array(label_map, np.int32)
    n = len(class_id)
    box = [
        (*np.argwhere(label_map == i + 1).min(0)[::-1], *np.argwhere(label_map == i + 1).max(0)[::-1] + 1)
        for i in range(n)
    ]
    columns = {
        "label_map": label_map,
        "semantic_map": (label_map > 0).astype(np.uint8),
        "class_id": np.array(class_id, np.int32),
        "score": (np.arange(n) / 10).astype(np.float32),
        "box_xyxy": np.array(box, np.float32).reshape(n, 4),
        "area": np.bincount(label_map.ravel(), minlength=n + 1)[1:].astype(np.int32),
        "centroid_xy": np.zeros((n, 2), np.float32),
        "class_names": ("background", "person", "car"),
    }
    return tfiseg.Instances(**columns | more)


FOUR = [[1, 1, 0, 2], [3, 0, 4, 4]]


@pytest.fixture
def four() -> tfiseg.Instances:
    return hand_made(FOUR, (1, 2, 1, 2), track_id=np.array([9, 8, 7, 6], np.int32))


@pytest.mark.parametrize(
    ("index", "rows", "label_map"),
    [
        (slice(None, 2), [0, 1], [[1, 1, 0, 2], [0, 0, 0, 0]]),
        (slice(None, None, -1), [3, 2, 1, 0], [[4, 4, 0, 3], [2, 0, 1, 1]]),
        (slice(9, None), [], [[0, 0, 0, 0], [0, 0, 0, 0]]),
        ([0, 2], [0, 2], [[1, 1, 0, 0], [2, 0, 0, 0]]),
        ([2, 0], [2, 0], [[2, 2, 0, 0], [1, 0, 0, 0]]),
        ([-1], [3], [[0, 0, 0, 0], [0, 0, 1, 1]]),
        ([], [], [[0, 0, 0, 0], [0, 0, 0, 0]]),
        (np.array([False, True, False, True]), [1, 3], [[0, 0, 0, 1], [0, 0, 2, 2]]),
        ([True, False, False, False], [0], [[1, 1, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_indexing_renumbers_in_the_selected_order(four, index, rows, label_map):
    found = four[index]
    assert found.label_map.tolist() == label_map
    assert found.label_map.dtype == np.int32
    for name in ("class_id", "score", "box_xyxy", "area", "track_id"):
        assert np.array_equal(getattr(found, name), getattr(four, name)[rows])
    assert [i.number for i in found] == list(range(1, len(rows) + 1))
    assert found.semantic_map is four.semantic_map
    assert four.label_map.tolist() == FOUR, "the indexed instances stay unchanged"


def test_selecting_all_returns_the_same_object(four):
    assert four[:] is four
    assert four[[0, 1, 2, 3]] is four
    assert four[four.score >= 0] is four


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([True, False], tfiseg.InputError, r"mask must be bool \(4,\).*got bool \(2,\)"),
        ([0, 0], tfiseg.InputError, r"each instance once, got \[0, 0\]"),
        ([0, 4], IndexError, "instance 4 of 4: indices go from 0 to 3"),
        (-5, IndexError, "instance -5 of 4"),
        (True, tfiseg.InputError, "an index is a number, a slice"),
        (1.0, tfiseg.InputError, "an index is a number, a slice"),
        ("person", tfiseg.InputError, "an index is a number, a slice"),
        ([[0, 1]], tfiseg.InputError, r"got int64 \(1, 2\)"),
        ([0.5, 1.5], tfiseg.InputError, "got float64"),
    ],
)
def test_other_indices_raise_errors(four, index, error, message):
    with pytest.raises(error, match=message):
        four[index]


@pytest.mark.parametrize("seed", range(10))
def test_indexing_keeps_masks(seed):
    rng = np.random.default_rng(seed)
    found = tfiseg.cluster((rng.random((30, 40)) < 0.5).astype(np.uint8), split=0.0, min_area=1)
    rows = rng.permutation(len(found))[: rng.integers(0, len(found) + 1)]
    chosen = found[rows]
    assert np.array_equal(chosen.masks(), found.masks()[rows])
    assert np.array_equal(chosen[::-1].masks(), found.masks()[rows[::-1]])
    assert [i.box_xyxy for i in chosen] == [found[int(k)].box_xyxy for k in rows]


def test_masks_and_names(four):
    assert four.names == ["person", "car", "person", "car"]
    assert four.masks().shape == (4, 2, 4)
    assert four.masks().dtype == bool
    assert four.masks()[3].tolist() == [[False] * 4, [False, False, True, True]]
    assert np.array_equal(four[3].mask, four.mask(3))
    assert hand_made([[0, 0]]).masks().shape == (0, 1, 2)
    with pytest.raises(tfiseg.InputError, match="has no mask"):
        tfiseg.Instance(1, 1, "person", 0.5, (0, 0, 1, 1), 1, (0, 0)).mask  # noqa: B018


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_map": np.zeros((2, 4), np.int64)}, r"label_map must be int32 \(2, 4\), got int64 \(2, 4\)"),
        (
            {"label_map": np.zeros((1, 2, 4), np.int32)},
            r"label_map must be int32 \(H, W\), got int32 \(1, 2, 4\)",
        ),
        (
            {"semantic_map": np.zeros((2, 5), np.uint8)},
            r"semantic_map must be uint8 \(2, 4\), got uint8 \(2, 5\)",
        ),
        ({"score": np.zeros(4)}, r"score must be float32 \(4,\), got float64 \(4,\)"),
        ({"score": [0.5] * 4}, r"score must be float32 \(4,\), got list"),
        (
            {"box_xyxy": np.zeros((3, 4), np.float32)},
            r"box_xyxy must be float32 \(4, 4\), got float32 \(3, 4\)",
        ),
        ({"centroid_xy": np.zeros((4,), np.float32)}, r"centroid_xy must be float32 \(4, 2\)"),
        ({"track_id": np.zeros(3, np.int32)}, r"track_id must be int32 \(4,\), got int32 \(3,\)"),
        ({"class_id": 3}, r"class_id must be int32 \(0,\), got int"),
    ],
)
def test_construction_is_validated(four, wrong, message):
    with pytest.raises(tfiseg.InputError, match=message):
        replace(four, **wrong)


def test_text_description(four):
    assert repr(four) == "<Instances: 2 person, 2 car in 4x2 pixels>"
    assert repr(hand_made([[0]])) == "<Instances: none in 1x1 pixels>"
    assert "instances=" not in repr(four[0])


def test_html_escapes_names_and_limits_rows():
    label_map = np.arange(1, 26).reshape(5, 5)
    page = hand_made(
        label_map, [1] * 25, class_names=("", "<img src=x onerror=alert(1)>\ud800")
    )._repr_html_()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert page.count("<tr>") == 21
    assert "and 5 more" in page
    page.encode()
    hand_made([[0]])._repr_html_()
    hand_made(np.zeros((0, 3)))._repr_html_()


def test_records_are_json(four, tmp_path):
    record = json.loads(json.dumps(four.to_dict(), allow_nan=False))
    assert record["size_hw"] == [2, 4]
    last = record["instances"][3]
    assert (last["class_name"], last["box_xyxy"], last["area"], last["track_id"]) == (
        "car",
        [2, 1, 4, 2],
        2,
        6,
    )
    assert np.array_equal(coco.decode(last["segmentation"]), four.mask(3))
    four.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == record


def test_label_maps_are_saved_as_png(four, tmp_path):
    four.save(str(tmp_path / "found.PNG"))
    assert cv2.imread(str(tmp_path / "found.PNG"), cv2.IMREAD_UNCHANGED).tolist() == FOUR
    with pytest.raises(
        tfiseg.InputError, match=r"\.json \(records\) or \.png \(label map\), got 'found.npy'"
    ):
        four.save(tmp_path / "found.npy")
    with pytest.raises(tfiseg.OutputError, match=r"can't write .*No such file"):
        four.save(tmp_path / "nowhere" / "found.json")


def test_pycocotools_loads_coco_annotations(four):
    rows = four.to_coco(image_id=5, first_id=11)
    assert [row["id"] for row in rows] == [11, 12, 13, 14]
    assert rows[0]["bbox"] == [0, 0, 2, 1]
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": 5, "height": 2, "width": 4}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}],
    }
    dataset.createIndex()
    for row, one in zip(dataset.loadAnns([11, 12, 13, 14]), four, strict=True):
        assert np.array_equal(dataset.annToMask(row), one.mask)
        assert row["area"] == one.area


@pytest.mark.parametrize("seed", range(8))
def test_own_rle_equals_pycocotools(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 90), rng.integers(1, 90))) < rng.choice([0.02, 0.5, 0.98])
    theirs = rle.encode_rle(mask, (3, 2), (100, 100))
    monkeypatch.setattr(rle, "_pycocotools", lambda: None)
    assert rle.encode_rle(mask, (3, 2), (100, 100)) == theirs
    whole = np.zeros((100, 100), np.uint8)
    whole[2 : 2 + mask.shape[0], 3 : 3 + mask.shape[1]] = mask
    assert theirs["counts"] == coco.encode(np.asfortranarray(whole))["counts"].decode()


def test_conversion_to_pandas(four):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = four.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table.columns.tolist() == [
        "class_id",
        "class_name",
        "score",
        "x0",
        "y0",
        "x1",
        "y1",
        "area",
        "cx",
        "cy",
        "track_id",
    ]
    assert table.x1.tolist() == [2, 4, 1, 4]
    assert len(hand_made([[0]]).to_pandas()) == 0


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_missing_package_is_named_with_its_command(four, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tfiseg.MissingDependencyError, match=f"pip install {package}"):
        getattr(four, f"to_{package}")()


def test_drawing_options():
    label_map = np.zeros((200, 400), np.int32)
    label_map[60:180, 40:360] = 1
    found = hand_made(label_map, (1,), score=np.array([0.5], np.float32))
    frame = np.full((200, 400, 3), 90, np.uint8)

    def changed(**options):
        return (found.draw(frame, **options) != 90).any(-1)

    inside = np.pad(np.ones((118, 318), bool), ((61, 21), (41, 41)))
    assert not (changed(alpha=0, labels=False) & inside)[70:170, 50:350].any(), "outlines only"
    assert np.array_equal(changed(labels=False, outline=False), label_map > 0)
    assert not changed(alpha=0, labels=False, outline=False).any()
    assert changed().sum() > changed(scores=False).sum() > changed(labels=False).sum()
    assert np.array_equal(changed(labels=["person"]), changed(scores=False))
    with pytest.raises(tfiseg.InputError, match=r"alpha must lie in 0\.\.1, got 2"):
        found.draw(frame, alpha=2)
    with pytest.raises(tfiseg.InputError, match="one text for each of 1 instances, got 2"):
        found.draw(frame, labels=["a", "b"])


def test_name_with_a_lone_surrogate_is_drawn():
    found = hand_made(np.ones((60, 300)), (1,), class_names=("", "caf\udce9 \ud800"))
    assert found.draw(np.zeros((60, 300, 3), np.uint8)).any()


def test_drawing_accepts_every_kind_of_image(two, tmp_path):
    frame = np.full((30, 50, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    for picture in (tmp_path / "frame.png", Image.fromarray(frame), frame[..., 0]):
        assert np.array_equal(two.draw(picture), two.draw(frame))


@pytest.mark.parametrize("count", [0, 1, 254, 255, 256, 400])
def test_many_instances_are_renumbered(count):
    label_map = np.arange(count + 1, dtype=np.int32)[None]
    found = hand_made(label_map, [1] * count)
    assert found[::-1].label_map.tolist() == [[0, *range(count, 0, -1)]]
    assert found[:0].label_map.tolist() == [[0] * (count + 1)]
