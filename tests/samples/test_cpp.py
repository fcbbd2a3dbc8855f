"""Test the C++ samples: a copy outside the repository is built against an installed prefix."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import tfiseg
from tfiseg.runtime.networks.onnx_runtime import start_session
from tfiseg.runtime.networks.session import DEFAULT_MODEL
from tfiseg.runtime.sources.synthetic import SyntheticCamera

SAMPLES = Path(__file__).parent.parent.parent / "samples" / "cpp"
HEADERS = [
    Path(folder)
    for folder in (
        os.environ.get("ONNXRUNTIME_INCLUDE_DIR", ""),
        "/usr/include/onnxruntime",
        "/usr/local/include/onnxruntime",
    )
    if folder and Path(folder, "onnxruntime_cxx_api.h").is_file()
]


def onnxruntime_options(folder: Path) -> list[str]:
    """Return CMake's options for the library of Python's onnxruntime and the system's headers."""
    if not HEADERS:
        return []
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    for name in ("libonnxruntime.so.1", "libonnxruntime.so"):  # the soname, and the name that CMake links
        (folder / name).symlink_to(library)
    return [
        f"-DONNXRUNTIME_INCLUDE_DIR={HEADERS[0]}",
        f"-DONNXRUNTIME_LIBRARY={folder / 'libonnxruntime.so'}",
    ]


@pytest.fixture(scope="module")
def programs(cpp_prefix, run_tool, tmp_path_factory) -> Path:
    """Return the folder of the built project."""
    work = tmp_path_factory.mktemp("robot")
    project, build = work / "project", work / "build"
    shutil.copytree(SAMPLES, project)
    options = onnxruntime_options(work)
    done = subprocess.run(
        ["cmake", "-S", project, "-B", build, f"-DCMAKE_PREFIX_PATH={cpp_prefix}", *options],
        capture_output=True,
        text=True,
    )
    if "Could NOT find PNG" in done.stderr and not os.environ.get("TFISEG_TEST_CPP"):
        pytest.skip("the C++ samples need the development files of libpng")
    assert done.returncode == 0, done.stderr
    assert "building it from" not in done.stdout  # the installed library is used
    assert "warning" not in run_tool("cmake", "--build", build, "--parallel", "2")
    return build


def test_ctest_passes(programs, run_tool):
    assert "100% tests passed" in run_tool("ctest", "--test-dir", programs)


def test_programs_use_the_installed_library(programs, cpp_prefix, run_tool):
    library = next(cpp_prefix.glob("lib*/libtfiseg.so.?"))
    assert f"=> {library}" in run_tool("ldd", programs / "check_tfiseg")


