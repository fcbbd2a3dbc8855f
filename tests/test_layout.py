"""What import-linter (setup.cfg) cannot check of the layout: packages that the core needs, the cost of importing tfiseg."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = {"numpy", "cv2", "onnxruntime", "tqdm", "PIL"}


@pytest.mark.parametrize("room", ["plugins", "runtime"])
def test_the_core_needs_core_packages_only(room):
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # imports inside functions are made where they are used
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in names:
                top = name.split(".")[0]
                assert top in CORE or top in sys.stdlib_module_names, f"{path} needs {top}"


def test_importing_tfiseg_loads_nothing_heavy():
    code = "import sys, tfiseg; print([m for m in ('cv2', 'onnxruntime', 'torch') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_public_names_are_there():
    import tfiseg

    assert set(tfiseg.__all__) <= set(dir(tfiseg))
    for name in tfiseg.__all__:
        assert getattr(tfiseg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tfiseg.nonsense  # noqa: B018
