"""The main job: frames from a source through a Segmenter into a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import InputError, OutputError, PipelineError
from ...files import printable
from ..pipeline.pipeline import Pipeline
from ..pipeline.tracker import Tracker
from ..segmenter import Segmenter
from ..sources.base import Source
from ..sources.files import unreadable_message
from ..sources.open_source import open_source
from .coco import COCO_NAME, write_coco
from .run_writer import RunWriter

OUTPUT_FORMATS = ("jsonl", "coco")


def run(
    source: Source | str,
    segmenter: Segmenter,
    out: Path,
    max_frames: int | None = None,
    quiet: bool = False,
    policy: str | None = None,
    nth: int = 1,
    workers: int = 1,
    tracker: Tracker | None = None,
    output_format: str = "jsonl",
) -> dict[str, Any]:
    """Segment the frames of ``source`` into folder ``out``; returns (and writes as summary.json) the summary.

    A source that fails half way, Ctrl-C and SIGTERM leave valid outputs of what was done;
    ``summary["error"]`` then says why; ``summary["unreadable"]`` lists image files that were left out. With
    ``output_format="coco"`` the records are also written as coco.json. The rest: see ``Pipeline``.
    """
    if output_format not in OUTPUT_FORMATS:
        raise InputError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}, got {output_format!r}")
    error: str | None = None
    frames = source if isinstance(source, Source) else open_source(source)
    writer = RunWriter(out, frames)
    with frames:
        pipeline = Pipeline(
            frames,
            segmenter,
            policy=policy,
            nth=nth,
            workers=workers,
            tracker=tracker,
            draw=True,
            sinks=[writer],
            max_frames=max_frames,
        )
        total = (
            frames.frame_count if max_frames is None else min(max_frames, frames.frame_count or max_frames)
        )
        try:
            with (
                tqdm(total=total, unit="frame", desc="tfiseg run", mininterval=0.5, disable=quiet) as bar,
                writer,
                pipeline,
            ):
                for _ in pipeline:
                    bar.update()
        except (PipelineError, OutputError) as stopped:
            error = str(stopped)
        except KeyboardInterrupt:
            error = "interrupted"
    if error is None and frames.unreadable:
        error = unreadable_message(frames)
    coco_json = None
    if output_format == "coco":
        coco_json = writer.folder / COCO_NAME
        try:
            write_coco(writer.folder / "instances.jsonl", coco_json, segmenter.class_names)
        except OutputError as wrong:
            coco_json, error = None, error or str(wrong)
    return _write_summary(writer, pipeline.stats(), coco_json, error)


def _write_summary(
    writer: RunWriter, stats: dict[str, Any], coco_json: Path | None, error: str | None
) -> dict[str, Any]:
    summary = {
        "source": printable(writer.source.name),
        **stats.pop("times"),
        **{name: stats[name] for name in ("captured", "dropped", "skipped", "reconnects")},
        "overlay": writer.overlays,
        "instances_jsonl": printable(str(writer.folder / "instances.jsonl")),
        "coco_json": coco_json and printable(str(coco_json)),
        "unreadable": list(writer.source.unreadable),
        "error": error,
    }
    try:
        (writer.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    except OSError as wrong:
        summary["error"] = error or f"can't write {writer.folder / 'summary.json'}: {wrong.strerror}"
    return summary


def summary_table(summary: dict[str, Any]) -> str:
    """The summary as text for people."""
    lines = [
        f"{summary['frames']} frames, {summary['instances']} instances, {summary['fps']:.1f} frames/s "
        "(drawing and writing included)"
    ]
    lost = [f"{summary[name]} {name}" for name in ("dropped", "skipped") if summary[name]]
    if lost:
        lines.append(f"of {summary['captured']} frames captured: {', '.join(lost)}")
    lines.append(f"  {'stage':<10}{'p50 ms':>9}{'p99 ms':>9}")
    for stage, times in summary["stages"].items():
        lines.append(f"  {stage:<10}{times['p50_ms']:>9.2f}{times['p99_ms']:>9.2f}")
    lines.append(f"overlay: {summary['overlay']}")
    lines.append(f"masks:   {summary['coco_json'] or summary['instances_jsonl']}")
    return "\n".join(lines)
