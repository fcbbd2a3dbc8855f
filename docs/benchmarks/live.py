"""Measure the live pipeline: `python docs/benchmarks/live.py WHAT [--seconds S] [--frames N]`."""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import tfiseg
from tfiseg.runtime.output.mp4 import Mp4Writer
from tfiseg.runtime.output.run_writer import RunWriter
from tfiseg.runtime.sources.realtime import Realtime
from tfiseg.runtime.sources.synthetic import SyntheticCamera

NETWORK_MS = 100


def make_clip(folder, frames, size_hw):
    """Write frames of the synthetic camera to a video file."""
    path = Path(folder) / "clip.mp4"
    with Mp4Writer(path, size_hw[::-1], 30) as writer:
        for frame, _ in zip(SyntheticCamera(size_hw, people=6), range(frames), strict=False):
            writer.write(frame.image, frame.index / 30)
    return path


def speedup(args):
    """Decode, segment, draw and write a file, serially and with the pipeline, three times each."""
    report = []
    cores = len(os.sched_getaffinity(0))
    for size_hw in ((480, 640), (720, 1280), (1080, 1920)):
        with tempfile.TemporaryDirectory() as folder:
            path = make_clip(folder, args.frames or 200, size_hw)
            segmenter, single = tfiseg.Segmenter(refine="frame"), tfiseg.Segmenter(refine="frame", threads=1)
            seconds = {"sequential": [], "pipeline": []}
            for _ in range(3):
                with tfiseg.open_source(path) as source, RunWriter(Path(folder) / "a", source) as writer:
                    began = time.perf_counter()
                    for frame in source:
                        found = segmenter(frame)
                        writer.write(tfiseg.Result(frame, found, found.draw(frame)))
                    seconds["sequential"].append(time.perf_counter() - began)
                with tfiseg.open_source(path) as source, RunWriter(Path(folder) / "b", source) as writer:
                    began = time.perf_counter()
                    with tfiseg.Pipeline(
                        source, single, workers=cores, draw=True, sinks=[writer]
                    ) as pipeline:
                        frames = sum(1 for _ in pipeline)
                    seconds["pipeline"].append(time.perf_counter() - began)
            fps = {name: round(frames / statistics.median(s), 1) for name, s in seconds.items()}
            report.append({"size_hw": size_hw, **fps, "ratio": round(fps["pipeline"] / fps["sequential"], 2)})
    return report


def slow_network(ms=NETWORK_MS):
    """Return a segmenter that takes a fixed time."""
    empty = tfiseg.cluster(np.zeros((48, 64), np.uint8))

    def segment(frame):
        time.sleep(ms / 1e3)
        return empty

    return segment


def delay(args):
    """Measure the age of results with a slow network, and drops with policy "all"."""
    seconds = args.seconds or 600
    with tfiseg.Pipeline(Realtime(SyntheticCamera((48, 64), people=1)), slow_network()) as pipeline:
        deadline, ages, queued = time.monotonic() + seconds, [], 0
        for result in pipeline:
            ages.append(result.age_ms)
            queued = max(queued, pipeline.stats()["queued"])
            if time.monotonic() > deadline:
                break
    stats = pipeline.stats()
    ages = np.array(ages)
    tenth = len(ages) // 10
    with tfiseg.Pipeline(SyntheticCamera((48, 64), people=1), slow_network(2), max_frames=1000) as all_frames:
        indices = [r.frame.index for r in all_frames]
    return {
        "seconds": seconds,
        "network_ms": NETWORK_MS,
        "age_p50_ms": round(float(np.quantile(ages, 0.5)), 1),
        "age_p99_ms": round(float(np.quantile(ages, 0.99)), 1),
        "age_first_and_last_tenth_ms": [round(float(np.median(a)), 1) for a in (ages[:tenth], ages[-tenth:])],
        "most_queued": queued,
        **{k: stats[k] for k in ("captured", "dropped", "finished", "discarded")},
        "exact": stats["captured"] == stats["dropped"] + stats["finished"] + stats["discarded"],
        "policy_all": {
            "frames": len(indices),
            "in_order": indices == list(range(1000)),
            "dropped": all_frames.stats()["dropped"],
        },
    }


def overhead(args):
    """Measure the overhead per frame of a pipeline with four empty stages."""
    frame, empty = tfiseg.Frame(np.zeros((48, 64, 3), np.uint8)), tfiseg.cluster(np.zeros((48, 64), np.uint8))

    class Frames(tfiseg.Source):
        def _read(self, index):
            return frame

    class NullSink:
        def write(self, result):
            pass

    count = args.frames or 20_000
    rounds = []
    for _ in range(3):
        with tfiseg.Pipeline(
            Frames("frames"),
            lambda frame: empty,
            tracker=lambda i: i,
            sinks=[NullSink(), NullSink()],
            max_frames=count,
        ) as p:
            began = time.perf_counter()
            assert sum(1 for _ in p) == count
            rounds.append((time.perf_counter() - began) / count * 1e3)
    return {"frames": count, "ms_per_frame": round(statistics.median(rounds), 4)}


