"""Count launches, barriers and transfers of the CUDA operator without a GPU, for a cost model.

    python docs/benchmarks/gpu_counts.py [--sides 1024 2048]

Needs g++ and nvcc. The kernels run on a CPU (tests/plugins/cuda_on_cpu). g++ instruments every memory access.
Every result is compared with that of the native operator. Prints Markdown. 2048 x 2048 takes minutes, 2 GB.
"""

import argparse
import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gpu import blobs, logits_problem, make_result, make_view_calls
from gpu_chains import Share, dependent_shares
from tfiseg.plugins.mask_refinement import MaskRefinementCall, PredictedMasks
from tfiseg.plugins.mask_views import MaskViewsCall
from tfiseg.plugins.native import cluster_native, fit_frame, problem_struct
from tfiseg.plugins.neck import EVIDENCE_FEATURES
from tfiseg.plugins.problem import Problem, problem_of
from tfiseg.plugins.settings import ClusterSettings
from tfiseg.plugins.views import Scene

ROOT = Path(__file__).parents[2]
CSRC, TESTS = ROOT / "plugins" / "csrc", ROOT / "tests" / "plugins"
PROCESSORS = 16  # emulated; each has at least 512 threads, and every thread needs a stack
SECTOR_BYTES = 32


@dataclass(frozen=True)
class Device:
    """A GPU in the cost model. docs/benchmarks/gpu.md names the sources.

    Args:
        processors, clock_ghz: number of processors, and the clock under load.
        cache_gbps: bandwidth of the L2 cache, for loads and stores.
        launch_us: time of a graph's first kernel launch, and of each further launch.
        grid_barrier_us, block_barrier_us: time of a barrier in a cooperative grid with one or two blocks of
            512 threads per processor.
        latency_us: time of one dependent access to the L2 cache: the mean, and the slowest.
    """

    name: str
    processors: int
    clock_ghz: float
    cache_gbps: float
    launch_us: tuple[float, float]
    grid_barrier_us: float
    block_barrier_us: float
    latency_us: tuple[float, float]


DEVICES = (
    Device("H200", 132, 1.98, 5500, (2.5, 1.4), 1.3, 0.023, (0.19, 0.27)),
    Device("RTX 4090", 128, 2.52, 4700, (2.5, 1.0), 1.15, 0.018, (0.12, 0.12)),
    Device("Jetson Orin", 16, 1.3, 600, (6.0, 3.0), 2.0, 0.035, (0.35, 0.35)),
)
L1_CYCLES, SHARED_CYCLES = 40, 30  # of a dependent access to the L1 cache, and to shared memory
ISSUED_PER_CLOCK, INTEGER_PER_CLOCK = 4.0, 2.0  # instructions of warps that a processor issues
# phases whose loops decide, as (all, for integer units) per memory access, from their SASS (sm_90): Upsample
# interpolates four classes at four grid pixels for three outputs, RowBetween compares four sites with eight
# pixels for each load. FitTiles from its PTX: 116 for four bytes of three rows, 235 for a pixel of three
# columns; 8.0 per access for 640 x 480, 8.9 for 1920 x 1080, including those to shared memory
INSTRUCTIONS_OF_PHASE = {"RowBetween": (61, 45), "Upsample": (174 / 16, 174 / 16), "FitTiles": (8.5, 8.5)}
# phases whose blocks wait only for their own tile: blocks that a processor holds at once, barriers per tile
TILES = {"AscentLinks": (2, 3), "FitTiles": (6, 2)}
# blocks of 512 threads per processor, by the registers of the kernel that runs a large grid; else one
RESIDENT = {"FindClasses": 4, "FindClassChanges": 2, "ColumnSearch": 2, "RowSamples": 2, "RowBetween": 2}
RESIDENT |= {"FollowLinks": 2, "ListContacts": 2, "EnterContacts": 2, "SumContacts": 2}
WARPS = 16  # of a block
SCAN_SHARE = Share(1 / 8, 1.0, 6.8, 6.8)  # a thread of the exclusive sum loads eight counts at once
ATOMICS_PER_CLOCK = 0.42  # warps in the L2 cache, if all add to one address


