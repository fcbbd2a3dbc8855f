"""Segment archives on a local Ray cluster of two workers (docs/benchmarks/robots.md).

`python docs/benchmarks/archive.py once` segments 2,000 images, one of them damaged, and kills a worker after
half of them. `throughput` compares two workers with one process.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import psutil
import pyarrow.parquet as pq
import tfiseg
from tfiseg.runtime.archive import ray_archive
from tfiseg.runtime.segmenter_settings import SegmenterSettings

WORKERS = 2


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    with tfiseg.open_source("synthetic") as source:
        for k, frame in zip(range(count), source, strict=False):
            cv2.imwrite(str(folder / f"{k:05d}.jpg"), frame.image)


def load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def done_paths(out: Path) -> Counter:
    parts = sorted(out.glob("parts/*.parquet"))
    return Counter(
        path for part in parts for path in pq.read_table(part, columns=["path"])["path"].to_pylist()
    )


def worker_processes() -> list[psutil.Process]:
    """Return Ray's workers among the child processes."""
    children = psutil.Process().children(recursive=True)
    return [p for p in children if p.name().startswith("ray::") and "MapWorker" in " ".join(p.cmdline())]


@contextlib.contextmanager
def call_for_each_row(on_row: Callable[[], None]) -> Iterator[None]:
    """Call ``on_row`` for each row that the workers return."""
    results = ray_archive._results

    def rows(*arguments):
        for row in results(*arguments):
            on_row()
            yield row

    ray_archive._results = rows
    try:
        yield
    finally:
        ray_archive._results = results


def once(folder: Path, count: int, quality: str) -> None:
    photos, out = folder / "photos", folder / "out"
    write_images(photos, count)
    (photos / f"{count // 2:05d}.jpg").write_bytes(b"\xff\xd8\xff damaged")
    rows, killed = itertools.count(1), []

    def kill_worker_midway() -> None:
        if next(rows) == count // 2:
            worker = worker_processes()[0]
            worker.send_signal(signal.SIGKILL)
            killed.append(worker.pid)

    before = load()
    with call_for_each_row(kill_worker_midway):
        summary = ray_archive.segment_archive(
            str(photos), out, SegmenterSettings(quality=quality), workers=WORKERS
        )
    counts = done_paths(out)
    print(json.dumps(summary, indent=1))
    print(f"load {before} before, {load()} after; killed worker {killed}")
    print(f"{len(counts)} pictures done, {sum(n > 1 for n in counts.values())} of them twice")
    assert killed
    assert len(counts) == count - 1
    assert set(counts.values()) == {1}
    assert summary["failed"] == 1


def throughput(folder: Path, count: int, quality: str) -> None:
    """Compare images per second of one process and of two workers, one thread each, without the start."""
    photos = folder / "photos"
    write_images(photos, count)
    settings = SegmenterSettings(quality=quality, threads=1)
    paths = [str(path) for path in sorted(photos.iterdir())]
    before = load()
    worker = ray_archive.PictureWorker(settings)
    worker({"path": paths[:10], "file_name": paths[:10]})
    began = time.perf_counter()
    worker({"path": paths, "file_name": paths})
    single = count / (time.perf_counter() - began)

    stamps: list[float] = []
    began = time.perf_counter()
    with call_for_each_row(lambda: stamps.append(time.perf_counter())):
        ray_archive.segment_archive(str(photos), folder / "out", settings, workers=WORKERS)
    total = count / (time.perf_counter() - began)
    first = sum(stamp - stamps[0] < 0.05 for stamp in stamps)  # rows of the first task
    steady = (count - first) / (stamps[-1] - stamps[0])
    print(f"load {before} before, {load()} after")
    print(f"one process: {single:.1f} pictures/s; two workers: {steady:.1f} ({steady / single:.2f} times)")
    print(f"with the start of the cluster and of the workers: {total:.1f} ({total / single:.2f} times)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("once", "throughput"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--quality", default="balanced")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        {"once": once, "throughput": throughput}[args.what](Path(name), args.count, args.quality)
