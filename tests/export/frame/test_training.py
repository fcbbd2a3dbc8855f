"""Instance heads: training and export with images of synthetic people."""

import json

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: make test-export")

import onnx  # noqa: E402
from plain_model import PLAIN_MODEL  # noqa: E402
from tfiseg import Segmenter  # noqa: E402
from tfiseg.cli.main import main  # noqa: E402
from tfiseg.errors import InputError, ModelError  # noqa: E402
from tfiseg.export.engine.build import semantic_network  # noqa: E402
from tfiseg.export.frame.backbone_taps import find_taps  # noqa: E402
from tfiseg.export.frame.composites import SAME_SIZE, make_material  # noqa: E402
from tfiseg.export.frame.heads import InstanceHeads  # noqa: E402
from tfiseg.export.frame.train import frame_targets  # noqa: E402
from tfiseg.export.instance.bank import build_bank  # noqa: E402
from tfiseg.export.instance.teacher import predict_pseudo_labels  # noqa: E402
from tfiseg.plugins.settings import AFFINITY_OFFSETS  # noqa: E402
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL  # noqa: E402
from tfiseg.runtime.networks.onnx_session import OnnxSession  # noqa: E402
from tfiseg.runtime.refine.refiner import Refiner  # noqa: E402
from tfiseg.runtime.sources.synthetic import SyntheticCamera  # noqa: E402

FRAMES = 10


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Images of people, with class maps from the default network."""
    folder = tmp_path_factory.mktemp("people")
    session = OnnxSession(PLAIN_MODEL)
    for name in ("images", "semantic"):
        (folder / name).mkdir()
    for k in range(FRAMES):
        image = next(iter(SyntheticCamera((240, 320), people=1 + k % 3, seed=k))).image
        class_map = session.infer(image)["logits"][0].argmax(0).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{k:02}.png"), image)
        cv2.imwrite(
            str(folder / "semantic" / f"{k:02}.png"),
            cv2.resize(class_map, (320, 240), interpolation=cv2.INTER_NEAREST),
        )
    return folder


@pytest.fixture(scope="module")
def material(people):
    bank = build_bank(people / "images", people / "semantic")
    return make_material(bank, predict_pseudo_labels(bank, Refiner(), quiet=True), 0.2, 0)


def test_taps_are_one_per_stride_and_the_last_decoder_tensor():
    taps = find_taps(onnx.load(PLAIN_MODEL))
    assert [t.stride for t in taps] == [4, 8, 16, 4]
    assert all(t.channels >= 8 for t in taps)


def test_composite_depends_on_its_number_and_contains_each_object_once(material):
    first, second = material.composer(3), material.composer(3)
    for number in (0, SAME_SIZE):
        a, b = first(number), second(number)
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.owner, b.owner)
        assert a.owner.max() <= len(a.class_id)
        assert a.image.shape[:2] == a.owner.shape == ((288, 384) if number < SAME_SIZE else (384, 288))


def test_held_out_images_are_not_used(material):
    assert not set(material.used_pictures) & set(material.held_pictures)
    assert not {o.picture for o in material.used.objects} & {o.picture for o in material.held.objects}


def test_pairs_of_two_classes_are_unknown(material):
    composite = material.composer(0)(1)
    two = np.array([[1, 1, 2, 2]], np.int32).repeat(4, 0).repeat(8, 0).repeat(8, 1)
    same = type(composite)(np.zeros((*two.shape, 3), np.uint8), two, np.array([15, 15], np.int32))
    other = type(composite)(same.image, two, np.array([15, 3], np.int32))
    grid = (two.shape[0] // 4, two.shape[1] // 4)
    assert 0 in frame_targets(same, grid)[2]
    assert set(np.unique(frame_targets(other, grid)[2])) == {1, 255}


def test_heads_have_stride_4():
    taps = find_taps(onnx.load(PLAIN_MODEL))
    heads = InstanceHeads(taps).eval()
    displacement, affinity, boundary = heads(
        *(torch.zeros(2, t.channels, 256 // t.stride, 320 // t.stride) for t in taps)
    )
    assert displacement.shape == (2, 2, 64, 80)
    assert affinity.shape == (2, len(AFFINITY_OFFSETS), 64, 80)
    assert boundary.shape == (2, 1, 64, 80)


@pytest.mark.usefixtures("short_fits")
def test_from_a_network_and_folders_to_one_model(people, tmp_path, capsys):
    out, checkpoint = tmp_path / "frame.onnx", tmp_path / "frame.ckpt"
    command = f"train frame --images {people}/images --semantic {people}/semantic -o {out}".split()
    command += f"--checkpoint {checkpoint} --steps 2 --rule-composites 30 --sheets {tmp_path}/sheets".split()
    teacher = onnx.load(DEFAULT_INSTANCE_MODEL)
    for p in teacher.metadata_props:
        p.value = p.value.replace('"view_px": 192', '"view_px": 192, "min_area": 40')
    onnx.save(teacher, tmp_path / "teacher.onnx")
    command += ["--instance-model", str(tmp_path / "teacher.onnx")]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["largest_difference"] < 0.02
    assert report["bytes"] == out.stat().st_size < 10_000_000
    assert (tmp_path / "sheets" / "frames.jpg").exists()
    image = cv2.imread(str(people / "images" / "02.png"))
    plain, heads = OnnxSession(PLAIN_MODEL).infer(image), OnnxSession(out).infer(image)
    assert heads["logits"].shape[2:] == tuple(2 * side for side in plain["logits"].shape[2:])
    assert heads["affinity"].shape[2:] == plain["logits"].shape[2:]
    halved = heads["logits"].reshape(*plain["logits"].shape[:3], 2, plain["logits"].shape[3], 2).mean((3, 5))
    assert np.abs(halved - plain["logits"]).mean() < 0.2  # the class map is the network's own
    segmenter = Segmenter(out, refine="frame")
    assert len(segmenter(image)) >= 1
    assert segmenter._frame_min_area((1080, 1920)) == 40  # from its teacher
    without_heads = semantic_network(out)
    assert [o.name for o in without_heads.graph.output] == ["logits"]
    assert [t.name for t in find_taps(without_heads)] == [t.name for t in find_taps(onnx.load(PLAIN_MODEL))]


def test_error_without_heads_names_the_command():
    with pytest.raises(ModelError, match="train frame --model"):
        Segmenter(PLAIN_MODEL, refine="frame")
    with pytest.raises(InputError, match="components"):
        Segmenter(refine="frame", instance_model="any.onnx")