@dataclass
class Phase:
    """Counts of a phase.

    Barriers, atomic operations and 4-byte loads are counted per lane. Load and store instructions, their
    sectors of 32 bytes, and the ideal number of sectors (of dense bytes) are counted per warp, without those
    of shared memory. The last nine are load instructions, far ones from the L2 cache, near ones from the L1
    cache, shared ones from shared memory: of a warp's slowest item and of the slowest warp between two
    barriers, summed over barriers; and of all warps.
    """

    name: str
    grid_barriers: int
    block_barriers: int
    atomics: int
    word_loads: int
    load_instructions: int
    load_sectors: int
    load_ideal: int
    store_instructions: int
    store_sectors: int
    store_ideal: int
    shared_instructions: int
    item_far: int
    item_near: int
    item_shared: int
    warp_far: int
    warp_near: int
    warp_shared: int
    all_far: int
    all_near: int
    all_shared: int


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """Compile the emulated kernels with counters."""
    flags = ["-std=c++17", "-ffp-contract=off", "-pthread", "-fPIC", "-fno-strict-aliasing"]
    flags += ["-fvisibility-inlines-hidden"]
    flags += ["-DTFISEG_WITH_CUDA", f"-I{TESTS / 'cuda_on_cpu' / 'include'}", f"-I{TESTS / 'cuda_on_cpu'}"]
    counted = ["-fsanitize=thread", "--param=tsan-distinguish-volatile=1"]  # these loads go to the L2 cache
    runner = TESTS / "cuda_runner.cu"
    cpu = [CSRC / f"{name}.cpp" for name in ("api", "cluster_cpu", "fit_cpu", "views_cpu")]
    emulation = sorted((TESTS / "cuda_on_cpu").glob("*.cpp"))
    libraries = (folder / "emulation.so", folder / "cpu.so")
    steps = (
        ["g++", *flags, "-O2", "-shared", *cpu, "-o", folder / "cpu.so"],
        ["g++", *flags, "-O2", "-shared", *emulation, folder / "cpu.so", "-o", folder / "emulation.so"],
        ["g++", *flags, "-O2", *counted, "-xc++", "-c", runner, "-o", folder / "k.o"],
        ["g++", "-shared", folder / "k.o", *libraries, f"-Wl,-rpath,{folder}", "-o", folder / "counted.so"],
    )
    for step in steps:
        subprocess.run(list(map(str, step)), check=True)
    library = ctypes.CDLL(str(folder / "counted.so"))
    library.tfiseg_workspace_size.restype = ctypes.c_int64
    library.cuda_on_cpu_configure(ctypes.c_uint(1), ctypes.c_uint(0), 1, PROCESSORS)
    return library


def count_launches(library: ctypes.CDLL, work: Callable[[], None]) -> tuple[int, list[Phase]]:
    """Return the number of launches of some work, and the counts of its phases."""
    library.cuda_on_cpu_count(1)
    work()
    text = ctypes.create_string_buffer(1 << 16)
    library.cuda_on_cpu_report(text, len(text))
    lines = text.value.decode().splitlines()
    phases = [Phase(name, *map(int, numbers)) for name, *numbers in (line.split("\t") for line in lines[1:])]
    return int(lines[0]), phases


def run(library: ctypes.CDLL, problem: Problem) -> tuple[int, list[Phase]]:
    """Return the counts of a problem, and check its result against the native operator."""
    result, out = make_result(problem)
    struct = problem_struct(problem)
    room = np.zeros(library.tfiseg_workspace_size(ctypes.byref(struct), 1), np.uint8)
    result.workspace, result.workspace_bytes = room.ctypes.data, room.nbytes

    def work() -> None:
        assert (
            library.cluster_by_phases(ctypes.byref(struct), ctypes.byref(result), ctypes.c_uint32(1), 1) == 0
        )

    counts = count_launches(library, work)
    expected = cluster_native(problem)
    assert np.array_equal(out["label_map"], expected.label_map), "the emulated kernels differ from the CPU"
    return counts


