"""Networks of torchvision, segmentation-models-pytorch (timm encoders) and transformers, with random weights: exported, run, built.

Needs several GB of packages that import only beside each other: `make test-zoo`.
"""

import importlib.util
import json

import pytest

pytest.importorskip("torchvision", reason="the extra `zoo` is not installed (make test-zoo)")
smp = pytest.importorskip("segmentation_models_pytorch", reason="the extra `zoo` is not installed (make test-zoo)")

import tfiseg  # noqa: E402
from tfiseg.cli import main  # noqa: E402
from tfiseg.runtime.synthetic import SyntheticCamera  # noqa: E402

SOURCES = [
    ("torchvision:fcn_resnet50", 21),
    ("torchvision:deeplabv3_mobilenet_v3_large", 21),
    ("torchvision:lraspp_mobilenet_v3_large", 21),
    ("smp:Unet/resnet18", 21),
    ("smp:FPN/timm-mobilenetv3_small_100", 21),
    ("smp:DeepLabV3Plus/tu-efficientnet_lite0", 21),
    ("smp:Segformer/resnet18", 21),
]


@pytest.mark.parametrize(("source", "classes"), SOURCES, ids=[source for source, _ in SOURCES])
def test_a_network_of_the_zoo_is_exported_run_and_built(source, classes, tmp_path, capsys):
    network = tmp_path / "net.onnx"
    assert main(["export", source, "-o", str(network), "--random-weights", "--input-size", "256x320", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["label_agreement"] >= 0.995
    assert len(report["metadata"]["class_names"]) == classes
    segmenter = tfiseg.Segmenter(network)
    frame = next(iter(SyntheticCamera()))
    assert segmenter(frame).label_map.shape == frame.image.shape[:2]
    print(source, report["cut"], f"{report['label_agreement']:.5f}", f"{report['bytes'] / 1e6:.1f} MB")
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        engine = tmp_path / "net.engine"
        assert main(["build", str(network), "-o", str(engine), "--target", "rtx", "--precision", "fp16", "--no-gate", "--json"]) == 0
        built = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert built["precision"]["layers"]["fp32"] == 0
        print(built["precision"]["layers"], built["precision"]["proved_by"], built["timings_s"])


def test_mask2former_becomes_scores_per_class(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed (make test-zoo)")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
        num_labels=3,
    )
    config.save_pretrained(tmp_path / "config")
    out = tmp_path / "net.onnx"
    assert main(["export", f"hf:{tmp_path / 'config'}", "-o", str(out), "--random-weights", "--input-size", "128x160"]) == 0
    assert len(tfiseg.Segmenter(out).class_names) == 3
