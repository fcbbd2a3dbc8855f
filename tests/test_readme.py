"""What the README shows is run: its Python, its commands' existence, its links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, tmp_path):
    # cameras and files that a reader has become the synthetic camera, three frames long
    code = re.sub(
        r"in tfiseg\.open_source\([^)]*\)",
        "in __import__('itertools').islice(tfiseg.open_source('synthetic'), 3)",
        code,
    )
    code = re.sub(r"= tfiseg\.open_source\([^)]*\)", "= tfiseg.open_source('synthetic', realtime=True)", code)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for shown in re.findall(r"print\(.*\)  # (\[.*\])", code):
        assert done.stdout.strip() == shown


def test_commands_exist():
    from tfiseg.cli.main import main

    verbs = set(re.findall(r"^tfiseg (\w+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
    targets = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"
