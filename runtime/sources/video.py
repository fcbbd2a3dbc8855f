"""A source that reads a video file."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import SourceError
from ...files import printable
from .base import Frame, Source, frame_name
from .capture import close_unused
from .decoding import VideoReader, open_container, upright_bgr


class VideoFile(Source):
    """A video file on disk or at a URL; its frames have ``media_time_s``.

    If frames are lost, the iteration raises SourceError with their number after the last frame.
    """

    def __init__(
        self, name: str, opener: Callable[[], VideoReader], reader: VideoReader | None = None
    ) -> None:
        super().__init__(name)
        self._opener, self._reader = opener, reader or opener()
        self._in_use = threading.Lock()
        self._started = self._closed = False
        self.fps, self.frame_count = self._reader.fps, self._reader.frame_count

    def __iter__(self) -> Iterator[Frame]:
        with self._in_use:
            if self._closed:
                raise SourceError(f"{self.name} is closed: open it again")
            if self._started:  # iterate again from the start
                self._reader.close()
                self._reader = self._opener()
            self._started, reader = True, self._reader
            frames = reader.frames()
        for index in itertools.count():
            with self._in_use:
                if self._closed or reader is not self._reader:
                    return
                began = time.monotonic_ns()
                decoded = next(frames, None)
                if decoded is None:
                    break
                image, media_time_s = upright_bgr(decoded), reader.time_of(decoded)
            now = time.monotonic_ns()
            yield Frame(image, index, now, frame_name(index), (now - began) / 1e6, media_time_s=media_time_s)
        damage = reader.damage()
        if damage is not None:
            raise SourceError(damage)

    def close(self) -> None:
        self._closed = True
        close_unused(lambda: self._reader.close(), self._in_use, self.name)


def open_file(path: Path) -> VideoReader:
    """Open a video file; raises SourceError if it cannot be read, or contains no video."""
    from av.error import FFmpegError

    shown = printable(str(path))
    try:
        container = open_container(f"file:{path}", shown)
    except FFmpegError as error:
        if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
            raise SourceError(f"can't read {shown}: {error.strerror}") from error
        raise SourceError(
            f"{shown} is no image or video that can be read ({error.strerror}): "
            "it is damaged, truncated, or in a format that FFmpeg does not support"
        ) from error
    return VideoReader(container, path.stem if path.stem.isprintable() else shown, path=path)
