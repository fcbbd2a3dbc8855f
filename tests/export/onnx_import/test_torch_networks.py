"""Export of PyTorch networks: your own function, and transformers. Needs the extras `export` and `hf`."""

import importlib.util
import json

import numpy as np
import pytest
import tfiseg
from tfiseg.cli.main import main

torch = pytest.importorskip("torch", reason="the extra `export` is not installed (make test-export)")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed (make test-export)")

from tfiseg.export.onnx_import.any_network import ExportSettings, export_any  # noqa: E402
from tfiseg.export.onnx_import.state_dicts import load_weights  # noqa: E402

CODE = """
import torch
from torch import nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self, corners):
        super().__init__()
        torch.manual_seed(0)
        first = nn.Conv2d(3, 8, 3, 4, 1)
        self.body = nn.Sequential(first, nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 1))
        self.corners = corners

    def forward(self, x):
        y = F.interpolate(self.body(x), size=x.shape[-2:], mode="bilinear", align_corners=self.corners)
        return {"out": y, "aux": y}


def plain():
    return Net(False)


def corners():
    return Net(True)


def broken():
    raise RuntimeError("no such file")


def number():
    return 3


def traced():
    return torch.jit.trace(Net(False).eval(), torch.zeros(1, 3, 64, 96), strict=False)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(source, folder, **options):
    options = {"input_size_hw": (64, 96), **options}
    return export_any(source, folder / "out.onnx", ExportSettings(**options), quiet=True)


@pytest.mark.parametrize(("function", "grid_hw"), [("plain", [16, 24]), ("corners", [64, 96])])
def test_own_function(function, grid_hw, here):
    report = export(
        f"python:my_nets:{function}", here, class_names="background,person,car,sky", things="person"
    )
    assert report["removed"] == ["Resize"]
    assert report["grid_hw"] == grid_hw
    assert report["label_agreement"] > 0.995
    assert report["labels_seen"] > 1
    assert tfiseg.Segmenter(here / "out.onnx").things == (1,)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("python:my_nets", "names no function"),
        ("python:my_nets:absent", "AttributeError"),
        ("python:no_such_module:f", "ModuleNotFoundError"),
        ("python:my_nets:broken", "RuntimeError: no such file"),
        ("python:my_nets:number", "returned int, expected a torch.nn.Module"),
        ("python:my_nets:traced", "returned a TorchScript module, which torch can't write as ONNX"),
        ("hf:.", "no folder with a config.json"),
    ],
)
def test_unknown_sources_raise_errors(source, message, here, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if source.startswith("hf:"):
        pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    with pytest.raises(tfiseg.TfisegError) as wrong:
        export(source, here)
    assert message in str(wrong.value)
    assert not (here / "out.onnx").exists()


def test_random_weights_may_give_one_label(here):
    """They are for timing, and no photos give them more labels."""
    (here / "dull.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    layer = nn.Conv2d(3, 2, 1)\n"
        "    nn.init.normal_(layer.weight, std=0.01)\n    layer.bias.data = torch.tensor([-1.0, -5.0])\n"
        "    return layer\n"
    )
    with pytest.raises(tfiseg.ModelError, match="has the label"):
        export("python:dull:net", here)
    assert export("python:dull:net", here, random_weights=True)["labels_seen"] == 1


def own_networks(folder):
    spec = importlib.util.spec_from_file_location("nets_for_weights", folder / "my_nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_weights_are_loaded_or_rejected(here):
    state = own_networks(here).plain().state_dict()
    # class 1 on black and other classes elsewhere, because one label everywhere is rejected
    state["body.3.bias"] = torch.tensor([0.0, 0.3, 0.0, 0.0])
    torch.save({"state_dict": state}, here / "w.pth")
    export("python:my_nets:plain", here, weights=here / "w.pth")
    maps = tfiseg.Segmenter(here / "out.onnx").session.infer(np.zeros((40, 40, 3), np.uint8))
    assert (maps["logits"].argmax(1) == 1).all()
    del state["body.0.weight"]
    torch.save(state, here / "w.pth")
    with pytest.raises(
        tfiseg.ModelError, match=r"lacks 1 of the network's .* weights, e\.g\. body\.0\.weight"
    ):
        export("python:my_nets:plain", here, weights=here / "w.pth")
    (here / "w.pth").write_text("no weights")
    with pytest.raises(tfiseg.ModelError, match="is no state dict"):
        export("python:my_nets:plain", here, weights=here / "w.pth")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()} | {"loss.w": torch.ones(2)}},
        lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"model_state_dict": {name: value.half() for name, value in state.items()}},
    ],
    ids=["DataParallel", "Lightning", "torchvision", "half"],
)
def test_weights_of_training_programs_are_found(wrapped, here):
    network = own_networks(here).plain()
    state = {name: torch.rand(value.shape).to(value.dtype) for name, value in network.state_dict().items()}
    torch.save(wrapped(state), here / "w.pth")
    load_weights(network, here / "w.pth")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=2e-3, rtol=1e-3)


def test_two_sets_of_weights_are_an_error(here):
    network = own_networks(here).plain()
    state = network.state_dict()
    torch.save(
        {f"{prefix}.{name}": value for prefix in ("student", "teacher") for name, value in state.items()},
        here / "w.pth",
    )
    with pytest.raises(tfiseg.ModelError, match=r"2 times, with the prefixes 'student\.', 'teacher\.'"):
        load_weights(network, here / "w.pth")


def test_files_that_hold_more_than_weights_say_what_to_save(here):
    torch.save(torch.nn.Linear(2, 2), here / "module.pt")
    with pytest.raises(tfiseg.ModelError, match=r"torch\.save\(module\.state_dict\(\), FILE\)"):
        load_weights(torch.nn.Linear(2, 2), here / "module.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(here / "script.pt")
    with pytest.raises(tfiseg.ModelError, match="is a TorchScript file"):
        load_weights(torch.nn.Linear(2, 2), here / "script.pt")


def test_a_network_in_half_precision_is_exported(here):
    (here / "half_net.py").write_text("import my_nets\n\n\ndef net():\n    return my_nets.plain().half()\n")
    assert export("python:half_net:net", here)["label_agreement"] > 0.995


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    folder = tmp_path_factory.mktemp("segformer")
    sizes = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 32,
    }
    transformers.SegformerConfig(**sizes, id2label={0: "road", 1: "person", 2: "car"}).save_pretrained(folder)
    stated = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 64, "width": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


def test_segformer_from_a_config_alone(segformer, tmp_path):
    report = export(f"hf:{segformer}", tmp_path, random_weights=True, input_size_hw=None)
    assert report["input_size_hw"] == [64, 96]
    assert report["grid_hw"] == [16, 24]
    assert "[0.5, 0.5, 0.5]) / [0.25, 0.25, 0.25]" in report["pixels"]
    assert report["class_names"] == ["road", "person", "car"]
    assert report["things"] == [1, 2]
    assert report["label_agreement"] > 0.999


def test_missing_weights_raise_an_error(segformer, tmp_path, capsys):
    assert main(["export", f"hf:{segformer}", "-o", str(tmp_path / "x.onnx")]) == 1
    text = capsys.readouterr().err
    assert "--random-weights" in text
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("kind", ["upernet", "mask2former"])
def test_larger_architectures(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    stages = [f"stage{i}" for i in range(1, 5)]
    swin = transformers.SwinConfig(
        embed_dim=16, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, out_features=stages
    )
    labels = {i: name for i, name in enumerate(("background", "person", "car", "dog"))}
    if kind == "upernet":
        config = transformers.UperNetConfig(
            backbone_config=swin,
            hidden_size=16,
            use_auxiliary_head=False,
            pool_scales=[1, 2],
            id2label=labels,
        )
    else:
        small = {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "dim_feedforward": 32,
        }
        few = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 10}
        config = transformers.Mask2FormerConfig(backbone_config=swin, id2label=labels, **small, **few)
    config.save_pretrained(tmp_path)
    report = export(f"hf:{tmp_path}", tmp_path, random_weights=True, input_size_hw=(64, 64))
    assert report["class_names"] == list(labels.values())
    assert report["label_agreement"] > 0.995


def test_checkpoint_of_tfiseg_needs_no_photos(tmp_path, capsys):
    from tfiseg.export.semantic.network import SegmentationNetwork

    torch.manual_seed(0)
    network = SegmentationNetwork({"logits": 3}).eval()
    torch.save({"recipe": {"classes": 3}, "average": network.state_dict()}, tmp_path / "x.ckpt")
    argv = ["export", str(tmp_path / "x.ckpt"), "-o", str(tmp_path / "x.onnx")]
    assert main([*argv, "--class-names", "background,cat,dog", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["photos"] == 4
    assert report["label_agreement"] > 0.995
    assert tfiseg.Segmenter(tmp_path / "x.onnx").class_names == ("background", "cat", "dog")
    (tmp_path / "x.ckpt").write_text("nothing")
    assert main(argv) == 1
    assert "is no checkpoint of `tfiseg train semantic`" in capsys.readouterr().err
