"""Test architectures of torchvision and segmentation-models-pytorch with random weights (`make test-zoo`)."""

import numpy as np
import pytest
import tfiseg

torch = pytest.importorskip("torch", reason="the extra `zoo` is not installed (make test-zoo)")
pytest.importorskip("torchvision", reason="the extra `zoo` is not installed (make test-zoo)")
pytest.importorskip("segmentation_models_pytorch", reason="the extra `zoo` is not installed (make test-zoo)")

from tfiseg.export.onnx_import import torch_networks  # noqa: E402
from tfiseg.export.onnx_import.any_network import ExportSettings, export_any  # noqa: E402

NETWORKS = [
    "torchvision:fcn_resnet50",
    "torchvision:deeplabv3_mobilenet_v3_large",
    "torchvision:lraspp_mobilenet_v3_large",
    "smp:Unet/resnet18",
    "smp:UnetPlusPlus/resnet18",
    "smp:FPN/timm-mobilenetv3_small_100",
    "smp:DeepLabV3Plus/mobilenet_v2",
    "smp:PSPNet/resnet18",
    "smp:PAN/resnet18",
    "smp:Linknet/resnet18",
    "smp:Segformer/mit_b0",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the result must not depend on the network
    torch.manual_seed(0)


def with_varied_predictions(load):
    """Return a loader of random networks that predict all classes equally often on noise."""

    def load_varied(*args):
        network = load(*args)
        norms = [m for m in network.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the average of all batches
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(4, 3, 12, 12, generator=generator)
        pictures = torch.nn.functional.interpolate(coarse, size=(192, 192), mode="bilinear")
        with torch.no_grad():
            network.module.train()
            network.module(pictures)
            network.module.eval()
            mean = network.module(pictures).mean((0, 2, 3))
        convs = [m for m in network.module.modules() if isinstance(m, torch.nn.Conv2d)]
        last = [m for m in convs if m.out_channels == len(mean)]
        for conv in last[:1] if hasattr(network.module.network, "aux_classifier") else last[-1:]:
            if conv.bias is not None:
                conv.bias.data -= mean
        return network

    return load_varied


@pytest.mark.parametrize("source", NETWORKS)
def test_architectures(source, tmp_path, monkeypatch, record_property, capsys):
    load = with_varied_predictions(torch_networks.load_torch_network)
    monkeypatch.setattr(torch_networks, "load_torch_network", load)
    options = ExportSettings(input_size_hw=(192, 256), random_weights=True)
    report = export_any(source, tmp_path / "out.onnx", options, quiet=True)
    with capsys.disabled():
        columns = ("label_agreement", "label_agreement_mean", "labels_seen", "grid_hw", "removed", "seconds")
        print(f"\n{source}: " + ", ".join(f"{k} {report[k]}" for k in columns), end=" ")
    assert report["label_agreement"] >= 0.995
    found = tfiseg.Segmenter(tmp_path / "out.onnx")(np.zeros((60, 90, 3), np.uint8))
    assert found.label_map.shape == (60, 90)


def test_class_names_are_those_of_the_weights(tmp_path):
    report = export_any(
        "torchvision:lraspp_mobilenet_v3_large",
        tmp_path / "out.onnx",
        ExportSettings(input_size_hw=(96, 96), random_weights=True),
        quiet=True,
    )
    assert report["class_names"][0] == "background"
    assert report["class_names"][15] == "person"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:resnet50", "no segmentation network 'resnet50', but deeplabv3_mobilenet_v3_large"),
        ("smp:Unet", "names no encoder"),
        ("smp:Nonsense/resnet18", "can't make Nonsense"),
        ("smp:Unet/nonsense", "can't make Unet with encoder nonsense"),
    ],
)
def test_unknown_sources_raise_errors(source, message, tmp_path):
    with pytest.raises(tfiseg.InputError) as wrong:
        export_any(source, tmp_path / "out.onnx", ExportSettings(random_weights=True), quiet=True)
    assert message in str(wrong.value)


def test_failed_downloads_of_weights_raise_errors(tmp_path, monkeypatch):
    def unreachable(*args, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        tfiseg.ModelError, match=r"can't be downloaded \(no route to host\).*--random-weights"
    ):
        export_any("torchvision:lraspp_mobilenet_v3_large", tmp_path / "out.onnx", quiet=True)
    with pytest.raises(tfiseg.ModelError, match="weights for encoders only"):
        export_any("smp:Unet/resnet18", tmp_path / "out.onnx", quiet=True)
