"""The main job: frames from a source through a Segmenter into a folder."""

from __future__ import annotations

from collections.abc import Sequence
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
from .run_writer import RunWriter, write_summary

OUTPUT_FORMATS = ("jsonl", "coco")
_INTERRUPTED = "interrupted"
_UNFINISHED = "the run has not ended: its process was killed, or is still at work"


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
    frames = source if isinstance(source, Source) else open_source(source)
    with frames:
        writer = RunWriter(out, frames)
        with writer.lock:
            write_summary(writer.folder, {"source": printable(frames.name), "error": _UNFINISHED})
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
            error = _run_through(pipeline, writer, max_frames, quiet)
            coco_names = segmenter.class_names if output_format == "coco" else None
            try:
                return _finish(writer, pipeline, coco_names, error)
            except KeyboardInterrupt:  # too late to end anything: what was done gets its summary
                return _finish(writer, pipeline, coco_names, error or _INTERRUPTED)


def _run_through(pipeline: Pipeline, writer: RunWriter, max_frames: int | None, quiet: bool) -> str | None:
    """Write all results; returns what ended the run early, or None."""
    count = pipeline.source.frame_count
    total = count if max_frames is None else min(max_frames, count or max_frames)
    try:
        with (
            tqdm(total=total, unit="frame", desc="tfiseg run", mininterval=0.5, disable=quiet) as bar,
            writer,
            pipeline,
        ):
            for _ in pipeline:
                bar.update()
    except (PipelineError, OutputError) as stopped:
        return str(stopped)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return None


def _finish(
    writer: RunWriter, pipeline: Pipeline, coco_names: Sequence[str] | None, error: str | None
) -> dict[str, Any]:
    """Write coco.json, if there are names for it, and the summary; returns the summary."""
    source, coco_json = pipeline.source, None
    if error is None and source.unreadable:
        error = unreadable_message(source)
    if coco_names is not None:
        coco_json = writer.folder / COCO_NAME
        try:
            write_coco(writer.folder / "instances.jsonl", coco_json, coco_names)
        except OutputError as wrong:
            coco_json, error = None, error or str(wrong)
    stats = pipeline.stats()
    summary = {
        "source": printable(source.name),
        **stats.pop("times"),
        **{name: stats[name] for name in ("captured", "dropped", "skipped", "reconnects")},
        "overlay": writer.overlays,
        "instances_jsonl": printable(str(writer.folder / "instances.jsonl")),
        "coco_json": coco_json and printable(str(coco_json)),
        "unreadable": list(source.unreadable),
        "error": error,
    }
    try:
        write_summary(writer.folder, summary)
    except OutputError as wrong:
        summary["error"] = error or str(wrong)
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
