"""Count how often a thread waits for loads in each phase, from the code that nvcc compiles for an H200.

    python docs/benchmarks/gpu_chains.py

nvcc compiles each phase as a kernel of its own, to PTX for sm_90. A chain is a sequence of loads and atomics.
Each of them needs the result of the one before: for its address, or for a branch that comes first. The script
follows registers through the basic blocks and takes the chain of all paths that takes longest, where accesses
to global memory (L2 cache) and to shared memory have different latencies. It divides the accesses of either
kind by the most loads of that kind of any path. Loads of parameters do not count, nor do atomics whose result
is not used. gpu_counts.py multiplies these shares by the loads that the slowest warp runs. Prints Markdown.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

CSRC = Path(__file__).parents[2] / "plugins" / "csrc"
EACH = ["FindClasses", "FindClassChanges", "ColumnSearch", "RowSearch", "FollowLinks"]
EACH += ["ListContacts"]
EACH += ["SumRegions", "Upsample", "CountBits", "WriteLabels", "RowSamples", "RowBetween"]
COUNTED = [
    "EnterContacts",
    "SumContacts",
    "BeginBasins",
    "SpreadRegions",
    "CreateRegions",
    "RegionEdges",
    "KeepGridSums",
    "MarkFirstPixels",
    "NumberInstances",
]
TILES = ["AscentLinks", "FitTiles"]
ROUNDS = {"MergeRounds": 5, "LargestRounds": 2}  # and the number of their steps
NOISE_STEPS = 2  # of NoiseRounds, with basins in shared memory
# each_counted and rounds of the executor, with a constant step, so that the code is only that of the step
PROBES = """#include "cluster_cuda.cu"
namespace tfiseg {
namespace {
template <class Phase>
__global__ void counted(const __grid_constant__ Phase phase, const int32_t *count) {
    if (int32_t(threadIdx.x) < *count) phase(threadIdx.x);
}
template <int kStep>
__global__ void noise_round_of(const __grid_constant__ NoiseRounds given, int32_t round) {
    __shared__ SharedBasins shared;
    NoiseRounds phases = given;
    phases.basins = shared.arrays();
    if (int32_t(threadIdx.x) < phases.items(kStep, round)) phases(kStep, round, threadIdx.x);
}
template <class Phases, int kStep>
__global__ void round_of(const __grid_constant__ Phases phases, int32_t round) {
    if (int32_t(threadIdx.x) < phases.items(kStep, round)) phases(kStep, round, threadIdx.x);
}
"""
INSTRUCTION = re.compile(r"^(?:@!?(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*);$")
REGISTER = re.compile(r"%[a-z]+\d+\b")
READS_MEMORY = re.compile(r"(ld|atom)\.(?!param|const|local)")  # also an address that may be of either kind
ACCESSES_MEMORY = re.compile(r"(ld|st|atom|red)\.(?!param|const|local)")
# of other units: memory, branches, barriers, exchanges in a warp, and operations on single floats
NO_INTEGER = re.compile(r"(ld|st|atom|red|bra|ret|exit|bar|barrier|membar|fence|shfl|vote)\b|.*\.f32$")
READS_SHARED = re.compile(r"(ld|atom)\.(volatile\.)?shared")
L2_CYCLES, SHARED_CYCLES = 375, 30  # latency, see gpu.md
LOOP_ROUNDS = 3
NO_RESULT = re.compile(r"(st|red|bra|ret|bar|barrier|membar|fence|exit|trap)\b")


@dataclass(frozen=True, order=True)
class Chain:
    """Accesses that wait for each other: their latency, and their numbers by kind of memory."""

    cycles: int = 0
    device: int = 0
    shared: int = 0

    def with_access(self, is_shared: bool) -> "Chain":
        if is_shared:
            return Chain(self.cycles + SHARED_CYCLES, self.device, self.shared + 1)
        return Chain(self.cycles + L2_CYCLES, self.device + 1, self.shared)


@dataclass(frozen=True)
class Share:
    """What gpu_counts.py multiplies with the counted accesses of a phase.

