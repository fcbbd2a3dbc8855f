"""Test what import-linter cannot check: required packages, sizes of files and functions, and duplication."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_FILE, MAX_FUNCTION, MAX_CPP_CLASS = 400, 60, 300  # lines, docstrings and blank lines included
MAX_DUPLICATE = 11  # lines of the same logic in two places
CORE = {"numpy", "cv2", "onnxruntime", "tqdm", "PIL"}


@pytest.mark.parametrize("folder", ["plugins", "runtime"])
def test_the_core_needs_core_packages_only(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # imports inside functions are optional
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in names:
                top = name.split(".")[0]
                assert top in CORE or top in sys.stdlib_module_names, f"{path} needs {top}"


def test_importing_tfiseg_imports_no_large_package():
    code = "import sys, tfiseg; print([m for m in ('cv2', 'onnxruntime', 'torch') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names_exist():
    import tfiseg

    assert set(tfiseg.__all__) <= set(dir(tfiseg))
    for name in tfiseg.__all__:
        assert getattr(tfiseg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tfiseg.nonsense  # noqa: B018


def sources(*suffixes: str) -> list[Path]:
    """Return the repository's own files, without virtual environments and build folders."""
    skipped = {"build", "dist", "site", "node_modules"}
    folders = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in skipped and p.name[0] != "."]
    found = [p for folder in folders for suffix in suffixes for p in folder.rglob(f"*{suffix}")]
    return sorted(found + [p for suffix in suffixes for p in ROOT.glob(f"*{suffix}")])


def test_files_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in sources(".py")}
    assert len(lines) > 300
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > MAX_FILE} == {}


def test_functions_are_short():
    long = {}
    for path in sources(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert long == {}


def cpp_classes(text: str) -> dict[str, int]:
    """Return the number of lines of each class and struct of a C++ file."""
    found = {}
    for match in re.finditer(r"^[^\n;/]*\b(?:class|struct)\s+(\w+)[^;{}()]*\{", text, re.MULTILINE):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        found[match[1]] = text.count("\n", match.start(), end) + 1
    return found


def test_cpp_classes_are_short():
    assert cpp_classes("enum { A };\nstruct Pair {\n  int a[2] = {1, 2};\n};\n") == {"Pair": 3}
    classes = {
        f"{path.relative_to(ROOT)}: {name}": lines
        for path in sources(".h", ".hpp", ".cpp", ".cu")
        for name, lines in cpp_classes(path.read_text()).items()
    }
    assert len(classes) > 50
    assert {name: lines for name, lines in classes.items() if lines > MAX_CPP_CLASS} == {}


def logic_of(path: Path) -> list[str]:
    """Return a file's lines of code without imports, signatures, docstrings, comments and blank lines."""
    text = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or is_docstring:
            skipped.update(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skipped.update(range(node.lineno, max(node.body[0].lineno, node.lineno + 1)))
    lines = ((k, line.split("  # ")[0].strip()) for k, line in enumerate(text.splitlines(), 1))
    return [line for k, line in lines if line and line[0] != "#" and k not in skipped]


def test_no_logic_is_duplicated():
    places: dict[tuple[str, ...], list[str]] = {}
    for path in sources(".py"):
        lines = logic_of(path)
        for k in range(len(lines) - MAX_DUPLICATE):
            window = tuple(lines[k : k + MAX_DUPLICATE + 1])
            places.setdefault(window, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 10_000
    assert {found[0]: found for found in places.values() if len(found) > 1} == {}
