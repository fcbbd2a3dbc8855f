"""Shutdown of the program: signals at any moment, a full standard output, errors of the system."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from processes import start_process
from tfiseg.cli import shutdown
from tfiseg.cli.main import main
from waiting import count_lines, wait_until

RUN = [sys.executable, "-m", "tfiseg", "run"]


def start_run(*words, ignored=()):
    return start_process([*RUN, *words], ignored, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# opening a source blocks in C without end, like a stalled network disk
BLOCKED = """
import ctypes, sys
from tfiseg.runtime.sources import open_source
def blocks(*_, **__):
    print("opening", flush=True)
    ctypes.PyDLL(None).pause()  # with Python's lock held
open_source.open_source = blocks
from tfiseg.cli.main import main
sys.argv = ["tfiseg", "run", "disk.mp4", "--out", sys.argv[1]]
sys.exit(main())
"""
BLOCKED_WITHOUT_LOCK = BLOCKED.replace(
    "ctypes.PyDLL(None).pause()", "[ctypes.CDLL(None).pause() for _ in range(99)]"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_process_while_a_source_opens(number, tmp_path):
    command = [sys.executable, "-c", BLOCKED_WITHOUT_LOCK, str(tmp_path / "out")]
    process = start_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "opening\n"
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 130
    assert errors == "tfiseg run: interrupted\n"


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 2.0])
def test_signal_during_startup_gives_no_traceback(delay, tmp_path):
    process = start_run("synthetic", "--frames", 100_000, "--out", tmp_path / "out", "--json")
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGTERM)
    assert "Traceback" not in errors
    summary = tmp_path / "out" / "summary.json"
    if summary.exists():
        json.loads(summary.read_text())


IMPORT_INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "tfiseg.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from tfiseg.__main__ import program
sys.exit(program())
"""


def test_ctrl_c_while_modules_are_imported_gives_no_traceback():
    ended = subprocess.run([sys.executable, "-c", IMPORT_INTERRUPTED], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "tfiseg: interrupted\n")


def test_hangup_completes_the_outputs(tmp_path):
    process = start_run("synthetic", "--frames", 100_000, "--out", tmp_path, "--json")
    wait_until(lambda: count_lines(tmp_path / "instances.jsonl") >= 3, 90, process)
    process.send_signal(signal.SIGHUP)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert json.loads(out)["error"] == "interrupted"
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == "interrupted"


def test_nohup_is_respected(tmp_path):
    process = start_run("synthetic", "--frames", 40, "--out", tmp_path, ignored=[signal.SIGHUP])
    wait_until(lambda: count_lines(tmp_path / "instances.jsonl") >= 3, 90, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0


def test_two_signals_complete_the_outputs(tmp_path):
    process = start_run("synthetic", "--frames", 100_000, "--out", tmp_path, "--json")
    wait_until(lambda: count_lines(tmp_path / "instances.jsonl") >= 3, 90, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == "interrupted"


def test_signals_until_the_end_keep_the_exit_status(tmp_path):
    process = start_run("synthetic", "--frames", 100_000, "--out", tmp_path, "--json")
    wait_until(lambda: count_lines(tmp_path / "instances.jsonl") >= 3, 90, process)
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_pipe_without_a_writer_raises_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    code = (
        "import sys; from tfiseg.cli.main import main; from tfiseg.runtime.sources import decoding; "
        "decoding._OPEN_SECONDS = 2; sys.exit(main(sys.argv[1:]))"  # 30 s otherwise
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", tmp_path / "pipe.mp4", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pipe.mp4 did not open in 2 s" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"], ["--version"], ["run", "--help"]])
def test_full_standard_output_is_an_error(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tfiseg", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert "can't write to standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_standard_streams_and_a_full_standard_error_change_nothing(closed, tmp_path):
    """A service manager may start a program without them; no output file may get their numbers."""
    words = f"{shlex.quote(sys.executable)} -m tfiseg run synthetic --frames 2 --out {tmp_path}"
    done = subprocess.run(["sh", "-c", f"{words} {closed}"], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    records = (tmp_path / "instances.jsonl").read_text().splitlines()
    assert [json.loads(record)["frame_index"] for record in records] == [0, 1]
    assert json.loads((tmp_path / "summary.json").read_text())["error"] is None
    assert (tmp_path / "synthetic-overlay.mp4").read_bytes()[4:8] == b"ftyp"


def test_system_errors_have_messages(monkeypatch, capsys):
    assert (
        shutdown.error_message(OSError(28, "No space left on device"))
        == "can't write: No space left on device"
    )
    assert (
        shutdown.error_message(PermissionError(13, "Permission denied", "a\udce9"))
        == "a\\xe9: Permission denied"
    )
    assert "memory" in shutdown.error_message(MemoryError())
    assert shutdown.error_message(KeyError("x")) is None


def test_one_photo_uses_all_threads(monkeypatch, tmp_path):
    from tfiseg.plugins import native
    from tfiseg.runtime.output import run as run_module

    calls = []

    def run(source, segmenter, out, frames, workers, **_):
        calls.append((segmenter.settings.threads, workers))
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "usable_threads", lambda: 8)
    monkeypatch.setattr(run_module, "run", run)
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.zeros((48, 64, 3), np.uint8))
    for words in (
        [tmp_path / "0.png"],
        [tmp_path],
        [tmp_path, "--threads", "2"],
        ["synthetic", "--frames", "99"],
    ):
        assert main(["run", *map(str, words), "--out", str(tmp_path / "out")]) == 130
    assert calls == [(0, 1), (2, 3), (2, 1), (1, 8)]
