"""Test the systemd unit and the Dockerfiles by linters, and the commands in them. They are not built."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tfiseg.cli.main import _parser

DEPLOY = Path(__file__).parent.parent.parent / "samples" / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


def require_tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        (pytest.fail if os.environ.get("TFISEG_TEST_CPP") else pytest.skip)(f"{name} is not installed")
    return str(path)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_are_linted(path):
    done = subprocess.run([require_tool("hadolint"), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_is_verified(tmp_path):
    """The check of systemd, with /bin/true as the installed program."""
    unit = tmp_path / "tfiseg.service"
    text = (DEPLOY / "tfiseg.service").read_text()
    unit.write_text(text.replace("/opt/tfiseg/.venv/bin/tfiseg", "/bin/true"))
    done = subprocess.run([require_tool("systemd-analyze"), "verify", unit], capture_output=True, text=True)
    warnings = [line for line in done.stderr.splitlines() if "tfiseg" in line]
    assert (done.returncode, warnings) == (0, []), done.stderr


def commands() -> list[str]:
    """Return the arguments of each `tfiseg` call in the files."""
    found = []
    for path in (*DOCKERFILES, DEPLOY / "tfiseg.service"):
        text = path.read_text().replace("\\\n#", " ").replace("\\\n", " ")
        found += re.findall(
            r"(?:^ExecStart=\S*/|&& |^#.* )tfiseg ((?:view|run|doctor|plugin) ?.*)$", text, re.MULTILINE
        )
    return [command.split(" && ")[0] for command in found]


def test_commands_are_valid(capsys):
    assert len(commands()) >= 6
    for command in commands():
        arguments = shlex.split(command.replace("$PWD", "x"))
        assert _parser().parse_args(arguments).verb == arguments[0]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_files_that_are_not_built_are_marked(path):
    assert "Not built here" in path.read_text()


def test_extras_exist():
    setup = (DEPLOY.parent.parent / "setup.cfg").read_text()
    for path in DOCKERFILES:
        (extras,) = re.findall(r"source\[([\w,]+)\]", path.read_text())
        for extra in extras.split(","):
            assert re.search(rf"^{extra} =$", setup, re.MULTILINE), extra
