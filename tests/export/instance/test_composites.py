"""The bank of single objects, composites of them, and their targets."""

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-export")

from tfiseg.errors import InputError  # noqa: E402
from tfiseg.export.instance.bank import Bank, build_bank, make_object, remove_dented_objects  # noqa: E402
from tfiseg.export.instance.composites import Composer  # noqa: E402
from tfiseg.export.instance.mask_noise import assign_owners, perturb_mask  # noqa: E402
from tfiseg.export.instance.picture_effects import erase_class  # noqa: E402
from tfiseg.export.instance.targets import instance_targets  # noqa: E402
from tfiseg.export.semantic.data import full_confidence  # noqa: E402
from tfiseg.plugins.settings import AFFINITY_OFFSETS  # noqa: E402


def test_bank_holds_single_objects_and_marks_whole_ones(bank):
    assert len(bank.objects) == 24
    cut = [o for o in bank.objects if not o.whole]
    assert [o.picture for o in cut] == [0]
    assert sum(o.isolated for o in bank.objects) == 4
    assert all(o.mask.shape == (o.box_xywh[3], o.box_xywh[2]) for o in bank.objects)


def test_empty_bank_raises_input_error(tmp_path):
    for name in ("images", "semantic"):
        (tmp_path / name).mkdir()
        cv2.imwrite(
            str(tmp_path / name / "a.png"), np.zeros((40, 40, *((3,) if name == "images" else ())), np.uint8)
        )
    with pytest.raises(InputError, match="one whole object"):
        build_bank(tmp_path / "images", tmp_path / "semantic")


def test_composite_depends_on_its_number_only(bank):
    first, second = Composer(bank, 3), Composer(bank, 3)
    second(0)
    for k in (5, 6):
        a, b = first(k), second(k)
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.owner, b.owner)
        assert a.image.shape == (first.view_px, first.view_px, 3)
        assert a.owner.shape == a.mask.shape == (first.view_px, first.view_px)
        assert np.array_equal(a.mask > 0, a.owner != 0)
        assert not (a.other & a.mask).any()
    assert not np.array_equal(first(5).image, Composer(bank, 4)(5).image)


def test_occluder_is_another_class_if_the_class_map_shows_it(bank):
    composer = Composer(bank, 0)
    side = composer.canvas_px
    canvas, label = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.int32)
    label[60:160, 60:160] = 1
    composer.occlude(
        canvas, label, composer.classes[0], 100.0, np.random.default_rng(2)
    )  # a bar, because the bank has no other class
    assert (label == -1).any()
    assert (label == 1).any()
    known = [bool(composer(k).other.any()) for k in range(60)]
    assert any(known)
    assert not all(known)


def test_composites_show_one_or_several_objects(bank):
    composer = Composer(bank, 0)
    counts = [len(np.unique(o[o > 0])) for o in (composer(k).owner for k in range(40))]
    assert min(counts) == 1
    assert max(counts) >= 3


def test_perturbed_masks_keep_their_objects():
    label = np.zeros((80, 80), np.int32)
    label[20:60, 10:40], label[20:60, 40:70] = 1, 2
    for seed in range(40):
        mask = perturb_mask(label, np.random.default_rng(seed))
        owner = assign_owners(label, mask)
        assert np.array_equal(owner != 0, mask > 0)
        both = (mask > 0) & (label > 0)
        assert (owner[both] == label[both]).all()
    far = np.zeros_like(label, np.uint8)
    far[0:3, 0:3] = 1
    assert (assign_owners(label, far)[:3, :3] == -1).all()


def test_faults_grow_with_the_view():
    label = np.zeros((160, 160), np.int32)
    label[40:120, 20:80], label[40:120, 80:140] = 1, 2
    wrong = [
        np.mean(
            [(perturb_mask(label, np.random.default_rng(k), zoom) != (label > 0)).mean() for k in range(40)]
        )
        for zoom in (1.0, 1.5)
    ]
    assert wrong[1] > 1.2 * wrong[0]


def test_targets_of_two_touching_squares():
    owner = np.zeros((32, 32), np.int32)
    owner[:, :16], owner[:, 16:] = 1, 2
    owner[:4, :4] = -1  # the first cell's center is unknown
    targets = instance_targets(owner)
    assert targets.weight[0, 0] == 0
    assert targets.weight[3, 3] > 0
    right = AFFINITY_OFFSETS.index((0, 1))
    assert targets.affinity[right, 4].tolist() == [1, 1, 1, 0, 1, 1, 1, 255]
    assert targets.affinity[right, 0, 0] == 255
    assert targets.displacement[1, 4, 7] == pytest.approx((23.5 - 30) / 32)
    assert targets.boundary[8].tolist() == [0] * 7 + [1, 1] + [0] * 7


def test_dented_objects_of_a_convex_class_are_groups(gray_picture):
    shapes = []
    for k in range(6):
        class_map = np.zeros((120, 160), np.uint8)
        cv2.circle(class_map, (60, 60), 20, 1, -1)
        if k == 5:
            cv2.circle(class_map, (96, 60), 20, 1, -1)
        shapes.append(gray_picture(class_map))
    bank = Bank(shapes, [make_object(full_confidence(p), k, 1, p.semantic > 0) for k, p in enumerate(shapes)])
    assert [o.picture for o in remove_dented_objects(bank).objects] == [0, 1, 2, 3, 4]


def test_class_is_erased_from_backgrounds_if_every_image_shows_it(bank):
    assert all((p.semantic == 1).any() for p in bank.pictures)
    picture = bank.pictures[1]
    emptied = erase_class(picture, 1)
    far = cv2.dilate((picture.semantic == 1).astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    assert np.array_equal(emptied[far], picture.image[far])
    # nothing of the red disks remains
    assert np.abs(emptied[picture.semantic == 1].astype(float) - (0, 0, 255)).max(1).min() > 30
