"""Test README and documentation: code runs as written, and commands, options and linked files exist.

A block after ``<!-- skip: REASON -->`` is not run, for example because it needs a GPU, but its options are
checked.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from tfiseg.cli.main import _parser

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
USER_PAGES = [
    ROOT / "README.md",
    DOCS / "index.md",
    *sorted((DOCS / "guide").glob("*.md")),
    *sorted((DOCS / "reference").glob("*.md")),
]
LINKED_PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "plugins/README.md")
    ),
    *sorted((ROOT / "runtime" / "models").glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
]
GENERATED = {
    "docs/reference/cli.md",
    "docs/reference/c-api.md",
    "docs/reference/plugin.md",
}  # by docs/hooks.py
_BLOCK = re.compile(
    r"(?:<!-- skip: (?P<skip>.*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    number: int
    language: str
    code: str
    skip: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}"


def blocks(language: str) -> list[Block]:
    return [
        Block(page, number, found["language"], found["code"], found["skip"])
        for page in USER_PAGES
        for number, found in enumerate(_BLOCK.finditer(page.read_text()), 1)
        if found["language"] == language
    ]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Return a folder with the files of the examples: a photo, two folders of photos and a short video."""
    from skimage import data

    folder = tmp_path_factory.mktemp("reader")
    photo = np.ascontiguousarray(data.astronaut()[:, :, ::-1])
    cv2.imwrite(str(folder / "street.jpg"), photo)
    for name in ("photos", "street"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "a.jpg"), photo)
    video = cv2.VideoWriter(str(folder / "street.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    for _ in range(4):
        video.write(cv2.resize(photo, (320, 240)))
    video.release()
    return folder


@pytest.fixture
def reader(files, tmp_path):
    """Return a working copy of these files."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(arguments, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=folder, timeout=300, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block, reader):
    if block.skip:
        pytest.skip(block.skip)
    # the synthetic source replaces camera 0: three frames in a loop, and endless in a pipeline
    code = re.sub(
        r"in tfiseg\.open_source\(0\)",
        "in __import__('itertools').islice(tfiseg.open_source('synthetic'), 3)",
        block.code,
    )
    code = re.sub(r"= tfiseg\.open_source\(0\)", "= tfiseg.open_source('synthetic', realtime=True)", code)
    out = run([sys.executable, "-c", code], reader)
    for expected in re.findall(r"print\(.*\)  # (\[.*\])", code):
        assert out.strip() == expected


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_run(block, reader):
    if block.skip:
        pytest.skip(block.skip)
    run(["bash", "-euo", "pipefail", "-c", block.code], reader)


def test_the_triton_page_shows_what_is_printed(reader):
    pytest.importorskip("onnx")
    (block,) = (b for b in blocks("text") if b.page.name == "triton.md")
    command, _, expected = block.code.partition("\n")
    shutil.copytree(ROOT / "runtime" / "models", reader / "runtime" / "models")
    printed = run(["bash", "-c", command.removeprefix("$ ")], reader)
    assert printed == expected.replace("/home/me", str(reader))


def test_the_page_on_doctor_shows_what_is_printed(reader):
    """The states, names and order of its lines; versions and sizes change."""
    (block,) = (b for b in blocks("text") if b.page.name == "troubleshooting.md")
    line = re.compile(r"^(?:ok|optional|missing|wrong) +(.+?)  ", re.MULTILINE)
    printed = line.findall(run(["tfiseg", "doctor"], reader))
    expected = line.findall(block.code)
    assert expected == printed[: len(expected)]


@pytest.mark.parametrize("page", USER_PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_with_a_tracker_follows_its_extra(page):
    """`pip install .` alone does not install the tracker."""
    before, used, _ = page.read_text().partition("tfiseg.Tracker()")
    assert not used or re.search(r"pip install \S*\[\w*,?live\]", before)


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


def check_command(command: str) -> None:
    """Check that the verb of a command exists and has all options; placeholders are allowed."""
    parser = _parser()
    words = shlex.split(command, comments=True)[1:]
    while words and (nested := verbs(parser)):
        assert words[0] in nested or not re.fullmatch(r"[a-z]+", words[0]), f"no verb {words[0]}: {command}"
        if words[0] not in nested:
            break
        parser = nested[words.pop(0)]
    known = {option for action in parser._actions for option in action.option_strings}
    unknown = [w for w in words if re.match(r"--?[a-z]", w) and w.partition("=")[0] not in known]
    assert not unknown, f"{unknown} in: {command}"


def commands_of(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", text)
    in_blocks = [
        line.strip()
        for found in _BLOCK.finditer(joined)
        if found["language"] == "sh"
        for line in found["code"].splitlines()
        if line.strip().startswith("tfiseg ")
    ]
    spans = re.findall(r"`(tfiseg [^`]+)`", re.sub(r"```.*?^```", "", joined, flags=re.DOTALL | re.MULTILINE))
    return [*in_blocks, *(" ".join(span.split()) for span in spans)]


@pytest.mark.parametrize("page", USER_PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_exist(page):
    for command in commands_of(page.read_text()):
        check_command(command)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in (*USER_PAGES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", page.read_text(), re.MULTILINE):
            assert f"\n{''.join(target)}:" in makefile, f"{page}: make {''.join(target)}"


@pytest.mark.parametrize("page", LINKED_PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_linked_files_exist(page):
    text = re.sub(r"```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            path = (page.parent / target).resolve()
            assert path.exists() or str(path.relative_to(ROOT)) in GENERATED, f"{page}: {target}"


def test_named_files_exist():
    """The files that the architecture page names exist."""
    text = (DOCS / "architecture.md").read_text()
    names = re.findall(r"`((?:runtime|export|plugins|calibration|cli|tests)/[\w/.]+)`", text)
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists(), name
