"""Print the binary interface of tfiseg.h: functions, constants, and sizes and offsets of structures.

    python tests/plugins/c_api_layout.py > plugins/abi.txt

writes the record of a release. tests/plugins/test_abi.py compares the header with this record.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HEADER = ROOT / "plugins" / "csrc" / "tfiseg.h"
RECORD = ROOT / "plugins" / "abi.txt"


def functions(header: str) -> list[str]:
    """Return the prototypes, one line each."""
    found = re.findall(r"^TFISEG_API ([^;]+);", header, re.MULTILINE)
    return sorted(re.sub(r"\s+", " ", one) for one in found)


def structures(header: str) -> dict[str, list[str]]:
    """Return the names of each structure's fields, in order."""
    found = {}
    for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", header, re.DOTALL):
        fields = re.findall(r"[\w*]+(?:\s*,\s*\*?\w+)*(?=;)", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))
        found[name] = [field.strip(" *") for part in fields for field in part.split(",")]
    return found


def constants(header: str) -> list[str]:
    """Return the names of macros and enumerators that have a value."""
    return re.findall(r"#define (TFISEG_\w+) \(?[-\d]", header) + re.findall(r"(TFISEG_\w+) = \d", header)


def measuring_program(header: str) -> str:
    """Return a C program that prints constants, sizes and offsets."""
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "tfiseg.h"', "int main(void) {"]
    for name in constants(header):
        lines.append(f'    printf("constant {name} %lld\\n", (long long){name});')
    for name, fields in structures(header).items():
        lines.append(f'    printf("struct {name}, %zu bytes\\n", sizeof({name}));')
        for field in fields:
            place = f"offsetof({name}, {field}), sizeof((({name} *)0)->{field})"
            lines.append(f'    printf("field {name}.{field}: at %zu, %zu bytes\\n", {place});')
    return "\n".join([*lines, "    return 0;", "}", ""])


def layout(compiler: str = "cc", run_with: Sequence[str] = ()) -> list[str]:
    """Return the binary interface that a compiler gives the header.

    Args:
        compiler: a C compiler.
        run_with: command that runs the compiled program, for example an emulator.

    Returns:
        list[str]: one fact per line; the first is the C API's version.
    """
    header = HEADER.read_text()
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "layout.c"), Path(folder, "layout")
        source.write_text(measuring_program(header))
        command = [compiler, "-std=c11", "-Wall", "-Werror", "-I", str(HEADER.parent)]
        subprocess.run([*command, str(source), "-o", str(program)], check=True)
        measured = subprocess.run([*run_with, str(program)], check=True, capture_output=True, text=True)
    return measured.stdout.splitlines() + [f"function {one}" for one in functions(header)]


if __name__ == "__main__":
    version = re.search(r'__version__ = "(.*)"', (ROOT / "__init__.py").read_text())
    title = (
        f"# The C API of tfiseg {version[1] if version else '?'}. A change of these lines needs a new "
        "TFISEG_API_VERSION."
    )
    sys.stdout.write("\n".join([title, *layout()]) + "\n")
