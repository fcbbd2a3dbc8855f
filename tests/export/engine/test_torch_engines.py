"""PyTorch networks, exported and built by TensorRT-RTX in three precisions: `make test-export`."""

import json

import pytest
from tfiseg.cli.main import main

torch = pytest.importorskip("torch", reason="the extra `export` is not installed (make test-export)")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (make test-export)")

PLAIN = """
import torch


def network():
    torch.manual_seed(1)
    conv = torch.nn.Conv2d
    return torch.nn.Sequential(
        conv(3, 16, 3, 2, 1), torch.nn.ReLU(), conv(16, 32, 3, 2, 1), torch.nn.ReLU(),
        conv(32, 32, 3, 1, 1, groups=32), torch.nn.ReLU6(),
        conv(32, 4, 1), torch.nn.Upsample(scale_factor=4, mode="bilinear"), torch.nn.Softmax(1),
    )
"""


def segformer(folder):
    transformers = pytest.importorskip(
        "transformers", reason="the extra `hf` is not installed (make test-export)"
    )
    transformers.SegformerConfig(
        num_labels=5,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
    ).save_pretrained(folder / "segformer")
    return f"hf:{folder / 'segformer'}"


def plain(folder):
    (folder / "plain_module.py").write_text(PLAIN)
    return "python:plain_module:network"


@pytest.mark.parametrize(
    ("make", "layers", "high"), [(segformer, 47, 10), (plain, 4, 2)], ids=["segformer", "plain"]
)
def test_three_engines_from_a_torch_network(make, layers, high, frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(
        3
    )  # with these weights, an operand of a product has a scale below float16's normal range
    random = " --random-weights" if make is segformer else ""
    options = f"-o net.onnx --input-size 128x160 --photos {frames}{random} --json"
    assert main(["export", make(tmp_path), *options.split()]) == 0
    assert json.loads(capsys.readouterr().out)["label_agreement"] > 0.995
    for precision, expected in (("fp32", layers), ("fp16", layers), ("int8", layers - high)):
        command = f"build net.onnx -o {precision}.engine --target rtx --precision {precision}".split()
        command += ["--frames", str(frames)]
        # these networks are not trained, so logits of different labels are close
        assert main([*command, "--min-agreement", "80", "--min-pq", "0", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["precision"]["layers"][precision] == expected
        assert record["precision"]["proved_by"]["parsed network"] == layers
        assert record["precision"]["proved_by"]["builder's layer report"] >= layers - 2
    half = "build net.onnx --target onnxruntime --precision fp16 -o half.onnx --no-gate --json"
    assert main(half.split()) == 0
    assert main(["compare", "net.onnx", "half.onnx", "--frames", str(frames), "--count", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label_agreement"] > 99
