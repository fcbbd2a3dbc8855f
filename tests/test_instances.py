import numpy as np
import pytest
import tfiseg
from pycocotools import mask as coco


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
def test_rle_is_what_pycocotools_writes(seed):
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
    import cv2

    (outline,) = two.polygon(1)
    painted = cv2.fillPoly(np.zeros((30, 50), np.uint8), [outline], 1)
    assert np.array_equal(painted > 0, two.mask(1))


def test_drawing_is_a_new_picture_that_changes_inside_only(two):
    frame = np.full((30, 50, 3), 90, np.uint8)
    view = two.draw(tfiseg.Frame(frame))
    assert (frame == 90).all()
    assert (view[two.label_map > 0] != 90).any(-1).all()
    assert np.array_equal(two.draw(frame), view)


def test_labels_leave_most_of_a_crowd_to_be_seen():
    y, x = np.mgrid[:200, :400] % 20 - 9
    crowd = tfiseg.cluster(
        (x**2 + y**2 < 64).astype(np.uint8), split=0, class_names=["background", "nucleus"]
    )
    assert len(crowd) == 200
    view = crowd.draw(np.full((200, 400, 3), 90, np.uint8))
    unlike = (view != 90).any(-1) & (crowd.label_map == 0)
    assert (
        0.02 < unlike.mean() < 0.25
    )  # outlines and some labels; with all of them little more would be seen than labels


def test_drawing_on_another_frame_says_so(two):
    with pytest.raises(tfiseg.InputError, match="draw them on their own frame"):
        two.draw(np.zeros((60, 100, 3), np.uint8))


def test_supervision_takes_them(two):
    detections = two.to_supervision()
    assert detections.mask.shape == (2, 30, 50)
    assert detections.data["class_name"].tolist() == ["c15", "c7"]


def test_selecting_numbers_anew(two):
    second = two.select(two.class_id == 7)
    assert len(second) == 1
    assert np.array_equal(second.mask(0), two.mask(1))
    assert two.select([True, True]) is two
    with pytest.raises(tfiseg.InputError, match=r"bool \(2,\)"):
        two.select([True])


def test_no_instances_are_fine():
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
