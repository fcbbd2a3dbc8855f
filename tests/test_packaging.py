"""Releases: one version, complete packages, and consistent extras."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tfiseg

ROOT = Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def listed(section: str, option: str) -> list[str]:
    return SETUP[section][option].split("\n")[1:]


def requirements(extra: str) -> set[str]:
    """Return the names of all packages that an extra installs, including those of its extras."""
    names = set()
    for line in listed("options.extras_require", extra):
        nested = re.fullmatch(r"tfiseg\[([\w,]+)\]", line)
        if nested:
            names |= {name for inner in nested[1].split(",") for name in requirements(inner)}
        elif not line.startswith("#"):
            names.add(re.match(r"[\w-]+", line)[0])
    return names


def test_version_is_the_same_everywhere():
    assert SETUP["metadata"]["version"] == "attr: tfiseg.__version__"
    assert f"version: {tfiseg.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "\n## Unreleased\n" in changelog
    assert f"\n## {tfiseg.__version__} - " in changelog


def test_every_package_is_installed():
    tops = ("calibration", "cli", "export", "plugins", "runtime")
    found = {
        "tfiseg." + ".".join(init.parent.relative_to(ROOT).parts)
        for top in tops
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed("options", "packages")) == {"tfiseg", *found}


def test_training_weights_are_not_installed():
    assert "*.pt" not in str(dict(SETUP["options.package_data"]))


def test_export_of_onnx_files_needs_no_torch():
    assert requirements("export") == {"onnx", "onnxsim"}
    code = "import sys, tfiseg.export.onnx_import.any_network; print('torch' in sys.modules)"
    pytest.importorskip("onnx")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("extra", ["zoo", "hf", "train"])
def test_extras_of_torch_networks_include_torch(extra):
    assert {"torch", "onnx", "onnxsim", "onnxscript"} <= requirements(extra)


def test_jetson_extra_keeps_the_tensorrt_of_jetpack():
    assert requirements("jetson") == requirements("tensorrt") - {"tensorrt"}


def test_every_named_extra_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs" / "guide").glob("*.md")]
    for page in pages:
        for extras in re.findall(r'"?\.\[([\w,]+)\]', page.read_text()):
            for extra in extras.split(","):
                assert extra in SETUP["options.extras_require"], f"{page}: {extra}"