    Args:
        device, shared: share of loads that wait for another one, by kind of memory.
        instructions, integer: instructions per memory access, and those of them that the integer units run.
    """

    device: float
    shared: float
    instructions: float
    integer: float


@dataclass
class Block:
    """A basic block: instructions, each with the registers that it reads and writes, and the next blocks."""

    instructions: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


def compile_phases(folder: Path) -> dict[str, list[str]]:
    """Return the PTX of every phase by name; that of a phase with rounds by step."""
    kernels = [f"each_kernel<{name}>(const __grid_constant__ {name}, int64_t)" for name in EACH]
    kernels += [f"counted<{name}>(const __grid_constant__ {name}, const int32_t *)" for name in COUNTED]
    kernels += [f"tiles_kernel<{name}>(const __grid_constant__ {name})" for name in TILES]
    for name, steps in ROUNDS.items():
        kernels += [f"round_of<{name}, {k}>(const __grid_constant__ {name}, int32_t)" for k in range(steps)]
    noise = "(const __grid_constant__ NoiseRounds, int32_t)"
    kernels += [f"noise_round_of<{k}>{noise}" for k in range(NOISE_STEPS)]
    source, target = folder / "phases.cu", folder / "phases.ptx"
    lines = [f"template __global__ void {kernel};" for kernel in kernels]
    source.write_text(PROBES + "\n".join(lines) + "\n}\n}\n")
    flags = ["-std=c++17", "-fmad=false", "-arch=sm_90", f"-I{CSRC}"]
    flags += ["-DTFISEG_WHOLE_BLOCKS"]  # the loads of rows of other widths are more, but none of them waits
    subprocess.run(["nvcc", *flags, "--ptx", str(source), "-o", str(target)], check=True)
    found = defaultdict(list)
    for entry in target.read_text().split(".entry ")[1:]:
        name = re.match(r"\w*?\d(?:each_kernel|counted|tiles_kernel|round_of)INS_(\d+)(\w+)", entry)
        if name and (phase := name[2][: int(name[1])]) in (*EACH, *COUNTED, *TILES, *ROUNDS):
            found[phase].append(entry)
        elif "noise_round_of" in entry.split("(")[0]:
            found["NoiseRounds"].append(entry)
    return found


def blocks_of(code: str) -> list[Block]:
    """Return the basic blocks of a kernel."""
    blocks, labels, branches = [Block()], {}, []
    falls_through = True

    def begin_block() -> None:
        blocks.append(Block())
        if falls_through:
            blocks[-2].successors.append(len(blocks) - 1)

    for line in map(str.strip, code[code.index("\n{") :].splitlines()):
        if line.startswith("$") and line.endswith(":"):
            begin_block()
            falls_through = True
            labels[line[:-1]] = len(blocks) - 1
        elif match := INSTRUCTION.match(line):
            guard, opcode, operands = match.groups()
            if opcode.startswith(("call", "brx")):
                raise ValueError(f"{opcode} is not supported")
            split = 0 if NO_RESULT.match(opcode) else operands.find("}" if operands[0] == "{" else ",")
            reads = REGISTER.findall(operands[split:]) + ([guard] if guard else [])
            blocks[-1].instructions.append((opcode, reads, REGISTER.findall(operands[:split])))
            if opcode.startswith(("bra", "ret", "exit")):
                if opcode.startswith("bra"):
                    branches.append((len(blocks) - 1, operands))
                falls_through = guard is not None
                begin_block()
                falls_through = True
    for block, label in branches:
        blocks[block].successors.append(labels[label])
    return blocks


def back_edges(blocks: list[Block]) -> list[tuple[int, int]]:
    """Return the edges that close loops, as (last block, first block)."""
    found, is_open, pending = [], {0: True}, [(0, iter(blocks[0].successors))]
    while pending:
        block, successors = pending[-1]
        for successor in successors:
            if is_open.get(successor):
                found.append((block, successor))
            elif successor not in is_open:
                is_open[successor] = True
                pending.append((successor, iter(blocks[successor].successors)))
                break
        else:
            is_open[block] = False
            pending.pop()
    return found


def predecessors(blocks: list[Block], loops: list[tuple[int, int]]) -> dict[int, set[int]]:
    """Return the blocks before each block. The last block of a loop comes before those after the loop."""
    before: dict[int, set[int]] = {k: set() for k in range(len(blocks))}
    for k, block in enumerate(blocks):
        for successor in block.successors:
            if (k, successor) not in loops:
                before[successor].add(k)
    exits = []
    for first in {first for _, first in loops}:
        lasts = [last for last, begin in loops if begin == first]  # several, if the loop has a `continue`
        body, pending = {first}, list(lasts)
        while pending:
            if (k := pending.pop()) not in body:
                body.add(k)
                pending += before[k] | {end for end, begin in loops if begin == k}
        left = {successor for k in body for successor in blocks[k].successors} - body
        exits += [(last, successor) for last in lasts for successor in left]
    for last, successor in exits:
        before[successor].add(last)
    return before


def longest_chain(code: str) -> tuple[Chain, int, int]:
    """Return the longest chain of a kernel, if each loop runs LOOP_ROUNDS times.

