"""A segmenter whose options can be changed while it runs. Independent of ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tfiseg import Frame, InputError, Instances, Segmenter
from tfiseg.runtime.segmenter_settings import SegmenterSettings


class LiveSegmenter:
    """A segmenter whose options can be changed while it runs.

    Classes and minimum score change at the next frame. Another quality is loaded in the background; the old
    network segments frames until then.

    Args:
        settings: initial options.
        report: called with a sentence and whether it is an error, from any thread.

    Raises:
        ModelError: see ``tfiseg.Segmenter``.
        EngineError: see ``tfiseg.Segmenter``.
        InputError: see ``tfiseg.Segmenter``.
    """

    def __init__(self, settings: SegmenterSettings, report: Callable[[str, bool], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._segmenter = Segmenter.from_settings(settings)
        self._settings = settings  # of the segmenter in use
        self._requested = settings
        self._loaded: tuple[Segmenter, SegmenterSettings] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes; 0 is background."""
        return self._segmenter.class_names

    @property
    def quality(self) -> str:
        """Quality of the segmenter in use."""
        return self._settings.quality

    def check(self, settings: SegmenterSettings) -> None:
        """Raise InputError if a class is unknown to the model."""
        self._class_ids(settings)

    def change(self, settings: SegmenterSettings) -> None:
        """Use other options as soon as possible, without waiting for a network to load."""
        with self._lock:
            before, self._requested = self._requested, settings
        if not _needs_same_segmenter(settings, before):
            threading.Thread(target=self._load, args=[settings], daemon=True).start()

    def __call__(self, frame: Frame) -> Instances:
        """Segment one frame; call it from one thread."""
        with self._lock:
            loaded, self._loaded, requested = self._loaded, None, self._requested
        if loaded is not None:
            self._segmenter.close()
            self._segmenter, self._settings = loaded
            self._report(f"quality is {self._settings.quality!r} from now on", False)
        if requested != self._settings and _needs_same_segmenter(requested, self._settings):
            self._segmenter.things = self._class_ids(requested)
            if requested.min_score is not None:
                self._segmenter.min_score = requested.min_score
            self._settings = requested
        return self._segmenter(frame)

    def close(self) -> None:
        """Free the networks."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
        self._segmenter.close()
        if loaded is not None:
            loaded[0].close()

    def _class_ids(self, settings: SegmenterSettings) -> tuple[int, ...]:
        if settings.things is None:
            return self._segmenter.session.info.things
        things: Any = settings.things
        unknown = [name for name in things if name not in self.class_names[1:]]
        if unknown:
            raise InputError(
                f"unknown class {unknown[0]!r}; this model knows {', '.join(self.class_names[1:])}"
            )
        return tuple(k for k, name in enumerate(self.class_names) if k and name in things)

    def _load(self, settings: SegmenterSettings) -> None:
        try:
            segmenter = Segmenter.from_settings(settings)
        except Exception as error:  # the old network continues
            self._report(f"quality {settings.quality!r} can't be loaded: {error}", True)
            with self._lock:
                self._requested = self._settings
            return
        with self._lock:
            unused: Segmenter | None = segmenter
            if _needs_same_segmenter(settings, self._requested):
                unused = self._loaded[0] if self._loaded is not None else None
                self._loaded = segmenter, settings
        if unused is not None:  # other options were requested meanwhile
            unused.close()


def _needs_same_segmenter(one: SegmenterSettings, other: SegmenterSettings) -> bool:
    """Return whether one segmenter can serve both; only a new one has the model's own minimum score."""
    return one.quality == other.quality and (one.min_score is None) == (other.min_score is None)
