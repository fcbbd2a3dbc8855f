"""The operator under ThreadSanitizer, AddressSanitizer and UBSan: the CPU's code and the GPU's phases,
several threads at once."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "plugins" / "csrc"


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_random_problems_are_clean(sanitizer, tmp_path, compile_cpp):
    sources = (
        HERE / "fuzz.cpp",
        HERE / "shuffled.cpp",
        CSRC / "api.cpp",
        CSRC / "cluster_cpu.cpp",
        CSRC / "fit_cpu.cpp",
        CSRC / "views_cpu.cpp",
    )
    flags = ("-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    program = compile_cpp(tmp_path / "fuzz", *sources, flags=flags)
    done = subprocess.run([program, "400"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "400 cases, 0 failed\n"
