"""Decide whether a robot must stop, with hysteresis and a watchdog: `python samples/emergency_stop.py 0`.

Three rules make the decision safe. One frame is enough to stop, but going needs several clear frames in a row
over a minimum time. The distance to go is larger than the distance to stop. The robot also stops if there is
no result for `STALE_MS`.

The danger is the share of the image's lower half that a person covers. With a depth camera, use the distance
of the nearest person instead, as in `nearest_person_m`.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import tfiseg

NEAR, CLEAR = 0.08, 0.04  # share of the lower half: stop above the first, go below the second
STALE_MS = 300  # stop if there is no result for this time
CLEAR_S, CLEAR_RESULTS = 0.5, 5  # minimum time and number of clear results before going
WATCHDOG_HZ = 50


class EmergencyStop:
    """A stop signal that stays on until the way has been clear for some time.

    A thread watches the age of the results.

    Args:
        near: danger at or above which the robot stops; any quantity that grows with the danger.
        clear: danger at or below which the way is clear; lower than ``near``.
        stale_ms: age of the newest result above which the robot stops.
        clear_s: minimum time for which the way must be clear before the robot goes.
        clear_results: minimum number of clear results before the robot goes.
        on_change: called with (stopped, reason) at each change of the signal or of a stop's cause.
        clock: returns the time in seconds.
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
        self._cause = "start"

    def update(self, danger: float, captured_s: float) -> None:
        """Update with the danger and the capture time of a result. NaN stops the robot."""
        with self._lock:
            if self._captured_s is not None and captured_s <= self._captured_s:
                return  # the same result again, or an older one
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
        """Stop if the newest result is old, or go if the way has been clear long enough."""
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
        """Stop for another reason, such as an error, until there are clear results again."""
        with self._lock:
            self._clear_since, self._clear_count = None, 0
            self._set(True, reason, reason)

    def watch(self, stop: threading.Event) -> None:
        """Check regularly until the event is set; run this in its own thread."""
        while not stop.wait(1 / WATCHDOG_HZ):
            self.check()

    def _set(self, stopped: bool, cause: str, reason: str) -> None:
        changed = cause != self._cause
        self.stopped, self._cause = stopped, cause
        if changed:  # the figures in the reason are those of the first result of this cause
            self.reason = reason
            self._on_change(stopped, reason)


def covered_share(instances: tfiseg.Instances) -> float:
    """Return the largest share of the image's lower half that one person covers."""
    lower = instances.label_map[instances.label_map.shape[0] // 2 :]
    people = [i.number for i in instances if i.class_name == "person"]
    return max((float((lower == number).mean()) for number in people), default=0.0)


def nearest_person_m(instances: tfiseg.Instances, depth_map: np.ndarray, intrinsics: np.ndarray) -> float:
    """Return the distance of the nearest person in meters; its negative is the danger.

    Use it with EmergencyStop(-1.0, -1.5). The distance is NaN, which stops the robot, if a person has no
    depth and may be too near for the sensor.
    """
    measured = instances.with_depth(depth_map, intrinsics)
    people = [i for i in measured if i.class_name == "person"]
    return float(np.min([np.linalg.norm(i.nearest_xyz_m) for i in people])) if people else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="0", help='camera index, file, URL or "synthetic"')
    parser.add_argument("--seconds", type=float, default=float("inf"), help="drive this long")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemd and docker stop a program with it
    segmenter = tfiseg.Segmenter(things=["person"])
    try:
        source = tfiseg.open_source(args.source, realtime=True)
    except tfiseg.SourceError as error:
        sys.exit(str(error))
    guard = EmergencyStop(
        NEAR,
        CLEAR,
        on_change=lambda stopped, reason: print(f"{'STOP' if stopped else 'GO'}: {reason}", flush=True),
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
    except tfiseg.TfisegError as error:  # a stage failed or the source ended
        guard.fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        guard.fail("interrupted")
        return
    except Exception as error:  # a bug must not leave the robot driving
        guard.fail(repr(error))
        raise
    finally:
        ended.set()
    guard.fail("time is up")


if __name__ == "__main__":
    main()
