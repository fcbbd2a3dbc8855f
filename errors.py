"""The exceptions of tfiseg. Each message is a sentence for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class TfisegError(Exception):
    """The base class of all errors that tfiseg raises."""


class InputError(TfisegError, ValueError):
    """An argument is invalid; the message states the value, the expected value and the fix."""


class SourceError(TfisegError, OSError):
    """A source cannot be opened, or stopped delivering frames."""


class OutputError(TfisegError, OSError):
    """Results cannot be written or read, for example on a full disk or without permission."""


class PipelineError(TfisegError):
    """A stage of a pipeline failed: ``stage`` is its name, ``__cause__`` the error that it raised."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        kind = "" if isinstance(cause, TfisegError) else f"{type(cause).__name__}: "
        super().__init__(f"{stage}: {kind}{cause}")
        self.stage = stage
        self.__cause__ = cause

    def __reduce__(self) -> tuple[Any, ...]:
        # by default, an exception is pickled with its message, but __init__ has other arguments
        return _pipeline_error, (self.stage, str(self))


def _pipeline_error(stage: str, message: str) -> PipelineError:
    error = PipelineError.__new__(PipelineError, message)
    Exception.__init__(error, message)
    error.stage = stage
    return error


class FormatError(InputError):
    """The content of a file violates its format; the message states where. Readers add file and fix."""


class ModelError(TfisegError, ValueError):
    """A network file is missing, damaged or not in tfiseg's format."""


class GateError(TfisegError):
    """A network in lower precision differs too much from float32; the message has values and thresholds."""


class EngineError(TfisegError):
    """An engine cannot be built, fails the precision proof, or does not fit this machine."""


class MissingDependencyError(TfisegError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


def check_choice(option: str, value: object, known: Sequence[str]) -> None:
    """Raise InputError if an option's value is none of the known ones; the message lists them.

    Args:
        option: name of the argument.
        value: its value.
        known: all allowed values.
    """
    if value not in known:
        raise InputError(
            f"{option} must be one of {', '.join(map(repr, known))}, got "
            f"{value!r}.{did_you_mean(str(value), known)}"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'X'?" with the closest known word, or "" if none is similar."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
