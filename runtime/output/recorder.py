"""Recordings of a live view: overlay, instances.jsonl, and an MCAP file for Foxglove.

All files are readable after a kill -9.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import MissingDependencyError, OutputError
from ...instances import Instances
from ..pipeline.result import Result
from ..sources.base import Source
from .run_writer import WRITE_SECONDS, RunWriter

_IMAGE, _ANNOTATIONS, _LABELS = "/camera/image", "/tfiseg/annotations", "/tfiseg/labels"
_CAMERA = "camera"  # Foxglove's frame_id
_JPEG_QUALITY = 90
_CHUNK_BYTES = 1 << 18  # one or two frames; a crash loses the current chunk
# end of an MCAP file without an index (mcap.dev/spec): empty DataEnd and Footer records, and the magic bytes
_MAGIC = b"\x89MCAP0\r\n"
_END = b"\x0f" + struct.pack("<QI", 4, 0) + b"\x02" + struct.pack("<QQQI", 20, 0, 0, 0) + _MAGIC


class Recorder:
    """A sink that writes ``NAME-overlay.mp4``, ``instances.jsonl`` and ``recording.mcap`` into a folder.

    Use it in a ``with`` block.

    Raises:
        InputError: the folder is not writable.
        OutputError: a result cannot be written.
        MissingDependencyError: mcap or foxglove-sdk is missing.
    """

    name = "record"
    timeout_s = WRITE_SECONDS
    backlog = 8  # frames that may wait for the disk; more are dropped rather than slow the view

    def __init__(self, folder: Path, source: Source) -> None:
        _import_packages()  # a missing package is an error now, not at the first frame
        self._run = RunWriter(folder, source)
        self._mcap: McapWriter | None = None

    def write(self, result: Result) -> None:
        self._run.write(result)
        assert self._mcap is not None
        self._mcap.write(result)

    def __enter__(self) -> Recorder:
        self._run.__enter__()  # its lock prevents two recordings in one folder
        try:
            self._mcap = McapWriter(self._run.folder / "recording.mcap")
        except BaseException:
            self._run.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._run.__exit__(*error)
        finally:
            if self._mcap is not None:
                self._mcap.close()


def _import_packages() -> tuple[Any, Any, Any]:
    """Return Foxglove's messages, and MCAP's compression types and writer."""
    try:
        import foxglove.messages as messages
        from mcap.writer import CompressionType, Writer
    except ImportError as missing:
        raise MissingDependencyError(
            'recording needs mcap and foxglove-sdk: pip install ".[live]" in the repository'
        ) from missing
    return messages, CompressionType, Writer


class McapWriter:
    """A writer of MCAP files.

    It writes images (foxglove.CompressedImage), outlines and names (foxglove.ImageAnnotations), and label
    maps (foxglove.RawImage, mono16), whose values are track IDs if the instances have them.
    """

    def __init__(self, path: Path) -> None:
        messages, compression, writer = _import_packages()
        self._messages = messages
        self._wall_ns = time.time_ns() - time.monotonic_ns()  # from monotonic time to wall-clock time
        self._count = 0
        try:
            self._file = TerminatedFile(path)
            stream: Any = self._file
            self._writer: Any = writer(stream, chunk_size=_CHUNK_BYTES, compression=compression.ZSTD)
            self._writer.start(profile="", library="tfiseg")
            kinds: dict[str, Any] = {
                _IMAGE: messages.CompressedImage,
                _ANNOTATIONS: messages.ImageAnnotations,
                _LABELS: messages.RawImage,
            }
            self._channels = {topic: self._channel(topic, kind.get_schema()) for topic, kind in kinds.items()}
        except OSError as error:
            raise OutputError(f"can't write {path}: {error.strerror or error}") from error

    def _channel(self, topic: str, schema: Any) -> int:
        schema_id = self._writer.register_schema(schema.name, schema.encoding, schema.data)
        return int(self._writer.register_channel(topic, "protobuf", schema_id))

    def write(self, result: Result) -> None:
        """Add one frame."""
        frame, instances, m = result.frame, result.instances, self._messages
        at_ns = frame.capture_time_ns + self._wall_ns
        at = m.Timestamp(at_ns // 10**9, at_ns % 10**9)
        jpeg = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
        height, width = instances.label_map.shape
        labels = _label_values(instances)
        self._add(_IMAGE, m.CompressedImage(timestamp=at, frame_id=_CAMERA, data=jpeg, format="jpeg"), at_ns)
        self._add(_ANNOTATIONS, self._annotations(at, instances), at_ns)
        raw = m.RawImage(
            timestamp=at,
            frame_id=_CAMERA,
            width=width,
            height=height,
            encoding="mono16",
            step=2 * width,
            data=labels.tobytes(),
        )
        self._add(_LABELS, raw, at_ns)
        self._count += 1

    def _add(self, topic: str, message: Any, at_ns: int) -> None:
        try:
            self._writer.add_message(
                self._channels[topic],
                log_time=at_ns,
                publish_time=at_ns,
                data=message.encode(),
                sequence=self._count,
            )
        except OSError as error:
            raise OutputError(f"can't write {self._file.path}: {error.strerror or error}") from error

    def _annotations(self, at: Any, instances: Instances) -> Any:
        m, outlines, texts = self._messages, [], []
        colors = instances.colors[:, ::-1] / 255
        for instance in instances:
            r, g, b = colors[instance.number].tolist()
            color = m.Color(r=r, g=g, b=b, a=1.0)
            for outline in instances.polygon(instance.index):
                points = [m.Point2(x=float(x), y=float(y)) for x, y in outline]
                kind = m.PointsAnnotationType.LineLoop
                outlines.append(
                    m.PointsAnnotation(
                        timestamp=at, type=kind, points=points, outline_color=color, thickness=2.0
                    )
                )
            x, y = instance.box_xyxy[:2]
            texts.append(
                m.TextAnnotation(
                    timestamp=at,
                    position=m.Point2(x=x, y=y),
                    text=f"{instance.title} {instance.score:.2f}",
                    font_size=12.0,
                    text_color=color,
                )
            )
        return m.ImageAnnotations(timestamp=at, points=outlines, texts=texts)

    def close(self) -> None:
        """Write the index and close the file."""
        try:
            self._writer.finish()
        except OSError as error:
            raise OutputError(f"can't write {self._file.path}: {error.strerror or error}") from error
        finally:
            self._file.close()


class TerminatedFile:
    """An MCAP file that is valid after each write, because the end records are always appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self._length = 0
        self._is_complete = False

    def tell(self) -> int:
        return self._length

    def write(self, records: bytes) -> int:
        self._file.seek(self._length)
        self._is_complete = records.endswith(_MAGIC)  # the writer appends the end itself
        rest = memoryview(records if self._is_complete else records + _END)
        while rest:  # a nearly full disk accepts only a part, and raises an error next time
            rest = rest[self._file.write(rest) :]
        self._length += len(records)
        return len(records)

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""

    def close(self) -> None:
        if not self._file.closed:
            self._file.truncate(self._length + (0 if self._is_complete else len(_END)))
            self._file.close()


def _label_values(instances: Instances) -> Any:
    """Return the label map as uint16, with track IDs (modulo 65,536) if the instances have them."""
    if instances.track_id is None:
        return instances.label_map.astype(np.uint16)
    track_ids = np.concatenate([np.zeros(1, np.int32), instances.track_id])
    return track_ids.astype(np.uint16)[instances.label_map]
