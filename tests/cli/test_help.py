"""The help of every verb: groups, texts, and examples, which are run as written."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tfiseg
from plain_model import PLAIN_MODEL
from tfiseg.cli.main import _parser
from tfiseg.cli.parser import GROUPS, size
from tfiseg.runtime.segmenter_settings import QUALITIES, REFINES

CLIP = Path(tfiseg.__file__).parent / "cli" / "media" / "people.mp4"


def verbs(parser):
    """Return all verbs without subverbs."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [leaf for action in inner for verb in action.choices.values() for leaf in verbs(verb)] or [parser]


VERBS = verbs(_parser())
EXAMPLES = list(
    {example.command: example for verb in [_parser(), *VERBS] for example in verb.examples}.values()
)


def named(things):
    return pytest.mark.parametrize(
        "verb", things, ids=[verb.prog.removeprefix("tfiseg ").replace(" ", "-") for verb in things]
    )


@named(VERBS)
def test_every_option_is_in_a_group_and_has_a_help_text(verb):
    grouped = set()
    for group in verb._action_groups:
        if group.title.split(":")[0] in GROUPS:
            grouped |= {action.dest for action in group._group_actions}
    for action in verb._actions:
        assert action.dest == "help" or action.dest in grouped, action.dest
        assert action.help, action.dest


@named(VERBS)
def test_help_shows_groups_and_examples(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    text = verb.format_help()
    assert "\nexamples:\n  " in text
    assert "\noutput:\n" in text
    assert verb.examples
    for example in verb.examples:
        assert example.command in text


def test_every_verb_reports_as_json():
    for verb in VERBS:
        assert any("--json" in action.option_strings for action in verb._actions), verb.prog


def test_choices_equal_those_of_the_api():
    run = next(verb for verb in VERBS if verb.prog == "tfiseg run")
    metavars = {action.dest: action.metavar for action in run._actions}
    assert metavars["quality"] == "{" + ",".join(QUALITIES) + "}"
    assert metavars["refine"] == "{" + ",".join(REFINES) + "}"


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory):
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("example_folder")
    shutil.copy(PLAIN_MODEL, folder / "net.onnx")
    frames = cv2.VideoCapture(str(CLIP))
    (folder / "photos").mkdir()
    video = cv2.VideoWriter(str(folder / "street.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 180))
    for k in range(6):
        frames.set(cv2.CAP_PROP_POS_FRAMES, 15 * k)
        frame = cv2.resize(frames.read()[1], (320, 180))
        video.write(frame)
        if k % 2:
            cv2.imwrite(str(folder / "photos" / f"{k}.jpg"), frame)
    video.release()
    shutil.copy(folder / "photos" / "3.jpg", folder / "street.jpg")
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 180, "width": 320} for k in (1, 3, 5)]
    person = {"id": 1, "image_id": 3, "category_id": 1, "segmentation": [[150, 50, 180, 50, 180, 150]]}
    coco = {"images": images, "annotations": [person], "categories": [{"id": 1, "name": "person"}]}
    (folder / "photos.json").write_text(json.dumps(coco))
    for kind in ("images", "instances", "semantic"):
        (folder / "people" / kind).mkdir(parents=True)
    truth = np.zeros((60, 80), np.uint16)
    truth[10:50, 10:30], truth[10:50, 34:60] = 1, 2
    cv2.imwrite(str(folder / "people" / "images" / "a.png"), np.full((60, 80, 3), 120, np.uint8))
    cv2.imwrite(str(folder / "people" / "instances" / "a.png"), truth)
    cv2.imwrite(str(folder / "people" / "semantic" / "a.png"), (truth > 0).astype(np.uint8) * 15)
    (folder / "people" / "classes.json").write_text(json.dumps({"15": "person"}))
    return folder


def run_as_written(command, example_folder):
    """Run a command line in the shell, with this version of ``tfiseg``."""
    program = f"{shlex.quote(sys.executable)} -m tfiseg"
    return subprocess.run(
        re.sub(r"^tfiseg\b", lambda _: program, command),
        shell=True,
        cwd=example_folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "DISPLAY": "", "WAYLAND_DISPLAY": ""},
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.command for example in EXAMPLES])
def test_examples_run_as_written(example, example_folder):
    if example.needs:
        pytest.skip(f"needs {example.needs}")
    done = run_as_written(example.command, example_folder)
    accepted = (0, 1) if example.command.startswith("tfiseg doctor") else (0,)  # 1: a problem was found
    assert done.returncode in accepted, done.stderr
    if "--json" in example.command:
        json.loads(done.stdout)


def test_other_examples_have_known_options():
    for example in EXAMPLES:
        words = [w for w in shlex.split(example.command)[1:] if Path(w).suffix not in (".onnx", ".ckpt")]
        verb = next((v for v in VERBS if " ".join(words).startswith(v.prog.removeprefix("tfiseg "))), None)
        known = {option for action in (verb or _parser())._actions for option in action.option_strings}
        assert {w for w in words if w.startswith("-") and w != "-"} <= known | {"--help"}, example.command


def test_hints_can_be_pasted(example_folder):
    done = run_as_written("tfiseg export default -o hinted.onnx --photos photos/", example_folder)
    assert done.returncode == 0, done.stderr
    hints = re.findall(r"^next: (.*)", done.stdout, re.MULTILINE)
    assert hints == ["tfiseg run photos/ --model hinted.onnx"]
    for hint in hints:
        assert run_as_written(hint, example_folder).returncode == 0


@pytest.mark.parametrize(("order", "example"), [("WxH", "640x480"), ("HxW", "480x640")])
def test_the_example_of_a_size_has_its_order(order, example):
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected {order} .*e.g. {example}, got '3x'"):
        size(order)("3x")
