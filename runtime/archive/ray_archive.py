"""Segment an archive of pictures on a Ray cluster: one segmenter per worker, results to Parquet."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import InputError, MissingDependencyError, SourceError, TfisegError
from ...files import FolderLock, printable, writable_folder
from ...images import read_image
from ...plugins.native import usable_threads
from ..networks.engine_file import SUFFIX as ENGINE_SUFFIX
from ..output.coco import COCO_NAME, write_coco_frames
from ..output.run_writer import frame_record, write_summary
from ..segmenter import Segmenter
from ..segmenter_settings import SegmenterSettings
from ..sources.base import Frame
from .archive_folder import ArchiveFolder
from .picture_list import Picture, list_pictures

LOCAL = "local"  # address of a cluster that is started for one run
_MOST_PER_TASK = 64  # pictures; what a lost worker had in hand is done again
_TASKS_PER_WORKER = 8  # at least, so that all workers end at about the same time
_MOST_RETRIES = 3  # of a task whose worker died: a picture may be what kills it


class PictureWorker:
    """An actor of Ray Data with one ``Segmenter``; a picture that can't be segmented becomes an error."""

    def __init__(self, settings: SegmenterSettings) -> None:
        self.segmenter = Segmenter.from_settings(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Segment pictures.

        Args:
            batch: columns "path" and "file_name".

        Returns:
            The same, with the columns "record" (JSON, see ``frame_record``), "error" (text; "": none), and
            "class_names" (JSON).
        """
        pairs = list(zip(batch["path"], batch["file_name"], strict=True))
        results = [self.segmented(str(path), str(name)) for path, name in pairs]
        names = json.dumps(self.segmenter.class_names)
        return {
            "path": list(batch["path"]),
            "record": [record for record, _ in results],
            "error": [error for _, error in results],
            "class_names": [names if k == 0 else "" for k in range(len(pairs))],
        }

    def segmented(self, path: str, file_name: str) -> tuple[str, str]:
        """(record, error) of one picture."""
        try:
            frame = Frame(read_image(path), name=Path(path).stem, file_name=file_name)
            return json.dumps(frame_record(frame, self.segmenter(frame))), ""
        except TfisegError as wrong:
            return "", str(wrong)
        except Exception as wrong:  # one bad file never ends an archive
            return "", f"{path}: {type(wrong).__name__}: {wrong}"


def segment_archive(
    source: str,
    out: str | Path,
    settings: SegmenterSettings,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    output_format: str = "jsonl",
    quiet: bool = False,
    worker: type[PictureWorker] = PictureWorker,
) -> dict[str, Any]:
    """Segment the pictures of an archive on a Ray cluster.

    Pictures that the output folder already holds are skipped, so an interrupted run goes on where it stopped.
    Workers that die are replaced, and what they had in hand is done again. This process writes all results.

    Args:
        source: see ``list_pictures``. Each machine of the cluster must see its files under the same paths.
        out: output folder.
        settings: of the segmenters; ``threads`` 0 is one thread per worker here.
        address: of a Ray cluster, e.g. "auto" or "ray://host:10001"; "local": one is started on this machine.
        workers: number of segmenters; default: one per CPU, or per GPU with an engine.
        output_format: "coco" also writes coco.json.
        quiet: no progress bar.
        worker: class of the actors.

    Returns:
        The summary, which is also written as summary.json.

    Raises:
        SourceError: there are no pictures, or no cluster at the address.
        InputError: the output folder can't be written, or was begun with other settings.
        MissingDependencyError: Ray is missing.
    """
    began = time.monotonic()
    ray = _ray()
    pictures = list_pictures(source)
    path = writable_folder(out)
    with FolderLock(path):
        folder = ArchiveFolder(path, settings)
        todo = [picture for picture in pictures if picture.path not in folder.done]
        count = len(pictures) - len(todo)
        names: list[str] = []
        cpus = workers * max(1, settings.threads) if workers else usable_threads()
        if todo and not _needs_gpu(settings):  # a wrong model or class is an error here, not in each worker
            names = list(Segmenter.from_settings(settings).class_names)
        with _cluster(ray, address, cpus) as cpus_and_gpus, folder_closed(folder):
            size = _pool_size(cpus_and_gpus, settings, workers, len(todo))
            rows = _results(ray, todo, settings, size, worker)
            bar = tqdm(
                rows, total=len(pictures), initial=count, unit="picture", desc="tfiseg run", disable=quiet
            )
            names, error = _take_all(bar, folder, todo, names)
        coco_json = _write_coco(folder, names) if output_format == "coco" and error is None else None
        seconds = time.monotonic() - began
        return _write_summary(source, folder, pictures, count, size, seconds, coco_json, error)


@contextmanager
def folder_closed(folder: ArchiveFolder) -> Iterator[None]:
    """Write what was added, whatever ends the block."""
    try:
        yield
    finally:
        folder.flush()


def _ray() -> Any:
    try:
        import ray.data
    except ImportError as missing:
        raise MissingDependencyError('--ray needs Ray: pip install ".[ray]" in the repository') from missing
    return ray


@contextmanager
def _cluster(ray: Any, address: str, cpus: int) -> Iterator[dict[str, float]]:
    """Connect to a cluster, or start one with so many CPUs; yields its resources."""
    connected_before = ray.is_initialized()
    if not connected_before:
        options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
        if address == LOCAL:
            options |= {"include_dashboard": False, "num_cpus": cpus}
        on_terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as wrong:
            raise SourceError(
                f"there is no Ray cluster at {address!r}: start one with `ray start --head`, or use this "
                f"machine alone with --ray and no address ({wrong})"
            ) from wrong
        # Ray's own handler would end the process at once
        if on_terminate is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield ray.cluster_resources()
    finally:
        if not connected_before:
            ray.shutdown()


def _needs_gpu(settings: SegmenterSettings) -> bool:
    return Path(settings.model or "").suffix == ENGINE_SUFFIX


def _pool_size(
    resources: dict[str, float], settings: SegmenterSettings, workers: int | None, pictures: int
) -> int:
    """Number of workers; more than the cluster has room for would wait endlessly."""
    usable = int(resources.get("CPU", 0) // max(1, settings.threads))
    if _needs_gpu(settings):
        usable = min(usable, int(resources.get("GPU", 0)))
    if not usable:
        raise InputError(
            f"the Ray cluster has no room for a worker of {max(1, settings.threads)} CPUs"
            f"{' and a GPU' if _needs_gpu(settings) else ''}: it has {resources.get('CPU', 0):g} CPUs and "
            f"{resources.get('GPU', 0):g} GPUs"
        )
    return max(1, min(workers or usable, usable, pictures))


def _results(
    ray: Any, todo: list[Picture], settings: SegmenterSettings, size: int, worker: type[PictureWorker]
) -> Iterator[dict[str, Any]]:
    """Rows of ``worker`` for each picture, in the order in which they are finished."""
    import pyarrow as pa

    if not todo:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a task that was tried again in vain is reported as missing pictures
    context.execution_options.preserve_order = False
    threads = max(1, settings.threads)
    per_task = max(1, min(_MOST_PER_TASK, len(todo) // (size * _TASKS_PER_WORKER)))
    tables = [
        pa.table(
            {name: [getattr(one, name) for one in todo[k : k + per_task]] for name in ("path", "file_name")}
        )
        for k in range(0, len(todo), per_task)
    ]
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray has no other place for max_task_retries yet
        found = ray.data.from_arrow(tables).map_batches(
            worker,
            fn_constructor_args=[replace(settings, threads=threads)],
            batch_size=per_task,
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=threads,
            num_gpus=1 if _needs_gpu(settings) else 0,
            max_task_retries=_MOST_RETRIES,
        )
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield from batch.to_pylist()


def _take_all(
    rows: Iterable[dict[str, Any]], folder: ArchiveFolder, todo: list[Picture], names: list[str]
) -> tuple[list[str], str | None]:
    """Add all rows to the folder; returns the names of the classes, and what ended it early, if anything."""
    try:
        for row in rows:
            names = names or json.loads(row["class_names"] or "[]")
            if row["error"]:
                folder.add_error(row["path"], row["error"])
            else:
                folder.add(row["path"], json.loads(row["record"]))
        _add_missing(folder, todo)
    except KeyboardInterrupt:
        return names, "interrupted"
    return names, None


def _add_missing(folder: ArchiveFolder, todo: list[Picture]) -> None:
    """Report the pictures of tasks whose workers died again and again."""
    reported = {error["path"] for error in folder.errors}
    for picture in todo:
        if picture.path not in folder.done and printable(picture.path) not in reported:
            folder.add_error(
                picture.path,
                "its worker died several times; a picture that was segmented with it may be the cause",
            )


def _write_coco(folder: ArchiveFolder, names: list[str]) -> str:
    path = folder.folder / COCO_NAME
    write_coco_frames(folder.records, path, names or _class_names(folder))
    return printable(str(path))


def _class_names(folder: ArchiveFolder) -> list[str]:
    """Names of the classes that occur, for a folder that was complete before this run."""
    known: dict[int, str] = {}
    for record in folder.records():
        known |= {one["class_id"]: one["class"] for one in record["instances"]}
    return [known.get(k, f"class {k}") for k in range(max(known, default=0) + 1)]


def _write_summary(
    source: str,
    folder: ArchiveFolder,
    pictures: list[Picture],
    done_before: int,
    workers: int,
    seconds: float,
    coco_json: str | None,
    error: str | None,
) -> dict[str, Any]:
    errors = folder.errors
    listed = {picture.path for picture in pictures}
    segmented = len(folder.done & listed) - done_before
    summary = {
        "source": printable(source),
        "pictures": len(pictures),
        "done_before": done_before,
        "segmented": segmented,
        "failed": len(errors),
        "workers": workers,
        "seconds": round(seconds, 2),
        "parts": printable(str(folder.parts)),
        "coco_json": coco_json,
        "errors": errors[:20],
        "error": error or (f"{len(errors)} of {len(pictures)} pictures failed" if errors else None),
    }
    write_summary(folder.folder, summary)
    return summary
