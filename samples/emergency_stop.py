"""Decide whether a robot must stop, with hysteresis and a watchdog: `python samples/emergency_stop.py 0`.

Three rules make the decision safe. A stop needs one frame, and driving on needs several clear ones in a row
over a minimum time. The distance to drive on is larger than the distance to stop. No result for `STALE_MS`
is a stop, whatever the last one said.

The sample takes the share of the image's lower half that a person covers. With a depth camera, give
`EmergencyStop.update` the distance of the nearest person instead; `nearest_person_m` shows how.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import tfiseg

NEAR, CLEAR = 0.08, 0.04  # share of the lower half: stop above the first, drive on below the second
STALE_MS = 300  # no result for so long is a stop
CLEAR_S, CLEAR_RESULTS = 0.5, 5  # drive on after so many clear results over at least this time
WATCHDOG_HZ = 50


class EmergencyStop:
    """A stop signal that is on until it has been proved for a while that the way is clear.

    A thread of its own watches the age of the results. ``on_change(stopped, reason)`` is called when the
    signal changes, and when a stop gets another cause. Time is that of ``clock``, in seconds.

    Args:
        near: danger at or above which the robot stops; any quantity that grows with danger.
        clear: danger at or below which the way is clear; lower than ``near``.
        stale_ms: age of the newest result above which the robot stops.
        clear_s, clear_results: how long, and in how many results, the way must be clear.
    """

    def __init__(
        self,
        near: float,
        clear: float,
        stale_ms: float = STALE_MS,
        clear_s: float = CLEAR_S,
        clear_results: int = CLEAR_RESULTS,
        on_change: Callable[[bool, str], None] = lambda stopped, reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if clear >= near:
            raise ValueError(f"clear must be below near, else the stop flickers; got {clear} and {near}")
        self._near, self._clear, self._stale_s = near, clear, stale_ms / 1e3
        self._clear_s, self._clear_results = clear_s, clear_results
        self._on_change, self._clock = on_change, clock
        self._lock = threading.Lock()
        self._captured_s: float | None = None  # when the newest result's frame was taken
        self._clear_since: float | None = None
        self._clear_count = 0
        self.stopped, self.reason = True, "no result yet"
        self._cause = "silence"

    def update(self, danger: float, captured_s: float) -> None:
        """Take one result: its danger, and when its frame was captured. NaN is a stop."""
        with self._lock:
            if self._captured_s is not None and captured_s <= self._captured_s:
                return  # the same result again, or an older one, proves nothing
            self._captured_s = captured_s
            if not danger <= self._clear:
                self._clear_since, self._clear_count = None, 0
            else:
                self._clear_since = captured_s if self._clear_since is None else self._clear_since
                self._clear_count += 1
            if not danger < self._near:
                self._set(True, "danger", f"danger {danger:.3g} reaches {self._near:.3g}")
                return
        self.check()

    def check(self) -> None:
        """The watchdog's turn: stop if the newest result is old, drive on if it was clear long enough."""
        with self._lock:
            if self._captured_s is None:
                return
            age_s = self._clock() - self._captured_s
            if age_s > self._stale_s:
                self._clear_since, self._clear_count = None, 0
                self._set(True, "silence", f"no result for {age_s * 1e3:.0f} ms")
            elif (
                self._clear_since is not None
                and self._clear_count >= self._clear_results
                and self._captured_s - self._clear_since >= self._clear_s
            ):
                self._set(False, "clear", "the way is clear")

    def fail(self, reason: str) -> None:
        """Stop for a reason from outside, such as an error; only clear results end it."""
        with self._lock:
            self._clear_since, self._clear_count = None, 0
            self._set(True, reason, reason)

    def watch(self, stop: threading.Event) -> None:
        """Run the watchdog until the event is set; in a thread of its own, which no network can delay."""
        while not stop.wait(1 / WATCHDOG_HZ):
            self.check()

    def _set(self, stopped: bool, cause: str, reason: str) -> None:
        changed = cause != self._cause
        self.stopped, self._cause = stopped, cause
        if changed:  # the figures in the reason are those of the first result of this cause
            self.reason = reason
            self._on_change(stopped, reason)


def covered_share(instances: tfiseg.Instances) -> float:
    """Largest share of the image's lower half that one person covers."""
    lower = instances.label_map[instances.label_map.shape[0] // 2 :]
    people = [one.number for one in instances if one.class_name == "person"]
    return max((float((lower == number).mean()) for number in people), default=0.0)


def nearest_person_m(instances: tfiseg.Instances, depth_map: np.ndarray, intrinsics: np.ndarray) -> float:
    """Distance of the nearest person in meters. As a danger, give its negative: EmergencyStop(-1.0, -1.5).

    A person without any depth may be too near for the sensor: NaN, which is a stop.
    """
    measured = instances.with_depth(depth_map, intrinsics)
    people = [one for one in measured if one.class_name == "person"]
    return float(np.min([np.linalg.norm(one.nearest_xyz_m) for one in people])) if people else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="0", help='camera index, file, URL or "synthetic"')
    parser.add_argument("--seconds", type=float, default=float("inf"), help="drive this long")
    args = parser.parse_args()
    segmenter = tfiseg.Segmenter(things=["person"])
    try:
        source = tfiseg.open_source(args.source, realtime=True)
    except tfiseg.SourceError as wrong:
        sys.exit(str(wrong))
    guard = EmergencyStop(
        NEAR,
        CLEAR,
        on_change=lambda stopped, why: print(f"{'STOP' if stopped else 'GO'}: {why}", flush=True),
    )
    print(f"STOP: {guard.reason}", flush=True)
    ended = threading.Event()
    threading.Thread(target=guard.watch, args=[ended], daemon=True).start()
    end = time.monotonic() + args.seconds
    try:
        with source, tfiseg.Pipeline(source, segmenter) as pipeline:
            while time.monotonic() < end:
                if (result := pipeline.newest()) is not None:
                    guard.update(covered_share(result.instances), result.frame.capture_time_ns / 1e9)
                time.sleep(1 / WATCHDOG_HZ)
    except tfiseg.TfisegError as failed:  # a stage failed or the source ended: never drive blind
        guard.fail(str(failed))
        sys.exit(1)
    except KeyboardInterrupt:
        guard.fail("interrupted")
    finally:
        ended.set()
    guard.fail("time is up")


if __name__ == "__main__":
    main()
