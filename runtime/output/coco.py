"""Conversion of a run's records to a COCO dataset file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...errors import OutputError
from ...files import printable, whole_file
from ...rle import coco_annotation
from ...schema import to_json

COCO_NAME = "coco.json"


def write_coco(records: Path, path: Path, class_names: Sequence[str]) -> None:
    """Write a COCO dataset file from a run's instances.jsonl, completely or not at all.

    IDs of images and annotations count from 1; category IDs are class IDs. Annotations have ``score``, and
    ``track_id`` if the instances were tracked. Memory use does not depend on the number of frames.

    Args:
        records: path of instances.jsonl; an incomplete last line is ignored.
        class_names: name of each class ID; ID 0 is background.

    Raises:
        OutputError: the file cannot be written, or the records cannot be read.
    """
    write_coco_frames(lambda: _frames(records), path, class_names)


def write_coco_frames(
    frames: Callable[[], Iterable[dict[str, Any]]], path: Path, class_names: Sequence[str]
) -> None:
    """Write a COCO dataset file from records of ``frame_record``, like ``write_coco``.

    Args:
        frames: returns the records; called twice, because images and annotations are two lists.
        class_names: name of each class ID; ID 0 is background.

    Raises:
        OutputError: the file cannot be written, or the records cannot be read.
    """
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(class_names) if k]
    try:
        with whole_file(path) as part, open(part, "w") as out:
            out.write(
                f'{{"info": {{"description": "tfiseg"}}, "categories": {json.dumps(categories)},\n"images": ['
            )
            _write_rows(out, (_image(k, frame) for k, frame in enumerate(frames(), 1)))
            out.write('],\n"annotations": [')
            _write_rows(out, _annotations(frames()))
            out.write("]}\n")
    except OSError as error:
        raise OutputError(f"can't write {printable(str(path))}: {error.strerror}") from error


def _frames(records: Path) -> Iterator[dict[str, Any]]:
    with open(records) as lines:
        for line in lines:
            if line.endswith("\n"):  # otherwise the run was killed while it wrote the line
                yield json.loads(line)


def _image(image_id: int, frame: dict[str, Any]) -> dict[str, Any]:
    height, width = frame["size_hw"]
    return {
        "id": image_id,
        "file_name": frame.get("file_name", frame["name"]),
        "height": height,
        "width": width,
        "frame_index": frame["frame_index"],
    }


def _annotations(frames: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    annotation_id = 0
    for image_id, frame in enumerate(frames, 1):
        for instance in frame["instances"]:
            annotation_id += 1
            yield coco_annotation(instance, annotation_id, image_id)


def _write_rows(out: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    for k, row in enumerate(rows):
        out.write((",\n" if k else "\n") + to_json(row))
