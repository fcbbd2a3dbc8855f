"""The C API is compatible with the last release, or its version is higher."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from c_api_layout import RECORD, functions, layout, structures
from tfiseg.plugins.mask_refinement import MaskRefinementStruct
from tfiseg.plugins.mask_views import MaskViewsStruct
from tfiseg.plugins.native import API_VERSION, ProblemStruct, ResultStruct, library_path


def recorded() -> list[str]:
    return [line for line in RECORD.read_text().splitlines() if not line.startswith("#")]


def version_of(facts: list[str]) -> int:
    return int(facts[0].removeprefix("constant TFISEG_API_VERSION "))


def broken(before: list[str], now: list[str]) -> list[str]:
    """Return facts of the C API that are missing or different; additions are compatible."""
    return [fact for fact in before if fact not in now]


@pytest.fixture(scope="module")
def now() -> list[str]:
    return layout()


def test_layout_is_unchanged_or_the_version_is_higher(now):
    before = recorded()
    assert version_of(now) >= version_of(before)
    if version_of(now) == version_of(before):
        assert broken(before, now) == [], "raise TFISEG_API_VERSION, or keep the layout"


def test_breaking_changes_are_found(now):
    assert broken(now, now) == []
    assert broken(now, [*now, "function void tfiseg_new(void)"]) == []
    for fact in (
        "struct tfiseg_result, 88 bytes",
        "function int32_t tfiseg_api_version(void)",
        "constant TFISEG_TABLE_COLUMNS 10",
        "field tfiseg_problem.threads: at 144, 4 bytes",
    ):
        assert broken(now, [other for other in now if other != fact]) == [fact]


def test_every_field_and_function_is_recorded(now):
    header = (RECORD.parent / "csrc" / "tfiseg.h").read_text()
    assert len(functions(header)) == header.count("\nTFISEG_API ")
    sizes = {name: sum(fact.startswith(f"field {name}.") for fact in now) for name in structures(header)}
    assert sizes["tfiseg_problem"] == len(ProblemStruct._fields_)
    assert sizes["tfiseg_result"] == len(ResultStruct._fields_)
    assert sizes["tfiseg_mask_refinement"] == len(MaskRefinementStruct._fields_)
    assert sizes["tfiseg_mask_views"] == len(MaskViewsStruct._fields_)
    others = {"tfiseg_views", "tfiseg_pieces", "tfiseg_mask_refinement", "tfiseg_mask_views"}
    assert set(sizes) == {"tfiseg_problem", "tfiseg_result"} | others


def test_python_has_the_same_layout(now):
    assert version_of(now) == API_VERSION
    for name, struct in (
        ("tfiseg_problem", ProblemStruct),
        ("tfiseg_result", ResultStruct),
        ("tfiseg_mask_refinement", MaskRefinementStruct),
        ("tfiseg_mask_views", MaskViewsStruct),
    ):
        for field, *_ in struct._fields_:
            place = getattr(struct, field)
            assert f"field {name}.{field}: at {place.offset}, {place.size} bytes" in now


def test_native_library_exports_the_functions_of_the_header(now):
    done = subprocess.run(["nm", "-D", "--defined-only", library_path()], capture_output=True, text=True)
    symbols = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {
        fact.split("(")[0].split()[-1].strip("*") for fact in now if fact.startswith("function ")
    } <= symbols


def test_aarch64_has_the_same_layout(now, require_tools):
    require_tools("aarch64-linux-gnu-gcc", "qemu-aarch64")
    root = Path("/usr/aarch64-linux-gnu")
    assert shutil.which("qemu-aarch64")
    assert layout("aarch64-linux-gnu-gcc", ("qemu-aarch64", "-L", str(root))) == now
