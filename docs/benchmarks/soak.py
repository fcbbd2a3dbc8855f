"""Test long runs: memory over 100,000 frames and 500 starts and stops, and killed recordings.

    python docs/benchmarks/soak.py [--frames 100000] [--starts 500] [--kills 50]

Prints a report as JSON. The exit status is 1 if memory grows by more than 2 %, counts do not add up, or a
file of a killed recording cannot be opened. Needs tfiseg[live].
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import av
import cv2
import tfiseg
from mcap.reader import make_reader
from tfiseg.runtime.pipeline.result import Result
from tfiseg.runtime.sources.synthetic import SyntheticCamera

SIZE_HW = (96, 128)
WARM_UP = 0.1  # share of frames and starts before memory is compared
WARM_UP_STARTS = 200  # not measured, because new threads fill the allocator's arenas
MAX_GROWTH = 0.02


class CountingSink:
    """A sink that counts results."""

    name, takes_all = "count", True

    def __init__(self) -> None:
        self.results = 0

    def write(self, result: Result) -> None:
        """Count one result."""
        self.results += 1


def cluster_truth(frame: tfiseg.Frame) -> tfiseg.Instances:
    """Cluster the true class map, because the test is not about the network."""
    assert frame.truth_class_map is not None
    return tfiseg.cluster(frame.truth_class_map, threads=1)


def state() -> dict[str, int]:
    """Return resident memory in KiB, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_kib": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def make_pipeline(sink: CountingSink, **options: Any) -> tfiseg.Pipeline:
    """Return a pipeline with all stages: capture, segment, track, draw, sink."""
    return tfiseg.Pipeline(
        SyntheticCamera(SIZE_HW), cluster_truth, tracker=tfiseg.Tracker(), draw=True, sinks=[sink], **options
    )


def soak_frames(frames: int) -> dict[str, Any]:
    """Run one pipeline, and measure memory 20 times."""
    sink, marks, began = CountingSink(), [], time.monotonic()
    with make_pipeline(sink, policy="all", max_frames=frames) as pipeline:
        for k, _ in enumerate(pipeline):
            if k % max(1, frames // 20) == 0:
                marks.append({"frame": k, **state()})
        stats = pipeline.stats()
    return {
        "frames": stats["finished"],
        "written": sink.results,
        "seconds": round(time.monotonic() - began),
        "all_counted": _adds_up(stats) and sink.results == frames,
        "growth": _growth([mark["rss_kib"] for mark in marks]),
        "marks": marks,
    }


def soak_starts(starts: int) -> dict[str, Any]:
    """Start and stop pipelines of all policies after 0 to 6 results."""
    marks, all_counted, slowest_s = [], True, 0.0
    for k in range(-WARM_UP_STARTS, starts):
        policy = ("latest", "all", "every_nth")[k % 3]
        pipeline = make_pipeline(CountingSink(), policy=policy, nth=2 if policy == "every_nth" else 1)
        results = iter(pipeline)
        for _ in range(k % 7):
            next(results)
        began = time.monotonic()
        pipeline.close()
        slowest_s = max(slowest_s, time.monotonic() - began)
        all_counted &= _adds_up(pipeline.stats())
        if k >= 0 and k % max(1, starts // 20) == 0:
            marks.append({"start": k, **state()})
    return {
        "starts": starts,
        "all_counted": all_counted,
        "slowest_stop_s": round(slowest_s, 2),
        "growth": _growth([mark["rss_kib"] for mark in marks]),
        "marks": marks,
    }


def _adds_up(stats: dict[str, Any]) -> bool:
    ends = ("dropped", "skipped", "finished", "discarded")
    return bool(stats["captured"] == sum(stats[name] for name in ends))


def _growth(rss_kib: list[int]) -> float:
    """Return the share by which memory grows after the warm-up."""
    first = rss_kib[max(1, round(len(rss_kib) * WARM_UP))]
    return round(rss_kib[-1] / first - 1, 4)


def kill_recordings(kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill ``tfiseg view --record`` at random moments, and open its recordings."""
    rng, opened, frames, problems = random.Random(seed), 0, 0, []
    for k in range(kills):
        with tempfile.TemporaryDirectory(prefix="tfiseg-soak-") as folder:
            command = ["view", "synthetic", "--serve", "127.0.0.1:0", "--record", folder, "--quality", "fast"]
            process = subprocess.Popen(
                [sys.executable, "-m", "tfiseg", *command, "--long-side", "64"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _wait_for_recording(Path(folder), process)
            time.sleep(rng.uniform(0, 2))
            process.kill()
            process.wait()
            for recording in Path(folder).iterdir():
                found = check_recording(recording)
                opened, frames = opened + 1, frames + found["frames"]
                problems += [f"kill {k}: {text}" for text in found["problems"]]
    return {"kills": kills, "recordings_opened": opened, "frames": frames, "problems": problems}


def _wait_for_recording(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not [*folder.glob("*/instances.jsonl")]:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"`tfiseg view` wrote no recording (exit status {process.poll()})")
        time.sleep(0.02)


def check_recording(folder: Path) -> dict[str, Any]:
    """Read the three files of a recording, and return problems and the number of frames."""
    problems: list[str] = []
    lines = (folder / "instances.jsonl").read_text().split("\n")
    for line in lines[:-1]:
        json.loads(line)
    counts = {"jsonl": len(lines) - 1}
    mcap = folder / "recording.mcap"
    if mcap.exists() and mcap.stat().st_size:
        try:
            with mcap.open("rb") as stream:
                counts["mcap"] = sum(
                    channel.topic == "/camera/image" for _, channel, _ in make_reader(stream).iter_messages()
                )
        except Exception as wrong:  # the reader may raise any error
            problems.append(f"recording.mcap of {mcap.stat().st_size} bytes: {wrong!r}")
    for video in folder.glob("*-overlay.mp4"):
        if not video.stat().st_size:
            continue
        try:
            with av.open(str(video)) as container:
                counts["mp4"] = sum(1 for _ in container.decode(video=0))
        except av.error.FFmpegError as wrong:
            problems.append(f"{video.name} of {video.stat().st_size} bytes: {wrong!r}")
        reader, read = cv2.VideoCapture(str(video)), 0
        while reader.read()[0]:
            read += 1
        if read != counts.get("mp4", read):
            problems.append(f"{video.name}: OpenCV reads {read} frames, PyAV {counts['mp4']}")
    if max(counts.values()) - min(counts.values()) > 2:
        problems.append(f"frames differ: {counts}")
    return {"problems": problems, "frames": counts["jsonl"]}


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--starts", type=int, default=500)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    report: dict[str, Any] = {}
    if args.frames:
        report["frames"] = soak_frames(args.frames)
    if args.starts:
        report["starts"] = soak_starts(args.starts)
    if args.kills:
        report["kills"] = kill_recordings(args.kills)
    print(json.dumps(report, indent=1))
    parts = [part for name, part in report.items() if name != "kills"]
    passed = all(part["all_counted"] and part["growth"] <= MAX_GROWTH for part in parts)
    return 0 if passed and not report.get("kills", {}).get("problems") else 1


if __name__ == "__main__":
    sys.exit(main())
