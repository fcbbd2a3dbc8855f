"""Random problems, and functions that run them through a C library other than the installed one."""

import ctypes
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tfiseg.plugins.mask_refinement import MaskRefinementCall, PredictedMasks, RefinedMasks
from tfiseg.plugins.native import ProblemStruct, ResultStruct, cluster_native, load_library, problem_struct
from tfiseg.plugins.neck import EVIDENCE_FEATURES
from tfiseg.plugins.problem import Clustering, Problem, problem_of
from tfiseg.plugins.views import (
    PlacedInstances,
    PlacementCall,
    RenderedViews,
    Scene,
    ViewClusterings,
    ViewsCall,
)

CSRC = Path(__file__).parent.parent.parent / "plugins" / "csrc"
ON_CUDA = 1
EVIDENCE = ("logits", "displacement", "boundary", "affinity", "scores")


def rounded(values: np.ndarray) -> np.ndarray:
    """Return float32 values that float16 represents exactly, so that both types give the same problem."""
    return np.ascontiguousarray(values.astype(np.float16).astype(np.float32))


def random_class_maps(rng: np.random.Generator, n: int) -> np.ndarray:
    h, w = rng.integers(1, 41, 2)
    coarse = rng.integers(1, 9)
    maps = [rng.integers(0, rng.integers(1, 4) + 1, (-(-h // coarse), -(-w // coarse))) for _ in range(n)]
    out = np.stack([np.kron(m, np.ones((coarse, coarse), int))[:h, :w] for m in maps]).astype(np.uint8)
    for value, share in ((255, 0.03), (0, 0.1)):
        if rng.random() < 0.5:
            out[rng.random(out.shape) < share] = value
    return out


def random_rule(rng: np.random.Generator) -> np.ndarray:
    hidden = int(rng.integers(1, 9))
    rule = rng.normal(0, 0.3, hidden * (len(EVIDENCE_FEATURES) + 2) + 1).astype(np.float32)
    rule[: hidden * len(EVIDENCE_FEATURES)].reshape(hidden, -1)[
        :, EVIDENCE_FEATURES.index("mean affinity")
    ] *= 20
    return rule


def boundary_lines(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Return a boundary like a predicted one: high along a few thin lines with gaps."""
    waves = cv2.GaussianBlur(
        rng.normal(0, 1, (h, w)).astype(np.float32), (0, 0), float(rng.uniform(2, 6))
    ).reshape(h, w)
    lines = np.clip(1 - np.abs(waves) / (np.abs(waves).mean() + 1e-6) * rng.uniform(1, 4), 0, 1)
    return np.clip(lines + rng.normal(0, 0.05, (h, w)), 0, 1)


def make_problem(seed: int) -> Problem:
    """Return a random problem in any of the operator's modes."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 4))
    maps = random_class_maps(rng, n)
    h, w = maps.shape[1:]
    more: dict = {"min_area": int(rng.integers(0, 20)), "max_instances": int(rng.choice([1, 3, 65535]))}
    if seed % 5 in (1, 2):
        more["displacement"] = rounded(rng.normal(0, rng.choice([0.3, 2, 10]), (n, 2, h, w)))
    if seed % 5 in (2, 3):
        stride = int(rng.integers(1, 5))
        more["affinity"] = rounded(rng.random((n, 4, -(-h // stride), -(-w // stride))))
        more |= {"affinity_offsets": rng.integers(-3, 4, (4, 2)).astype(np.int32), "affinity_stride": stride}
        if rng.random() < 0.6:
            more["merge_rule"] = random_rule(rng)
    for name in ("boundary", "scores"):
        if rng.random() < 0.4:
            more[name] = rounded(rng.random((n, h, w)))
    coarser = int(rng.integers(1, 4))
    if "boundary" in more and rng.random() < 0.6:
        more["sharpen"] = int(rng.integers(1, 8))
    if "boundary" in more and "affinity" in more and rng.random() < 0.8:
        more["part_rule"] = random_rule(rng)
        more["boundary"] = rounded(np.stack([boundary_lines(rng, h, w) for _ in range(n)]))
    if "boundary" in more and coarser > 1:
        more |= {
            "boundary": np.ascontiguousarray(more["boundary"][:, ::coarser, ::coarser]),
            "boundary_stride": coarser,
        }
    split = float(rng.choice([np.nan, 0, 0.4, 0.9, 1.0]))
    more["split"] = "auto" if np.isnan(split) else split
    if seed % 2:
        return problem_of(maps, **more)
    noise = rng.normal(0, 1, (n, 4, h, w)).astype(np.float32)
    blurred = [[cv2.GaussianBlur(plane, (0, 0), 1.5).reshape(h, w) for plane in planes] for planes in noise]
    logits = np.stack(blurred) * 8
    out_h, out_w = rng.integers(1, 90, 2)
    of_logits = {"class_map": None, "logits": rounded(logits), "out_hw": (int(out_h), int(out_w))}
    return replace(problem_of(maps, **more), **of_logits)


@pytest.fixture(scope="session")
def random_problem() -> Callable[[int], Problem]:
    return make_problem


@pytest.fixture(scope="session")
def compile_cpp() -> Callable[..., Path]:
    """compile_cpp(target, *sources, flags=(), libraries=()): compile with g++; warnings are errors."""

    def compiled(
        target: Path, *sources: Path, flags: tuple[str, ...] = ("-O2",), libraries: Iterable[str] = ()
    ) -> Path:
        always = ("-std=c++17", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror")
        command = ["g++", *always, *flags, *map(str, sources), "-xnone", *libraries, "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    return compiled


@pytest.fixture(scope="session")
def operator_objects(compile_cpp, tmp_path_factory) -> list[Path]:
    """Compile the operator on the CPU without its C API, once for all libraries of these tests."""
    folder, flags = tmp_path_factory.mktemp("operator"), ("-O1", "-fPIC", "-fvisibility-inlines-hidden", "-c")
    sources = [CSRC / f"{name}.cpp" for name in ("cluster_cpu", "fit_cpu", "views_cpu")]
    return [compile_cpp(folder / f"{source.stem}.o", source, flags=flags) for source in sources]


@pytest.fixture(scope="session")
def compile_shuffled(compile_cpp, operator_objects, tmp_path_factory) -> Callable[..., Path]:
    """compile_shuffled(*flags): compile the GPU phases for the CPU, in a random order (shuffled.cpp)."""

    def compiled(*flags: str) -> Path:
        sources = (Path(__file__).parent / "shuffled.cpp", CSRC / "api.cpp")
        target = tmp_path_factory.mktemp("shuffled") / "shuffled.so"
        flags = ("-O1", "-fPIC", "-shared", *flags)
        return compile_cpp(target, *sources, flags=flags, libraries=map(str, operator_objects))

    return compiled


@pytest.fixture(scope="session")
def shuffled_library(compile_shuffled: Callable[..., Path]) -> Path:
    return compile_shuffled()


@pytest.fixture(scope="session")
def shuffled_as_large(compile_shuffled: Callable[..., Path]) -> Callable[..., Clustering]:
    """Return ``shuffled`` with every grid treated as a large one."""
    return run_by_phases(compile_shuffled("-DTFISEG_SMALL_PIXELS=0"))


@pytest.fixture(scope="session")
def shuffled(shuffled_library: Path) -> Callable[..., Clustering]:
    """shuffled(problem, seed, threads=1, half=False): run the GPU phases on the CPU in a random order."""
    return run_by_phases(shuffled_library)


@pytest.fixture(scope="session")
def by_phases() -> Callable[[Path], Callable[..., Clustering]]:
    return run_by_phases


def run_by_phases(path: Path) -> Callable[..., Clustering]:
    """Return a function that runs a problem through a library's ``cluster_by_phases``."""
    library = ctypes.CDLL(str(path))
    library.tfiseg_workspace_size.restype = ctypes.c_int64

    def run(problem: Problem, seed: int = 0, threads: int = 1, half: bool = False) -> Clustering:
        struct = problem_struct(problem)
        kept = point_to_float16(struct, problem) if half else []
        n, (h, w) = problem.batch, problem.out_hw
        room = np.random.default_rng(seed).integers(
            0, 256, library.tfiseg_workspace_size(ctypes.byref(struct), ON_CUDA), np.uint8
        )
        skipped = seed % 2  # elements, so that maps of odd seeds do not begin at a multiple of 16 bytes
        out = {
            "label_map": np.full(n * h * w + skipped, -7, np.int32)[skipped:].reshape(n, h, w),
            "semantic_map": np.zeros(n * h * w + skipped, np.uint8)[skipped:].reshape(n, h, w),
            "semantic_map_32": np.zeros((n, h, w), np.int32),
            "count": np.zeros(n, np.int32),
            "regions": np.full(n, -7, np.int32),
            "table": np.zeros((n, problem.settings.max_instances, 10), np.float32),
        }
        places = {name: array.ctypes.data for name, array in out.items()}
        result = ResultStruct(workspace=room.ctypes.data, workspace_bytes=room.nbytes, **places)
        status = library.cluster_by_phases(
            ctypes.byref(struct), ctypes.byref(result), ctypes.c_uint32(seed), threads
        )
        assert status == 0, status
        assert np.array_equal(out["semantic_map"], out["semantic_map_32"])
        del kept
        table = out["table"][:, : max(0, int(out["count"].max()))]
        return Clustering(out["label_map"], out["semantic_map"], out["count"], table, out["regions"])

    return run


def point_to_float16(struct: ProblemStruct, problem: Problem) -> list[np.ndarray]:
    """Point the structure to float16 copies of the maps, and return the copies; keep them alive."""
    copies = {
        name: np.asarray(getattr(problem, name), np.float16)
        for name in EVIDENCE
        if getattr(problem, name) is not None
    }
    struct.value_type = 1
    for name, copy in copies.items():
        setattr(struct, name, copy.ctypes.data)
    return list(copies.values())


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Clustering, Clustering], None]:
    """Assert that results are equal bit for bit, except the last bits of scores."""

    def check(got: Clustering, expected: Clustering) -> None:
        assert np.array_equal(got.count, expected.count)
        assert np.array_equal(got.label_map, expected.label_map)
        assert np.array_equal(got.semantic_map, expected.semantic_map)
        assert np.array_equal(got.regions, expected.regions)
        for k, n in enumerate(got.count):
            a, b = got.table[k, :n], expected.table[k, :n]
            assert np.array_equal(np.delete(a, 1, 1), np.delete(b, 1, 1))
            assert np.allclose(a[:, 1], b[:, 1], atol=1e-4)

    return check


def make_scene(class_map: np.ndarray, frame: np.ndarray | None = None, **more) -> Scene:
    """Return a frame (default: noise) with the components of a class map."""
    found = cluster_native(problem_of(class_map, split=0.0, **more))
    if frame is None:
        frame = np.random.default_rng(0).integers(0, 256, (*class_map.shape, 3)).astype(np.uint8)
    return Scene(
        frame, found.label_map[0].copy(), found.table[0, : found.count[0]].copy(), np.ones(256, np.uint8)
    )


@pytest.fixture(scope="session")
def scene_of() -> Callable[..., Scene]:
    return make_scene


@pytest.fixture(scope="session")
def random_views_case() -> Callable[
    [int], tuple[Scene, int, int, Callable[[RenderedViews], ViewClusterings]]
]:
    """random_views_case(seed): return a scene, number and side of views, and a function for random parts."""

    def make_case(seed: int) -> tuple[Scene, int, int, Callable[[RenderedViews], ViewClusterings]]:
        rng = np.random.default_rng(seed)
        h, w = rng.integers(1, 260, 2)
        smooth = cv2.GaussianBlur(
            rng.normal(0, 1, (h, w)).astype(np.float32), (0, 0), float(rng.uniform(1, 12))
        ).reshape(h, w)
        levels = np.quantile(smooth, [0.0, *sorted(rng.uniform(0.2, 0.9, 3))])
        class_map = (np.searchsorted(levels, smooth) % 4).astype(np.uint8)
        scene = make_scene(
            class_map, rng.integers(0, 256, (h, w, 3)).astype(np.uint8), min_area=int(rng.integers(0, 30))
        )
        scene.thing_flags[2] = seed % 3 > 0
        return (
            scene,
            int(rng.integers(1, 7)),
            int(rng.choice([8, 31, 48, 96])),
            lambda rendered: random_parts(rng, rendered),
        )

    return make_case


def random_parts(rng: np.random.Generator, rendered: RenderedViews, max_parts: int = 7) -> ViewClusterings:
    """Return parts that are random blocks with gaps, which no network would predict."""
    cells = -(-rendered.own.shape[1] // 6)
    blocks = np.kron(rng.integers(1, 5, (len(rendered.own), cells, cells)), np.ones((1, 6, 6), int))[
        :, : rendered.own.shape[1], : rendered.own.shape[1]
    ]
    inside = (rendered.own > 0) & (rng.random(rendered.own.shape) > 0.1)
    given = problem_of(np.where(inside, blocks, 0).astype(np.uint8), max_instances=max_parts)
    found = cluster_native(given)
    tables = np.zeros((len(rendered.own), max_parts, 10), np.float32)
    tables[:, : found.table.shape[1]] = found.table
    regions = rng.integers(1, 4, len(rendered.own)).astype(np.int32)
    return ViewClusterings(found.label_map.copy(), found.count.copy(), regions, tables)


@pytest.fixture(scope="session")
def views_by_phases() -> Callable[
    [Path], tuple[Callable[..., RenderedViews], Callable[..., PlacedInstances]]
]:
    """views_by_phases(library): return its ``render_views`` and ``place_instances``, which take a seed."""

    def load(path: Path) -> tuple[Callable[..., RenderedViews], Callable[..., PlacedInstances]]:
        library = load_library(path, "")

        def render(scene: Scene, count: int, side: int, seed: int = 0, threads: int = 1) -> RenderedViews:
            call = ViewsCall(scene, count, side)
            assert library.cut_views_by_phases(ctypes.byref(call.struct), ctypes.c_uint32(seed), threads) == 0
            return call.rendered

        def place(
            scene: Scene,
            rendered: RenderedViews,
            found: ViewClusterings,
            min_regions: int,
            seed: int = 0,
            threads: int = 1,
        ) -> PlacedInstances:
            call = ViewsCall(scene, *rendered.own.shape[:2], None, rendered, found.tables.shape[1])
            placement = PlacementCall(scene, found, min_regions)
            structs = (ctypes.byref(call.struct), ctypes.byref(placement.struct))
            assert library.place_pieces_by_phases(*structs, ctypes.c_uint32(seed), threads) == 0
            return placement.placed

        return render, place

    return load


def smooth_noise(rng: np.random.Generator, h: int, w: int, sigma: float) -> np.ndarray:
    noise = rng.normal(0, 1, (h, w)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), sigma).reshape(h, w)


def make_predicted_masks(seed: int, half: bool = False) -> PredictedMasks:
    """Return random instances, and views of their components with random foreground maps."""
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 120, 2).tolist()
    if seed % 3 == 0:
        w = max(32, w // 32 * 32)  # whole words take another way
    smooth = smooth_noise(rng, h, w, float(rng.uniform(1, 9)))
    levels = np.quantile(smooth, [0.0, *sorted(rng.uniform(0.2, 0.95, 3))])
    class_map = (np.searchsorted(levels, smooth) % 4).astype(np.uint8)
    components = cluster_native(problem_of(class_map, split=0.0))
    component_map = components.label_map[0].copy()
    parts = np.where(component_map, component_map * 4 + (smooth_noise(rng, h, w, 7) > 0), 0)
    kept = rng.random(int(parts.max(initial=0)) + 1) < 0.9
    numbers, label_map = np.unique(np.where(kept[parts], parts, 0), return_inverse=True)
    label_map = label_map.reshape(h, w) + (numbers[0] > 0)  # 0 = none, also if there is no background
    table = np.zeros((int(label_map.max(initial=0)), 10), np.float32)
    for k in range(len(table)):
        table[k, 0] = class_map[label_map == k + 1][0]
    table[:, 1] = rng.random(len(table))
    component_table = components.table[0, : components.count[0]].copy()
    views, foregrounds = [], []
    for component in rng.permutation(len(component_table))[:12].tolist():
        x0, y0, x1, y1 = component_table[component, 2:6].astype(int).tolist()
        margin = int(rng.integers(0, 40))
        corner = (x0 - margin, y0 - int(rng.integers(0, 40)))
        side = max(x1 - x0, y1 - y0) + 2 * margin
        q = int(rng.choice([1, 5, 24, 48]))
        views.append((*corner, side, component_table[component, 0] * (rng.random() < 0.9), component + 1))
        noise = smooth_noise(rng, q, q, float(rng.uniform(0.5, 6)))
        foreground = np.clip(0.5 + noise / (np.abs(noise).mean() + 1e-6) * rng.uniform(0.1, 0.9), -0.5, 1.5)
        foregrounds.append(foreground.astype(np.float16 if half else np.float32))
    if rng.random() < 0.3 and views:  # a second view of a component, which is not used
        views.append(views[0])
        foregrounds.append(foregrounds[0][::-1].copy())
    if not views:
        views, foregrounds = [(0, 0, 20, 0, 0)], [np.zeros((4, 4), np.float16 if half else np.float32)]
    return PredictedMasks(
        label_map.astype(np.int32),
        table,
        component_map,
        component_table,
        np.array(views, np.int32),
        foregrounds,
    )


@pytest.fixture(scope="session")
def random_predicted_masks() -> Callable[..., PredictedMasks]:
    return make_predicted_masks


@pytest.fixture(scope="session")
def refinement_by_phases() -> Callable[[Path], Callable[..., RefinedMasks]]:
    """refinement_by_phases(library): its ``refine_masks``, with a seed of the order."""

    def of(path: Path) -> Callable[..., RefinedMasks]:
        library = load_library(path, "")

        def refine(predicted: PredictedMasks, seed: int = 0, threads: int = 1) -> RefinedMasks:
            call = MaskRefinementCall(predicted)
            arguments = (ctypes.byref(call.struct), ctypes.c_uint32(seed), threads)
            assert library.refine_masks_by_phases(*arguments) == 0
            return call.refined

        return refine

    return of
