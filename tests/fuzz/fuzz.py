"""Fuzz the files and requests that tfiseg reads, with fixed seeds.

    python tests/fuzz/fuzz.py [KIND ...] --inputs N --seconds S

Prints a report as JSON. The exit status is 1 after a crash, hang or traceback, or above 2 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import targets
from children import SECONDS, Tally, try_inputs
from page import REQUESTS_PER_SERVER, requests_to_a_viewer

MAX_PEAK_MB = 2048
INPUTS_PER_CHILD = 20
_PROGRESS_S = 30.0
# share of the inputs by kind
SHARES = {
    "models": 0.2,
    "metadata": 0.2,
    "records": 0.15,
    "caches": 0.1,
    "checkpoints": 0.05,
    "pictures": 0.15,
    "videos": 0.1,
    "requests": 0.05,
}
_NEEDS = {"checkpoints": "torch", "requests": "aiohttp"}


def _action(make: Callable[[int], Callable[[], object]], seed: int) -> Callable[[], object]:
    """Return the action of a child: write an input and read it."""
    return lambda: make(seed)()


def fuzz(kind: str, inputs: int, seconds: float, first_seed: int) -> Tally:
    """Try inputs of one kind until their number or the time is reached."""
    tally, began = Tally(), time.monotonic()
    last_report = began
    with tempfile.TemporaryDirectory(prefix="tfiseg-fuzz-") as folder:
        make: Callable[[int], Callable[[], object]] = (
            requests_to_a_viewer if kind == "requests" else getattr(targets, kind)(Path(folder))
        )
        per_child, width = (1, REQUESTS_PER_SERVER) if kind == "requests" else (INPUTS_PER_CHILD, 1)
        seeds = list(range(first_seed, first_seed + inputs, width))
        while seeds and time.monotonic() - began < seconds:
            batch = seeds[:per_child]
            outcomes = try_inputs(
                [_action(make, seed) for seed in batch], 120 if kind == "requests" else SECONDS
            )
            for seed, outcome in zip(batch, outcomes, strict=False):
                tally.add(seed, outcome, width)
            del seeds[: len(outcomes)]
            if time.monotonic() - last_report > _PROGRESS_S:
                last_report = time.monotonic()
                print(f"{kind}: {tally.inputs} of {inputs}", file=sys.stderr, flush=True)
    return tally


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help=f"any of {', '.join(SHARES)} (default: all)")
    parser.add_argument("--inputs", type=int, default=20_000, help="in total (default: 20000)")
    parser.add_argument("--seconds", type=float, default=1e9, help="for each kind (default: no limit)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: 0)")
    args = parser.parse_args()
    targets.prepare()
    kinds = args.kinds or [*SHARES]
    total_share = sum(SHARES[kind] for kind in kinds)
    report, failed = {}, False
    for kind in kinds:
        if kind in _NEEDS and importlib.util.find_spec(_NEEDS[kind]) is None:
            report[kind] = {"skipped": f"{_NEEDS[kind]} is not installed"}
            continue
        began = time.monotonic()
        tally = fuzz(kind, round(args.inputs * SHARES[kind] / total_share), args.seconds, args.seed)
        report[kind] = {**tally.report(), "seconds": round(time.monotonic() - began, 1)}
        failed |= bool(tally.failures) or tally.peak_mb > MAX_PEAK_MB
        print(f"{kind}: {json.dumps(report[kind])}", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
