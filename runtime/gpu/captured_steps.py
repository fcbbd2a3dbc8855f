"""Steps on a stream that become CUDA graphs after they have run once."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from .cuda import Cuda, Graph

_log = logging.getLogger("tfiseg")
Step: TypeAlias = tuple[Callable[[], None], bool]  # what to enqueue, and whether a graph can capture it
Work: TypeAlias = "Graph | Callable[[], None]"  # a captured graph, or a step that is enqueued each time


class Capturing(Protocol):
    """What the steps need of a session's network: ``graphs`` becomes False after a capture has failed."""

    path: Path
    cuda: Cuda
    graphs: bool


class CapturedSteps:
    """Steps that are enqueued one by one the first time, before ``set_up``, then as CUDA graphs."""

    def __init__(
        self, network: Capturing, stream: Any, steps: Sequence[Step], set_up: Callable[[], None]
    ) -> None:
        self._network, self._stream, self._steps, self._set_up = network, stream, steps, set_up
        self._works: list[Work] | None = None
        self._has_run = False

    def run(self) -> None:
        """Enqueue all steps."""
        if not self._has_run:
            for step, _ in self._steps:  # runtimes initialize in the first run, which cannot be captured
                step()
            self._has_run = True
            self._set_up()
            if self._network.graphs:
                self._stream.synchronize()
                self._works = self._capture()
            return
        for work in [step for step, _ in self._steps] if self._works is None else self._works:
            if isinstance(work, Graph):
                work.launch(self._stream)
            else:
                work()

    def release(self) -> None:
        """Free the graphs; the steps run one by one again."""
        _release(self._works or [])
        self._works, self._has_run = None, False

    def _capture(self) -> list[Work] | None:
        """Replace each sequence of capturable steps by a graph; return None if a capture fails."""
        works: list[Work] = []
        try:
            for capturable, sequence in itertools.groupby(self._steps, lambda step: step[1]):
                enqueue = [step for step, _ in sequence]
                if capturable:
                    work = functools.partial(_run_all, enqueue)
                    works.append(self._network.cuda.capture(self._stream, work))
                else:
                    works += enqueue
        except Exception as wrong:  # an error of CUDA, or the runtime's own
            self._network.graphs = False
            _release(works)
            _log.warning("%s runs without CUDA graphs: %s", self._network.path, str(wrong))
            return None
        return works


def _run_all(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


def _release(works: Sequence[Work]) -> None:
    for work in works:
        if isinstance(work, Graph):
            work.release()
