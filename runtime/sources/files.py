"""Sources of images: files, and the image at a URL."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import InputError, SourceError
from ...images import read_image, to_bgr
from .base import Frame, Source

_log = logging.getLogger("tfiseg")


class ImageFiles(Source):
    """A source of image files, in the given order.

    Unreadable files are skipped and listed in ``unreadable``. If no file is readable, the iteration raises
    SourceError.

    Args:
        folder: folder that the frames' ``file_name`` is relative to; None keeps the paths.
        searched: whether the files were found in a folder or by a pattern, rather than named one by one.
    """

    is_video = False

    def __init__(
        self, name: str, paths: list[Path], folder: Path | None = None, *, searched: bool = False
    ) -> None:
        super().__init__(name)
        self.paths, self._folder, self.searched = paths, folder, searched

    @property
    def frame_count(self) -> int:  # type: ignore[override]
        """Number of files."""
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        unreadable: list[str] = []
        self.unreadable = unreadable
        for index, path in enumerate(self.paths):
            began = time.monotonic_ns()
            try:
                image = read_image(path)
            except InputError as error:
                unreadable.append(str(error))
                if len(unreadable) == len(self.paths):
                    raise SourceError(unreadable_message(self)) from None
                _log.warning("%s; the file is skipped", error)
                continue
            now = time.monotonic_ns()
            file_name = str(path if self._folder is None else path.relative_to(self._folder))
            yield Frame(image, index, now, path.stem, (now - began) / 1e6, file_name=file_name)


class ImageAtUrl(Source):
    """A source of the image at an http URL; it has the URL's file name."""

    is_video, frame_count = False, 1

    def __init__(self, url: str) -> None:
        self.file_name = Path(unquote(urlsplit(url).path)).name
        super().__init__(Path(self.file_name).stem)
        self._url = url

    def _read(self, index: int) -> Frame | None:
        if index:
            return None
        began = time.monotonic_ns()
        try:
            image = to_bgr(self._url)
        except InputError as error:
            raise SourceError(str(error)) from None
        now = time.monotonic_ns()
        return Frame(image, 0, now, self.name, (now - began) / 1e6, file_name=self.file_name)


def unreadable_message(source: Source) -> str:
    """Return one sentence about the unreadable image files of a source."""
    messages, total = source.unreadable, source.frame_count
    if total == 1:
        return messages[0]
    more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
    return f"{len(messages)} of {total} images can't be read: {messages[0]}{more}"
