"""The main job: frames from a source through a Segmenter into a folder."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError, TfisegError
from .segmenter import Segmenter
from .sinks import RunWriter, StageTimes
from .sources import open_source


def run(source: str, segmenter: Segmenter, out: Path, max_frames: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Segment every frame of ``source`` into folder ``out``; returns (and writes as summary.json) the summary.

    A source that fails half way, Ctrl-C and SIGTERM leave valid outputs of what was done; ``summary["error"]`` then says why.
    """
    if max_frames is not None and max_frames < 1:
        raise InputError(f"the number of frames must be at least 1, got {max_frames}")
    times = StageTimes()
    error: str | None = None
    with open_source(source) as frames, RunWriter(out, frames) as writer:
        total = frames.frame_count if max_frames is None else min(max_frames, frames.frame_count or max_frames)
        bar = tqdm(total=total, unit="frame", desc="tfiseg run", mininterval=0.5, disable=quiet)
        try:
            for frame in itertools.islice(frames, max_frames):
                found = segmenter(frame)
                began = time.perf_counter()
                view = found.draw(frame)
                found.stage_ms["draw"] = (time.perf_counter() - began) * 1e3
                writer.write(frame, found, view)
                times.add(found.stage_ms, len(found))
                bar.update()
        except TfisegError as stopped:
            error = str(stopped)
        except KeyboardInterrupt:
            error = "interrupted"
        finally:
            bar.close()
        summary = {
            "source": str(source),
            **times.summary(),
            "overlay": writer.overlays,
            "instances_jsonl": str(writer.folder / "instances.jsonl"),
            "error": error,
        }
        (writer.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def summary_table(summary: dict[str, Any]) -> str:
    """The summary as text for people."""
    lines = [f"{summary['frames']} frames, {summary['instances']} instances, {summary['fps']:.1f} frames/s (drawing and writing included)"]
    lines.append(f"  {'stage':<10}{'p50 ms':>9}{'p99 ms':>9}")
    for stage, times in summary["stages"].items():
        lines.append(f"  {stage:<10}{times['p50_ms']:>9.2f}{times['p99_ms']:>9.2f}")
    lines.append(f"overlay: {summary['overlay']}")
    lines.append(f"masks:   {summary['instances_jsonl']}")
    return "\n".join(lines)
