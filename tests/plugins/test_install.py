"""The installed C++ library: its files, its symbols, pkg-config, and its headers under strict compilers."""

import re
import subprocess
from pathlib import Path

import pytest
import tfiseg
from tfiseg.plugins.native import API_VERSION

SAMPLES = Path(__file__).parent.parent.parent / "samples" / "cpp"
PLUGINS = SAMPLES.parent.parent / "plugins"


def test_installed_files(cpp_prefix):
    files = {str(path.relative_to(cpp_prefix)) for path in cpp_prefix.rglob("*") if not path.is_dir()}
    folder = next(name.split("/")[0] for name in files if name.startswith("lib"))  # lib or lib64
    assert files >= {
        "include/tfiseg.h",
        "include/tfiseg.hpp",
        f"{folder}/libtfiseg.so",
        f"{folder}/libtfiseg.so.{API_VERSION}",
        f"{folder}/libtfiseg.so.{tfiseg.__version__}",
        f"{folder}/pkgconfig/tfiseg.pc",
        f"{folder}/cmake/tfiseg/tfisegConfig.cmake",
        f"{folder}/cmake/tfiseg/tfisegConfigVersion.cmake",
    }


def test_library_exports_its_api_only(cpp_prefix, run_tool):
    library = next(cpp_prefix.glob("lib*/libtfiseg.so"))
    lines = run_tool("nm", "-D", "--defined-only", library).splitlines()
    names = {line.split()[-1] for line in lines}
    assert {name for name in names if not name.startswith("tfiseg_")} == set()
    header = (cpp_prefix / "include" / "tfiseg.h").read_text()
    assert names == set(re.findall(r"^TFISEG_API [^(]*?(tfiseg_\w+)\(", header, re.MULTILINE))
    dynamic = run_tool("readelf", "-d", library)
    assert f"[libtfiseg.so.{API_VERSION}]" in dynamic
    assert "libstdc++" not in dynamic  # a program may have another one


def pkg_config(prefix: Path, run_tool, *options: str) -> list[str]:
    folder = next(prefix.glob("lib*/pkgconfig"))
    return run_tool("pkg-config", *options, "tfiseg", env={"PKG_CONFIG_PATH": str(folder)}).split()


def test_program_builds_with_pkg_config(cpp_prefix, require_tools, run_tool, tmp_path):
    require_tools("pkg-config")
    assert pkg_config(cpp_prefix, run_tool, "--modversion") == [tfiseg.__version__]
    flags = pkg_config(cpp_prefix, run_tool, "--cflags", "--libs")
    program = tmp_path / "check"
    run_tool("g++", "-std=c++17", SAMPLES / "check_tfiseg.cpp", *flags, "-pthread", "-o", program)
    folder = next(cpp_prefix.glob("lib*/libtfiseg.so")).parent
    assert run_tool(program, env={"LD_LIBRARY_PATH": str(folder)}) == "ok\n"


WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion", "-Werror")


@pytest.mark.parametrize(
    "flags", [("-std=c++17",), ("-std=c++20",), ("-std=c++17", "-fno-exceptions", "-fno-rtti")]
)
def test_cpp_header_compiles_without_warnings(cpp_prefix, run_tool, tmp_path, flags):
    source = tmp_path / "program.cpp"
    source.write_text("""#include <tfiseg.hpp>
        int main() {
            const std::vector<uint8_t> map(6, 1);
            tfiseg::Maps maps;
            maps.class_map = map;
            maps.grid = {2, 3};
            tfiseg::MapsOf<uint16_t> half;
            half.grid = {2, 3};
            tfiseg::Settings settings;
            settings.min_area = 1;
            tfiseg::Clusterer clusterer(settings);
            if (false) clusterer.enqueue(half, tfiseg_result{}, nullptr, {4, 6});
            return clusterer.cluster(maps).count() == 1 ? 0 : 1;
        }
    """)
    folder = next(cpp_prefix.glob("lib*/libtfiseg.so")).parent
    program = tmp_path / "program"
    paths = ("-I", cpp_prefix / "include", "-L", folder, "-ltfiseg", f"-Wl,-rpath,{folder}")
    run_tool("g++", *flags, *WARNINGS, source, "-o", program, *paths)
    assert run_tool(program) == ""


def test_c_header_compiles_as_c(cpp_prefix, run_tool, tmp_path):
    source = tmp_path / "program.c"
    source.write_text(
        "#include <tfiseg.h>\nint main(void) { return tfiseg_api_version() != TFISEG_API_VERSION; }\n"
    )
    folder = next(cpp_prefix.glob("lib*/libtfiseg.so")).parent
    program = tmp_path / "program"
    paths = ("-I", cpp_prefix / "include", "-L", folder, "-ltfiseg", f"-Wl,-rpath,{folder}")
    run_tool(
        "gcc",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wstrict-prototypes",
        "-Werror",
        source,
        "-o",
        program,
        *paths,
    )
    assert run_tool(program) == ""


def test_no_exception_leaves_the_c_api(cpp_prefix, run_tool, tmp_path):
    """Out of memory inside the library is a status in C and an exception in the C++ header."""
    source = tmp_path / "program.cpp"
    source.write_text("""#include <tfiseg.hpp>
        #include <sys/resource.h>
        int main() {
            const tfiseg::Size grid{1024, 1024};
            const std::vector<uint8_t> map(grid.area(), 1);
            const std::vector<float> still(2 * grid.area(), 0.0f);
            tfiseg::Maps maps;
            maps.class_map = map;
            maps.displacement = still;  // every pixel a region of its own
            maps.grid = grid;
            tfiseg::Settings settings;
            settings.threads = 4;
            settings.max_instances = 10;
            settings.centre_radius = 0.0;
            tfiseg::Clusterer clusterer(settings);
            for (rlim_t bytes = 40 << 20; bytes < rlim_t(2) << 30; bytes += bytes / 6) {
                const rlimit limit{bytes, RLIM_INFINITY};
                setrlimit(RLIMIT_AS, &limit);
                try {
                    clusterer.cluster(maps);
                    return 0;
                } catch (const tfiseg::Error &error) {
                    if (error.status() != TFISEG_OUT_OF_MEMORY) return 2;
                    std::puts("out of memory");
                } catch (const std::bad_alloc &) {
                }
            }
            return 3;
        }
    """)
    folder = next(cpp_prefix.glob("lib*/libtfiseg.so")).parent
    program = tmp_path / "program"
    paths = ("-I", cpp_prefix / "include", "-L", folder, "-ltfiseg", f"-Wl,-rpath,{folder}")
    run_tool("g++", "-std=c++17", "-O1", source, "-o", program, *paths)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stdout


def test_cmake_names_what_is_missing(require_tools, tmp_path):
    require_tools("cmake")
    command = ["cmake", "-S", PLUGINS, "-B", tmp_path, "-DTFISEG_CUDA=OFF", "-DTFISEG_TENSORRT=ON"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "The TensorRT plugin needs CUDA" in done.stderr