def state():
    """Return resident memory in MB and the numbers of open descriptors and threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def soak(args):
    """Measure memory, descriptors and threads while a pipeline with all stages processes small frames."""
    count = args.frames or 100_000
    segmenter, tracker = tfiseg.Segmenter(refine="frame"), tfiseg.Tracker()
    samples = []
    with tfiseg.Pipeline(
        SyntheticCamera((96, 128)), segmenter, tracker=tracker, draw=True, max_frames=count
    ) as pipeline:
        for result in pipeline:
            if (result.frame.index + 1) % (count // 20) == 0:
                samples.append({"frame": result.frame.index + 1, **state()})
                print(json.dumps(samples[-1]), flush=True)
    settled = samples[1:]
    growth = settled[-1]["rss_mb"] / settled[0]["rss_mb"] - 1
    return {
        "frames": count,
        "rss_growth_percent": round(100 * growth, 2),
        "first": settled[0],
        "last": settled[-1],
        "fps": pipeline.stats()["times"]["fps"],
    }


def cycles(args):
    """Start and stop pipelines many times."""
    segmenter = tfiseg.Segmenter()
    count = args.frames or 500
    for k in range(count):
        with tfiseg.Pipeline(SyntheticCamera((96, 128)), segmenter, draw=True) as pipeline:
            next(iter(pipeline))
        if k + 1 == count // 10:
            before = state()
    after = state()
    growth = round(100 * (after["rss_mb"] / before["rss_mb"] - 1), 2)
    return {"cycles": count, "after_a_tenth": before, "after_all": after, "rss_growth_percent": growth}


def modes(args):
    """Measure the time of a 640x480 frame by refinement, without and with mask refinement.

    The frames are the photos of --photos DIR, in three rounds after one warm-up round.
    """
    source = tfiseg.open_source(args.photos) if args.photos else SyntheticCamera()
    frames = [cv2.resize(f.image, (640, 480)) for f, _ in zip(source, range(args.frames or 40), strict=False)]
    segmenters = {
        f"{mode or 'shape'}{', outlines' * outlines}": tfiseg.Segmenter(refine=mode, outlines=outlines)
        for outlines in (False, True)
        for mode in (None, "frame", "components")
    }
    ms = {mode: [] for mode in segmenters}
    for k in range(4):
        for mode, segmenter in segmenters.items():
            for frame in frames:
                began = time.perf_counter()
                segmenter(frame)
                if k:
                    ms[mode].append((time.perf_counter() - began) * 1e3)
    return {
        mode: {"ms": round(statistics.median(v), 1), "fps": round(1e3 / statistics.median(v), 1)}
        for mode, v in ms.items()
    }


def gpu(args):
    """Measure frames per second of 1 and 4 cameras on a GPU, with heads and with components.

    The network runs on ONNX Runtime's CUDA provider. With --model NAME.engine, it is this engine.
    """
    count, report = args.frames or 300, []
    for size_hw, refine in itertools.product(((480, 640), (720, 1280)), ("frame", "components")):
        frame = next(iter(SyntheticCamera(size_hw, people=6))).image
        for graphs in (True, False):
            segmenter = tfiseg.Segmenter(
                args.model, refine=refine, outlines=False, providers=["CUDAExecutionProvider"]
            )
            segmenter.session.network.graphs = graphs
            for cameras in (1, 4):
                for _ in range(20):  # warm-up and capture of the graph
                    segmenter(frame)
                ages = [[] for _ in range(cameras)]

                def camera(camera_ages, segmenter=segmenter, frame=frame, frames=count // cameras):
                    for _ in range(frames):
                        began = time.perf_counter()
                        segmenter(frame)
                        camera_ages.append((time.perf_counter() - began) * 1e3)

                threads = [threading.Thread(target=camera, args=(camera_ages,)) for camera_ages in ages]
                began = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                seconds = time.perf_counter() - began
                all_ages = np.concatenate(ages)
                report.append(
                    {
                        "size_hw": size_hw,
                        "refine": refine,
                        "graphs": segmenter.session.network.graphs,
                        "cameras": cameras,
                        "fps": round(len(all_ages) / seconds, 1),
                        "age_p50_ms": round(float(np.median(all_ages)), 3),
                        "age_p99_ms": round(float(np.quantile(all_ages, 0.99)), 3),
                    }
                )
            segmenter.session.close()
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speedup", "delay", "overhead", "soak", "cycles", "modes", "gpu"))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--model")
    parser.add_argument("--photos")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print(json.dumps(globals()[arguments.what](arguments), indent=1))
