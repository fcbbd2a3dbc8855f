"""One stage of a pipeline: threads that take from one channel and put into the next ones, in the order of
taking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .channel import Channel, Ended
from .worker_threads import Job


class Stage:
    """Work on items in threads of its own; results are handed on in order.

    Args:
        name: of the stage, for errors and times.
        work: item in, item out.
        given: where items come from. outs: where each result goes, to all of them.
        workers: threads that work at once.
        finish: called with each result, this stage's name and time in ms, in order; returns what is put out.
        is_last: what it has finished counts as done, whether anybody takes it or not.
        fail: called with the stage's name and what it, or ``finish``, raised. Items after that one are
            discarded.
        discard: called with how many items in hand go to nobody.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Any], Any],
        given: Channel[Any],
        outs: Sequence[Channel[Any]],
        *,
        workers: int = 1,
        is_last: bool = False,
        finish: Callable[[Any, str, float], Any],
        fail: Callable[[str, BaseException], None],
        discard: Callable[[int], None],
    ) -> None:
        self.name = name
        self._work, self._given, self._outs = work, given, outs
        self._finish, self._fail, self._discard = finish, fail, discard
        self._taking = threading.Lock()
        self._turn = threading.Condition()
        self._taken = self._handed = 0
        self._failed = False
        self._is_last = is_last
        self._at_work = workers
        self.busy_since: float | None = None  # time.monotonic(); of a stage with one worker
        names = [f"tfiseg-{name}" + (f"-{k}" if k else "") for k in range(workers)]
        self.threads = [Job(self._run, n) for n in names]

    def _run(self) -> None:
        try:
            while True:
                with self._taking:
                    item = self._given.get()
                    ticket = self._taken
                    self._taken += 1
                wrong: BaseException | None = None
                began, self.busy_since = time.perf_counter(), time.monotonic()
                try:
                    item = self._work(item)
                except BaseException as raised:  # whatever it is, the caller must hear of it
                    wrong = raised
                self.busy_since = None
                self._hand_on(ticket, item, wrong, (time.perf_counter() - began) * 1e3)
        except Ended:
            pass
        finally:
            with self._turn:
                self._at_work -= 1
                last = not self._at_work
            if last:
                self._discard(self._given.close())
                for out in self._outs:
                    out.end()

    def _hand_on(self, ticket: int, done: Any, wrong: BaseException | None, ms: float) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._handed == ticket)
        in_hand = 1
        try:
            if wrong is None and not self._failed:
                try:
                    done = self._finish(done, self.name, ms)
                except Exception as raised:  # a result that is none
                    wrong = raised
            if wrong is not None and not self._failed:
                self._failed = True
                self._fail(self.name, wrong)
            if self._failed:
                self._discard(self._given.close())
                raise Ended
            in_hand = 0 if self._is_last else 1
            for out in self._outs:
                out.put(done)
        except Ended:
            self._discard(in_hand)
            raise
        finally:
            with self._turn:
                self._handed += 1
                self._turn.notify_all()
