import json
import re

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
    photo = tmp_path / "gray.png"
    cv2.imwrite(str(photo), np.full((48, 64, 3), 120, np.uint8))
    assert main(["run", str(photo), "--out", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 1
    assert report["overlay"].endswith("gray-overlay.png")


@pytest.mark.parametrize(
    ("argv", "message"),
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
        (["bench", "--side", "1"], "side must be in 64..2048, got 1"),
    ],
)
def test_failures_print_a_message_and_exit_with_1(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"tfiseg {argv[0]}: ")
    assert message in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "x.png", "--scales", "1,0.5"], "--scales must be numbers from 1 to 8"),
        (["run", "x.png", "--out", ""], "--out: expected a path, got an empty text"),
        (["run", "x.png", "--threads", "100000"], "--threads must be at least 1 (0 = all), at most 1024"),
        (["run", "x.png", "--min-area", "-1"], "--min-area must lie in 0.."),
        (["run", "x.png", "--min-score", "30"], "--min-score must lie in 0..1, got 30.0"),
        (["run", "x.png", "--split", "7"], "--split must be"),
        (["run", "x.png", "--model", ""], "--model is empty"),
        (["run", "x.png", "--long-side", "9"], "--long-side must lie in"),
        (["run", "x.png", "--threads", "-1"], "--threads must be"),
        (["run", "x.png", "--flip", "--refine", "frame"], "use --refine components"),
        (
            ["eval", ".", "--thorough"],
            "--thorough has no effect without --refine components or --quality best",
        ),
        (
            ["eval", ".", "--max-views", "8"],
            "--max-views has no effect without --refine components or --quality best",
        ),
        (["run", "x.png", "--instance-model", "m.onnx"], "--instance-model has no effect without"),
        (["run", "synthetic", "--frames", "-3"], "at least 1"),
        (["view", "0", "--camera-fps", "0"], "--camera-fps: expected a number, above 0"),
        (["build", __file__, "--min-agreement", "200"], "from 0 to 100"),
        (["build", __file__, "--batch", "0"], "at least 1"),
        (["rnu", "x.png"], "Did you mean 'run'?"),
        (["run", "x.png", "--qualty", "best"], "Did you mean '--quality'?"),
        (["run", "x.png", "--quality", "bst"], "Did you mean 'best'?"),
        (["train", "semantik"], "Did you mean 'semantic'?"),
        (["plugin", "inof"], "Did you mean 'info'?"),
    ],
)
def test_wrong_command_lines_print_a_message_and_exit_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tfiseg")
    assert message in first
    assert re.fullmatch(r"Run `tfiseg.* --help` for its options\.", second)


def test_missing_file_is_reported_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        (["triton", "no.onnx"], "there is no network no.onnx"),
        (["export", "no.onnx"], "there is no file no.onnx"),
        (["export", "my_nets.py:make"], "For a function of your own: python:my_nets:make"),
        (["compare", "no.onnx", "no.engine"], "there is no file no.onnx"),
        (["train", "semantic", "--images", "no"], "there is no folder no"),
        (["build", "no.onnx", "--no-gate"], "there is no network no.onnx"),
        (["inspect", "no.onnx"], "there is no file no.onnx"),
        (["eval", "no", "--model", "no.onnx"], "there is no folder no"),
        (["run", "no.mp4", "--model", "no.onnx"], "there is no file no.mp4"),
        (["view", "no.mp4", "--model", "no.onnx"], "there is no file no.mp4"),
        (["run", ""], "the source is empty"),
        (["eval", ""], "there is no folder (an empty text)"),
    ):
        assert main(argv) == 1
        assert message in capsys.readouterr().err


def test_missing_options_and_options_without_effect(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").touch()
    data = ["--images", str(tmp_path), "--semantic", str(tmp_path)]
    for argv, message in (
        (["triton", "net.onnx"], "required: --output DIR"),
        (["compare", "net.onnx", "net.onnx"], "required: --frames SOURCE"),
        (["train", "score"], "required: --images DIR --semantic DIR"),
        (["train", "semantic", *data, "--backbone", "mobilenetv2"], "pass --start FILE"),
        (["plugin", "info", "--arch", "87"], "--arch: no effect"),
        (["demo", "--engine", "--quality", "best"], "--quality: no effect with --engine"),
        (["run", "synthetic", "--frames", "1", "--nth", "2"], "without --policy every_nth"),
        (["run", "synthetic", "--frames", "1", "--min-hits", "2"], "without track IDs"),
    ):
        assert main(argv) == 1
        assert message in capsys.readouterr().err


def test_suggestion_for_a_mistyped_class(capsys, tmp_path):
    argv = ["run", "synthetic", "--frames", "1", "--out", str(tmp_path / "out"), "--things", "persn"]
    assert main(argv) == 1
    assert "Did you mean 'person'?" in capsys.readouterr().err


def test_failed_run_exits_with_1_and_keeps_its_frames(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "in" / "b.png").write_text("no picture")
    assert main(["run", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert "completed results are kept" in capsys.readouterr().err
    assert (tmp_path / "out" / "a-overlay.png").exists()


def test_demo_runs_on_the_clip(tmp_path, capsys):
    assert main(["demo", "--frames", "3", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 3
    assert report["overlay"].endswith("people-overlay.mp4")


def test_missing_packages_are_named_with_their_extra(capsys, monkeypatch, tmp_path):
    data = ["--images", str(tmp_path), "--semantic", str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 1
    assert ".[demo]" in capsys.readouterr().err
    assert main(["train", "semantic", *data]) == 1
    assert ".[train]" in capsys.readouterr().err


def test_a_run_without_an_instance_states_how_to_see_more(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((90, 120, 3), 127, np.uint8))
    words = ["run", str(tmp_path / "gray.png"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "no instance was found: --min-score 0 also shows uncertain ones\n" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "out2"), "--min-score", "0"]) == 0
    assert "no instance was found" not in capsys.readouterr().err
