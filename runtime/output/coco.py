"""A run's records as one COCO file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...errors import OutputError
from ...files import printable, whole_file
from ...rle import bbox_of
from ...schema import to_json

COCO_NAME = "coco.json"


def write_coco(records: Path, path: Path, class_names: Sequence[str]) -> None:
    """Write a COCO dataset file from a run's instances.jsonl, whole or not at all.

    Ids of images and annotations count from 1; category ids are class ids; annotations have ``score``, and
    ``track_id`` where instances were tracked. Frames are read one at a time, so memory stays small.

    Args:
        records: instances.jsonl; a last line that is cut off is left out.
        path: of the COCO file.
        class_names: name of each class id; id 0 is background.

    Raises:
        OutputError: the file can't be written, or the records can't be read.
    """
    write_coco_frames(lambda: _frames(records), path, class_names)


def write_coco_frames(
    frames: Callable[[], Iterable[dict[str, Any]]], path: Path, class_names: Sequence[str]
) -> None:
    """Write a COCO dataset file from records as ``frame_record`` makes them; see ``write_coco``.

    Args:
        frames: returns the records; called twice, because images and annotations are two lists.
        path: of the COCO file.
        class_names: name of each class id; id 0 is background.

    Raises:
        OutputError: the file can't be written, or the records can't be read.
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
    except OSError as wrong:
        raise OutputError(f"can't write {printable(str(path))}: {wrong.strerror}") from wrong


def _frames(records: Path) -> Iterator[dict[str, Any]]:
    with open(records) as lines:
        for line in lines:
            if line.endswith("\n"):  # else the run ended while it was written
                yield json.loads(line)


def _image(image_id: int, frame: dict[str, Any]) -> dict[str, Any]:
    height, width = frame["size_hw"]
    return {
        "id": image_id,
        "file_name": frame.get("file_name", frame["name"]),
        "height": height,
        "width": width,
        "frame_index": frame["frame"],
    }


def _annotations(frames: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    annotation_id = 0
    for image_id, frame in enumerate(frames, 1):
        for one in frame["instances"]:
            annotation_id += 1
            yield {
                "id": annotation_id,
                "image_id": image_id,
                "category_id": one["class_id"],
                "segmentation": one["segmentation"],
                "bbox": bbox_of(one["box_xyxy"]),
                "area": one["area"],
                "iscrowd": 0,
                "score": one["score"],
                **({"track_id": one["track_id"]} if "track_id" in one else {}),
            }


def _write_rows(out: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    for k, row in enumerate(rows):
        out.write((",\n" if k else "\n") + to_json(row))