    Also returns the most loads of any path: of device memory, and of shared memory.
    """
    blocks = blocks_of(code)
    loops = back_edges(blocks)
    before = predecessors(blocks, loops)
    order = list(TopologicalSorter(before).static_order())
    depth: dict[str, Chain] = defaultdict(Chain)  # of a register: the chain that ends in it
    # up to the end of a block: the chain of its branches, and loads by kind of memory
    branch = [Chain()] * len(blocks)
    loads = {is_shared: [0] * len(blocks) for is_shared in (False, True)}
    longest = Chain()
    for _ in range(LOOP_ROUNDS):
        for k in order:
            sources = before[k] | {last for last, first in loops if first == k}
            control = max((branch[source] for source in sources), default=Chain())
            for of_kind in loads.values():
                of_kind[k] = max((of_kind[source] for source in sources), default=0)
            for opcode, reads, writes in blocks[k].instructions:
                ready = max((depth[register] for register in reads), default=Chain())
                longest = max(longest, ready)
                if opcode.startswith("bra"):
                    control = max(control, ready)  # a warp runs its instructions in order
                if READS_MEMORY.match(opcode):
                    is_shared = READS_SHARED.match(opcode) is not None
                    ready = max(ready, control).with_access(is_shared)
                    loads[is_shared][k] += opcode.startswith("ld")
                for register in writes:
                    depth[register] = max(depth[register], ready)
            branch[k] = control
    return longest, max(loads[False]), max(loads[True])


def instructions_per_access(code: str) -> tuple[float, float]:
    """Return the number of instructions in a code per memory access, and of those for integer units."""
    opcodes = [match[2] for line in code.splitlines() if (match := INSTRUCTION.match(line.strip()))]
    accesses = max(sum(ACCESSES_MEMORY.match(opcode) is not None for opcode in opcodes), 1)
    integer = sum(NO_INTEGER.match(opcode) is None for opcode in opcodes)
    return len(opcodes) / accesses, integer / accesses


def dependent_shares() -> dict[str, Share]:
    """Return the shares and instructions of each phase. Steps of rounds are summed."""
    with tempfile.TemporaryDirectory() as folder:
        codes = compile_phases(Path(folder))
    found = {}
    for name, kernels in codes.items():
        chains, device, shared = zip(*map(longest_chain, kernels), strict=True)
        waiting = sum(chain.device for chain in chains), sum(chain.shared for chain in chains)
        shares = waiting[0] / max(sum(device), 1), waiting[1] / max(sum(shared), 1)
        found[name] = Share(*shares, *instructions_per_access("".join(kernels)))
    return found


if __name__ == "__main__":
    print("| phase | dependent accesses per load | of shared memory | instructions per access | integer |")
    print("|---|---|---|---|---|")
    for name, share in dependent_shares().items():
        waiting = f"{share.device:.2f} | {share.shared:.2f}"
        print(f"| {name} | {waiting} | {share.instructions:.1f} | {share.integer:.1f} |")
