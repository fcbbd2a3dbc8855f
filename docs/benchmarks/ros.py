"""Measure the ROS 2 node (docs/benchmarks/robots.md): `python docs/benchmarks/ros.py WHAT`.

`latency` segments 640x480 images one after another, with the node and with a Segmenter alone. `soak` measures
the node's memory over `--seconds`, with a camera of 15 images per second. Run the script in the environment
of `make test-ros`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import tfiseg

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests" / "ros2"))
from conftest import Ros

TOPICS = {"/tfiseg/label_map": "Image", "/diagnostics": "DiagnosticArray"}
STATUS = "/tfiseg: camera"


def load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def segmenter_ms(count: int) -> float:
    """Return the median time of a Segmenter alone, in this process."""
    segmenter, times = tfiseg.Segmenter(), []
    with tfiseg.open_source("synthetic") as source:
        for frame, _ in zip(source, range(count), strict=False):
            began = time.perf_counter()
            segmenter(frame.image)
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[5:])


def latency(ros: Ros, seconds: float) -> None:
    before = load()
    alone = [segmenter_ms(100)]
    node = ros.node(reliable=True)
    listener = ros.listener({"/diagnostics": "DiagnosticArray"})
    trips = ros.peer("stepper", count=200, reliable=True).result(timeout_s=600)["trips_ms"]
    time.sleep(1.5)
    status = listener.stop()["/diagnostics"][-1][STATUS]
    node.kill()
    alone.append(segmenter_ms(100))
    in_out, inside = float(status["node_ms_p50"]), float(status["segmenter_ms_p50"])
    print(f"load {before} before, {load()} after")
    print(
        f"Segmenter alone: {alone[0]:.1f} ms before, {alone[1]:.1f} ms after; "
        f"inside the node: {inside:.1f} ms"
    )
    print(f"node in to node out: {in_out:.1f} ms, {in_out / inside:.2f} times the Segmenter's time")
    print(f"publisher to subscriber, both in another process: {statistics.median(trips):.1f} ms")


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(ros: Ros, seconds: float) -> None:
    """Print the node's memory, descriptors and threads after a tenth of the time and at the end."""
    before = load()
    node = ros.node(reliable=True, queue=500)
    listener = ros.listener(TOPICS, reliable=True)
    count = round(seconds * 15)
    camera = ros.peer("camera", count=count, hz=15, reliable=True)
    pid, rows, began = node.popen.pid, [], time.monotonic()
    while camera.popen.poll() is None:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        threads = len(os.listdir(f"/proc/{pid}/task"))
        rows.append((time.monotonic() - began, resident_mb(pid), descriptors, threads))
        time.sleep(1)
    listener.wait_for(f"{STATUS} received {count}", timeout_s=600)
    time.sleep(3)
    messages = listener.stop()
    status = messages["/diagnostics"][-1][STATUS]
    early = rows[len(rows) // 10]
    print(f"load {before} before, {load()} after; {rows[-1][0]:.0f} s, {count} images")
    for name, (at, megabytes, descriptors, threads) in (("a tenth", early), ("the end", rows[-1])):
        print(f"{name}: {at:.0f} s, {megabytes:.1f} MB, {descriptors} descriptors, {threads} threads")
    print(f"growth {100 * (rows[-1][1] / early[1] - 1):+.2f} %")
    print({name: status[name] for name in ("received", "dropped", "lost", "published", "failed")})
    assert int(status["received"]) == count == int(status["dropped"]) + int(status["published"])
    assert len(messages["/tfiseg/label_map"]) == int(status["published"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("latency", "soak"))
    parser.add_argument("--seconds", type=float, default=600)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ros = Ros(Path(name))
        try:
            {"latency": latency, "soak": soak}[args.what](ros, args.seconds)
        finally:
            for process in ros.processes:
                process.kill()