def test_the_project_of_the_guide(cpp_prefix, run_tool, tmp_path):
    page = (SAMPLES.parent.parent / "docs" / "guide" / "cpp.md").read_text()
    for language, file in (("cmake", "CMakeLists.txt"), ("cpp", "robot.cpp")):
        code = re.search(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        assert code
        (tmp_path / file).write_text(code[1])
    run_tool("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={cpp_prefix}")
    run_tool("cmake", "--build", tmp_path / "build")
    printed = re.search(r"^build/robot   # (.*)$", page, re.MULTILINE)
    assert printed
    assert run_tool(tmp_path / "build" / "robot") == f"{printed[1]}\n"


def test_a_build_in_the_repository_needs_no_installed_library(require_tools, run_tool, tmp_path):
    require_tools("cmake")
    output = run_tool("cmake", "-S", SAMPLES, "-B", tmp_path, "-DTFISEG_CUDA=OFF")
    assert "tfiseg is not installed: building it from" in output


def test_the_error_of_a_missing_library_has_a_fix(require_tools, tmp_path):
    require_tools("cmake")
    shutil.copytree(SAMPLES, tmp_path / "project")
    command = ["cmake", "-S", tmp_path / "project", "-B", tmp_path / "build"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "give -DCMAKE_PREFIX_PATH=PREFIX" in done.stderr


def test_cluster_logits_equals_python(programs, tmp_path):
    rng = np.random.default_rng(4)
    logits = (
        np.stack([cv2.GaussianBlur(rng.normal(size=(60, 80)), (0, 0), 3) for _ in range(4)]).astype(
            np.float32
        )
        * 40
    )
    np.save(tmp_path / "logits.npy", logits)
    done = subprocess.run(
        [programs / "cluster_logits", tmp_path / "logits.npy", tmp_path / "labels.png", "120", "160"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = tfiseg.cluster(logits, output_size_hw=(120, 160), max_instances=256)
    assert len(expected) > 3
    assert done.stdout.count("\n") == len(expected)
    assert np.array_equal(cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED), expected.label_map)


def test_errors_of_invalid_files(programs, tmp_path):
    np.save(tmp_path / "double.npy", np.zeros((2, 4, 4)))
    (tmp_path / "text.npy").write_text("no array")
    for name, message in (
        ("double.npy", "must hold float32"),
        ("text.npy", "is no .npy file"),
        ("nowhere.npy", "is no .npy file"),
    ):
        done = subprocess.run(
            [programs / "cluster_logits", tmp_path / name, tmp_path / "labels.png"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert message in done.stderr


@pytest.fixture(scope="module")
def segment_frames(programs) -> Path:
    program = programs / "segment_frames"
    if not program.exists() and not os.environ.get("TFISEG_TEST_CPP"):
        pytest.skip("segment_frames needs ONNX Runtime's headers and nlohmann_json")
    return program


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Path]:
    """Return two frames of different sizes with several objects."""
    folder = tmp_path_factory.mktemp("frames")
    paths = []
    with SyntheticCamera(seed=3) as source:
        for k, frame in zip(range(2), source, strict=False):
            image = (
                frame.image if k == 0 else cv2.resize(frame.image, (500, 333), interpolation=cv2.INTER_AREA)
            )
            paths.append(folder / f"frame{k}.png")
            cv2.imwrite(str(paths[-1]), image)
    return paths


def labels_of(program: Path, frames: list[Path], out: Path) -> list[np.ndarray]:
    done = subprocess.run([program, DEFAULT_MODEL, out, *frames], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("instances, network") == len(frames)
    return [cv2.imread(str(out / frame.name), cv2.IMREAD_UNCHANGED).astype(np.int32) for frame in frames]


def test_segment_frames_equals_python(segment_frames, frames, tmp_path):
    """With preprocessing by the network's graph, the results are bit-exact."""
    session = start_session(DEFAULT_MODEL, threads=os.cpu_count() or 1)
    segmenter = tfiseg.Segmenter()
    for path, labels in zip(frames, labels_of(segment_frames, frames, tmp_path / "new"), strict=True):
        image = cv2.imread(str(path))
        names = [output.name for output in session.get_outputs()]
        maps = dict(zip(names, session.run(names, {"frame": image[None]}), strict=True))
        expected = segmenter.cluster_maps(maps, image.shape[:2])
        assert len(expected) > 1
        assert np.array_equal(labels, expected.label_map)


def test_segment_frames_agrees_with_the_segmenter(segment_frames, frames, tmp_path):
    """The native preprocessing of Segmenter differs from the graph by rounding."""
    segmenter = tfiseg.Segmenter()
    for path, labels in zip(frames, labels_of(segment_frames, frames, tmp_path / "new"), strict=True):
        expected = segmenter(cv2.imread(str(path)))
        assert labels.max() == len(expected)
        assert (labels == expected.label_map).mean() > 0.99


def test_errors_of_invalid_models(segment_frames, frames, tmp_path):
    for model, message in (
        (SAMPLES / "CMakeLists.txt", "segment_frames: "),
        (tmp_path / "no.onnx", "segment_frames: "),
    ):
        done = subprocess.run([segment_frames, model, tmp_path, frames[0]], capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr
