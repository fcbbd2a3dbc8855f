"""Measure frames per second of two networks on this machine's CPU.

    python docs/benchmarks/cpu.py FP32.onnx INT8.onnx [--source VIDEO] [--size W H]

It measures two arrangements: each core segments its own frame, as `tfiseg run` does for files, or all cores
segment one frame. Rounds alternate between the networks. Results are medians.
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import tfiseg
from tfiseg.runtime.networks.onnx_session import OnnxSession


def frames_per_second(session, frames, workers):
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(session.infer, frames[: 2 * workers]))  # the first runs allocate memory
        began = time.perf_counter()
        list(pool.map(session.infer, frames))
        return len(frames) / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("candidate")
    parser.add_argument("--source", default="synthetic")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480))
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    source = tfiseg.open_source(args.source)
    frames = [cv2.resize(f.image, args.size) for f, _ in zip(source, range(args.frames), strict=False)]
    cores = len(os.sched_getaffinity(0))
    for workers, threads in ((cores, 1), (1, cores)):
        sessions = [OnnxSession(path, threads) for path in (args.reference, args.candidate)]
        rounds = [
            [frames_per_second(session, frames, workers) for session in sessions] for _ in range(args.rounds)
        ]
        reference, candidate = (statistics.median(fps) for fps in zip(*rounds, strict=True))
        ratios = sorted(candidate / reference for reference, candidate in rounds)
        row = {
            "frames_at_once": workers,
            "threads_each": threads,
            "reference_fps": round(reference, 1),
            "candidate_fps": round(candidate, 1),
            "ratio": round(statistics.median(ratios), 2),
            "lowest": round(ratios[0], 2),
            "highest": round(ratios[-1], 2),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
