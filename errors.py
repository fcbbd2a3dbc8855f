"""The error family: every error that tfiseg raises on purpose is a ``TfisegError`` and reads as a
sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TfisegError(Exception):
    """Base class: catch it to catch everything that tfiseg raises on purpose."""


class InputError(TfisegError, ValueError):
    """What was handed in is unusable: names the value seen, the value wanted and how to mend it."""


class SourceError(TfisegError, OSError):
    """A frame source could not be opened or stopped delivering."""


class OutputError(TfisegError, OSError):
    """Results can't be written: a full disk, a missing right, a file that is gone."""


class PipelineError(TfisegError):
    """A stage of a pipeline failed: ``stage`` names it, ``__cause__`` is what it raised."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(
            f"{stage}: {cause}"
            if isinstance(cause, TfisegError)
            else f"{stage}: {type(cause).__name__}: {cause}"
        )
        self.stage = stage
        self.__cause__ = cause

    def __reduce__(self) -> tuple[Any, ...]:
        # by default an exception is pickled as its class and its message, which is not what __init__ takes
        return _pipeline_error, (self.stage, str(self))


def _pipeline_error(stage: str, message: str) -> PipelineError:
    error = PipelineError.__new__(PipelineError, message)
    Exception.__init__(error, message)
    error.stage = stage
    return error


class FormatError(InputError):
    """The content of a file breaks its format; the message says where. Readers add the file and the fix."""


class ModelError(TfisegError, ValueError):
    """A network file cannot be used as a tfiseg model."""


class GateError(TfisegError):
    """A network in lower precision strays too far from float32; the message gives the figures and the
    thresholds."""


class EngineError(TfisegError):
    """An engine can't be built, is not what was asked for, or doesn't fit this machine; the message says what
    mends it."""


class MissingDependencyError(TfisegError, ImportError):
    """An optional package is not installed; names the extra that brings it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'X'?" with the known word closest to a mistyped one, or "" if none is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