def evidence_problem(side: int) -> Problem:
    """Return a problem of a network with heads: logits, boundary, affinities, both rules, propagation."""
    rng = np.random.default_rng(0)
    offsets = np.array([[0, 2], [2, 0], [4, 4], [4, -4]], np.int32)
    rule = rng.normal(0, 0.3, 4 * (len(EVIDENCE_FEATURES) + 2) + 1).astype(np.float32)
    settings = ClusterSettings(affinity_offsets=offsets, merge_rule=rule, part_rule=rule, sharpen=3)
    return replace(
        logits_problem(blobs(side), 4, (480, 640)),
        settings=settings,
        boundary=rng.random((1, -(-side // 2), -(-side // 2))).astype(np.float32),
        boundary_stride=2,
        affinity=rng.random((1, 4, side, side)).astype(np.float32),
    )


def views_launches(library: ctypes.CDLL) -> tuple[int, int]:
    """Return the number of launches that render views and that place instances."""
    call, placement = make_view_calls(blobs(160), np.zeros((160, 160, 3), np.uint8), 4, 32)

    def place() -> None:
        views, found = ctypes.byref(call.struct), ctypes.byref(placement.struct)
        assert library.place_pieces_by_phases(views, found, ctypes.c_uint32(1), 1) == 0

    def render() -> None:
        assert library.cut_views_by_phases(ctypes.byref(call.struct), ctypes.c_uint32(1), 1) == 0

    return count_launches(library, render)[0], count_launches(library, place)[0]


def mask_launches(library: ctypes.CDLL) -> dict[str, int]:
    """Return the number of launches of each step of mask refinement, without those of the network."""
    class_map = blobs(300)
    found = cluster_native(problem_of(class_map, split=0.0))
    label_map, table = found.label_map[0].copy(), found.table[0, : found.count[0]].copy()
    frame = np.zeros((*class_map.shape, 3), np.uint8)
    scene = Scene(frame, label_map, table, np.ones(256, np.uint8))
    views = MaskViewsCall(scene, np.zeros((0, 5), np.int32), 192, 16, 32)
    numbers = np.arange(len(table) + 1, dtype=np.int32)
    relabeled, classes = np.empty_like(label_map), np.empty_like(class_map)
    arrays = label_map, numbers, numbers.astype(np.uint8), relabeled, classes
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]

    def relabel() -> None:
        sizes = label_map.shape
        assert (
            library.relabel_by_phases(pointers[0], *sizes, *pointers[1:3], len(numbers), *pointers[3:]) == 0
        )

    def render() -> None:
        assert library.cut_mask_views_by_phases(ctypes.byref(views.struct), ctypes.c_uint32(1), 1) == 0

    render()
    maps = [np.full((16, 16), 0.5, np.float32)] * len(views.rendered.views)
    masks = MaskRefinementCall(PredictedMasks(label_map, table, label_map, table, views.rendered.views, maps))

    def refine() -> None:
        assert library.refine_masks_by_phases(ctypes.byref(masks.struct), ctypes.c_uint32(1), 1) == 0

    return {
        "new labels": count_launches(library, relabel)[0],
        "components": run(library, problem_of(class_map, split=0.0, min_area=0))[0],
        "views": count_launches(library, render)[0],
        "masks": count_launches(library, refine)[0],
    }


def fit(library: ctypes.CDLL, frame_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[int, list[Phase]]:
    """Return the counts of preprocessing a frame, and check its result against the CPU's."""
    frame = np.random.default_rng(0).integers(0, 256, (*frame_hw, 3), np.uint8)
    fitted = np.empty((3, *size_hw), np.float32)
    source, result = ctypes.c_void_p(frame.ctypes.data), ctypes.c_void_p(fitted.ctypes.data)

    def work() -> None:
        assert library.fit_by_phases(source, *frame_hw, result, *size_hw, ctypes.c_uint32(0), 1) == 0

    counts = count_launches(library, work)
    assert np.array_equal(fitted, fit_frame(frame, size_hw)), "the emulated kernel differs from the CPU"
    return counts


def wait_us(device: Device, p: Phase, share: Share) -> float:
    """Return the time that a phase waits for loads that depend on each other.

    share: of its loads that wait for another one, see gpu_chains.py.
    """

    def time_us(far: float, near: float, shared: float) -> float:
        cycles = share.device * near * L1_CYCLES + share.shared * shared * SHARED_CYCLES
        return share.device * far * device.latency_us[0] + cycles / device.clock_ghz / 1e3

    of_warp = time_us(p.warp_far, p.warp_near, p.warp_shared)
    if p.name in TILES:
        blocks, barriers = TILES[p.name]
        return of_warp / min(blocks * device.processors, p.block_barriers / barriers)
    if p.block_barriers:
        return of_warp
    warps = RESIDENT.get(p.name, 1) * WARPS * device.processors
    of_item = time_us(p.item_far, p.item_near, p.item_shared)
    return max(of_item, time_us(p.all_far / warps, p.all_near / warps, p.all_shared / warps))


def model_us(
    device: Device, launches: int, phases: list[Phase], shares: dict[str, Share]
) -> dict[str, float]:
    """Return the time of a call in microseconds, by kind of cost."""
    block_barriers = 0.0
    for p in phases:
        # one block works while the others wait, except with tiles, on which all blocks work in parallel
        blocks = TILES[p.name][0] if p.name in TILES else 0
        block_barriers += p.block_barriers / (blocks * device.processors or 1)
    return {
        "launches": device.launch_us[0] + (launches - 1) * device.launch_us[1],
        "grid barriers": sum(p.grid_barriers for p in phases) * device.grid_barrier_us,
        "block barriers": block_barriers * device.block_barrier_us,
        "phases": sum(max(phase_us(device, p, shares).values()) for p in phases),
    }


def phase_us(device: Device, p: Phase, shares: dict[str, Share]) -> dict[str, float]:
    """Return the terms whose maximum is the time of a phase."""
    clock = device.clock_ghz * 1e3  # cycles in a us
    processors = 1 if p.block_barriers and p.name not in TILES else device.processors  # one block works alone
    accesses = p.load_instructions + p.store_instructions + p.shared_instructions
    share = shares.get(p.name, SCAN_SHARE)
    issued, integer = INSTRUCTIONS_OF_PHASE.get(p.name, (share.instructions, share.integer))
    cycles = accesses * max(issued / ISSUED_PER_CLOCK, integer / INTEGER_PER_CLOCK) / processors
    return {
        "dependent accesses": wait_us(device, p, share),
        "instructions": cycles / clock,
        # an L1 cache delivers four sectors per clock; the L2 cache delivers each dense sector once
        "L1 cache": p.load_sectors / 4 / processors / clock,
        "L2 cache": (p.load_ideal + p.store_sectors) * SECTOR_BYTES / device.cache_gbps / 1e3,
        "atomics": p.atomics / 32 / ATOMICS_PER_CLOCK / clock,
    }


def print_slowest(title: str, phases: list[Phase], shares: dict[str, Share]) -> None:
    """Print the phases that take an H200 longest, each with its largest term."""
    print(f"\n{title}, H200:\n\n| phase | us | limited by |\n|---|---|---|")
    times = {p.name: phase_us(DEVICES[0], p, shares) for p in phases}
    for name, terms in sorted(times.items(), key=lambda item: -max(item[1].values()))[:8]:
        print(f"| {name} | {max(terms.values()):.1f} | {max(terms, key=lambda term: terms[term])} |")


def links_per_pixel(phases: list[Phase], objects_px: int, background_px: int) -> float:
    """Return the number of links followed per pixel of an object, without the load of the root.

    Of a pixel of the background, only the link is loaded.
    """
    follow = next(p for p in phases if p.name == "FollowLinks")
    return (follow.word_loads - background_px) / objects_px - 1.0


def print_phases(title: str, launches: int, phases: list[Phase]) -> None:
    print(f"\n### {title}: {launches} launches\n")
    print("| phase | grid barriers | block barriers | MB loaded (dense) | MB stored (dense) | atomics |")
    print("|---|---|---|---|---|---|")
    for p in phases:
        sizes = (p.load_sectors, p.load_ideal, p.store_sectors, p.store_ideal)
        loaded, load_ideal, stored, store_ideal = (s * SECTOR_BYTES / 1e6 for s in sizes)
        moved = f"{loaded:.2f} ({load_ideal:.2f}) | {stored:.2f} ({store_ideal:.2f})"
        name = "exclusive sum" if "BlockScan" in p.name else p.name
        print(f"| {name} | {p.grid_barriers} | {p.block_barriers} | {moved} | {p.atomics} |")
    stored, ideal = (sum(getattr(p, name) for p in phases) for name in ("store_sectors", "store_ideal"))
    print(f"\nStore sectors: {stored / ideal:.2f} of the ideal.")


def print_model(
    title: str, megapixels: float | None, launches: int, phases: list[Phase], shares: dict[str, Share]
) -> None:
    for device in DEVICES:
        terms = model_us(device, launches, phases, shares)
        far = replace(device, latency_us=(device.latency_us[1],) * 2)
        sums = sum(terms.values()), sum(model_us(far, launches, phases, shares).values())
        cells = [f"{us:.1f}" for us in terms.values()]
        for us in sums:
            cells.append(f"{us:.0f}" + (f" ({us / megapixels:.0f} us/MP)" if megapixels else ""))
        print(f"| {title} | {device.name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="*", default=[2048])
    sides = parser.parse_args().sides
    with tempfile.TemporaryDirectory() as folder:
        library = compile_kernels(Path(folder))
        small = "160 x 160 x 21 logits -> 640 x 480"
        results = {small: (None, *run(library, logits_problem(blobs(160), 21, (480, 640))))}
        for frame_hw, size_hw in (((480, 640), (480, 640)), ((1080, 1920), (352, 640))):
            sizes = f"{frame_hw[1]} x {frame_hw[0]} -> {size_hw[1]} x {size_hw[0]}"
            results[f"frame {sizes}"] = (None, *fit(library, frame_hw, size_hw))
        print(f"Frame model, 160 x 160, both rules: {run(library, evidence_problem(160))[0]} launches.")
        render, place = views_launches(library)
        print(f"Views rendered: {render} launches; parts placed: {place}.")
        print(f"Launches of mask refinement: {mask_launches(library)}.")
        for side in sides:
            class_map = blobs(side)
            launches, phases = run(library, problem_of(class_map, min_area=25))
            title = f"class map {side} x {side}"
            results[title] = (side * side / 1e6, launches, phases)
            hops = links_per_pixel(phases, int((class_map > 0).sum()), int((class_map == 0).sum()))
            print(f"{title}: {hops:.2f} hops for each pixel of an object.")
        for title, (_, launches, phases) in results.items():
            print_phases(title, launches, phases)
        print("\n### The cost model, us\n")
        print("| problem | GPU | launches | grid barriers | block barriers | phases | sum | slowest |")
        print("|---|---|---|---|---|---|---|---|")
        shares = dependent_shares()
        for title, (megapixels, launches, phases) in results.items():
            print_model(title, megapixels, launches, phases, shares)
        for title, (_, _, phases) in results.items():
            print_slowest(title, phases, shares)


if __name__ == "__main__":
    main()
