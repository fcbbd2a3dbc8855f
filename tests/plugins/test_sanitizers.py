"""CPU operator, GPU phases and C API under ThreadSanitizer, AddressSanitizer and UBSan, with random input."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "plugins" / "csrc"
OPERATOR = tuple(CSRC / f"{name}.cpp" for name in ("api", "cluster_cpu", "fit_cpu", "views_cpu"))


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_random_problems_and_arguments_are_clean(sanitizer, tmp_path, compile_cpp):
    """Both programs share the operator's object files, which take longest to compile."""
    flags = ("-Og", "-g1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    objects = [
        compile_cpp(tmp_path / f"{source.stem}.o", source, flags=(*flags, "-c")) for source in OPERATOR
    ]
    for name, sources in (("fuzz", ("fuzz.cpp", "shuffled.cpp")), ("fuzz_api", ("fuzz_api.cpp",))):
        own = [HERE / source for source in sources]
        program = compile_cpp(tmp_path / name, *own, *objects, flags=flags)
        done = subprocess.run([program, "400"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout == "400 cases, 0 failed\n"
