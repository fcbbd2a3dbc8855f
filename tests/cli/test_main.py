import json

import cv2
import numpy as np
import pytest
from tfiseg.cli.main import main

VERBS = ("run", "demo", "eval", "bench", "train", "export", "inspect", "doctor", "triton", "plugin")


def test_help_shows_all_verbs(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {verb}" in text for verb in VERBS)


def test_no_verb_prints_help_and_fails(capsys):
    assert main([]) == 2
    assert "VERB" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_run_as_json(tmp_path, capsys):
    photo = tmp_path / "grey.png"
    cv2.imwrite(str(photo), np.full((48, 64, 3), 120, np.uint8))
    assert main(["run", str(photo), "--out", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 1
    assert report["overlay"].endswith("grey-overlay.png")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "nowhere.png"], "there is no file nowhere.png"),
        (["run", "synthetic"], "--frames N"),
        (["run", "synthetic", "--frames", "1", "--things", "unicorn"], "unknown class 'unicorn'"),
        (["run", "synthetic", "--frames", "1", "--model", "no.onnx"], "there is no model no.onnx"),
        (["run", "synthetic", "--frames", "1", "--out", "/dev/null/out"], "can't write to the output folder"),
        (["eval", "."], "has no images"),
        (["eval", ".", "--things", "person"], "Use --semantic model"),
        (["eval", ".", "--scales", "1,1.5"], "Use --semantic model"),
        (["eval", ".", "--min-score", "0.1"], "Use --semantic model"),
        (["run", "synthetic", "--frames", "1", "--scales", "1,0.5"], "scales must be numbers from 1 to 8"),
        (["run", "synthetic", "--frames", "1", "--min-area", "-1"], "min_area must lie in 0.."),
        (
            ["eval", "nowhere", "--thorough"],
            'thorough has no effect without refine="components" or quality="best"',
        ),
        (
            ["eval", "nowhere", "--max-views", "8"],
            'max_views has no effect without refine="components" or quality="best"',
        ),
        (["run", "synthetic", "--frames", "-3"], "at least 1"),
        (["run", "synthetic", "--frames", "1", "--threads", "-1"], "threads must be"),
        (["bench", "--side", "1"], "side must lie in"),
    ],
)
def test_failures_are_sentences_and_exit_with_1(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"tfiseg {argv[0]}: ")
    assert says in text


def test_a_run_that_fails_half_way_exits_with_1_and_keeps_its_frames(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "in" / "b.png").write_text("no picture")
    assert main(["run", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert "what was done is kept" in capsys.readouterr().err
    assert (tmp_path / "out" / "a-overlay.png").exists()


def test_the_demo_runs_on_the_real_clip(tmp_path, capsys):
    assert main(["demo", "--frames", "3", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 3
    assert report["overlay"].endswith("people-overlay.mp4")


def test_missing_packages_are_named_with_their_extra(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 1
    assert ".[demo]" in capsys.readouterr().err
    assert main(["train", "semantic", "--images", "a", "--semantic", "b"]) == 1
    assert ".[train]" in capsys.readouterr().err
