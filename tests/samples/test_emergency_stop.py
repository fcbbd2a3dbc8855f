"""Test samples/emergency_stop.py: it stops at once, goes after clear results, and stops without results."""

import importlib.util
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tfiseg

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "emergency_stop.py"


@pytest.fixture(scope="module")
def sample():
    spec = importlib.util.spec_from_file_location("emergency_stop", SAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(sample, clock):
    return sample.EmergencyStop(0.5, 0.2, stale_ms=300, clear_s=0.5, clear_results=5, clock=clock)


def feed(guard, clock, dangers, step_s=0.125):
    """Update with one result per step; return whether the robot is stopped after each."""
    stopped = []
    for danger in dangers:
        clock.now += step_s
        guard.update(danger, clock.now)
        stopped.append(guard.stopped)
    return stopped


def test_it_starts_stopped_and_goes_after_clear_results(guard, clock):
    assert guard.stopped
    guard.check()
    assert guard.stopped, "there is no result yet"
    # the fifth result is 0.5 s after the first
    assert feed(guard, clock, [0.1] * 7) == [True] * 4 + [False] * 3


@pytest.mark.parametrize("danger", [0.5, 0.9, np.inf, np.nan])
def test_one_dangerous_result_stops(guard, clock, danger):
    feed(guard, clock, [0] * 7)
    assert feed(guard, clock, [danger]) == [True]


def test_danger_between_the_limits_changes_nothing(guard, clock):
    assert feed(guard, clock, [0.3] * 30) == [True] * 30, "not clear enough to start"
    feed(guard, clock, [0] * 7)
    assert feed(guard, clock, [0.3, 0.49, 0.21] * 10) == [False] * 30, "not near enough to stop"
    assert feed(guard, clock, [0.6]) == [True]


def test_danger_around_a_limit_does_not_toggle_the_stop(guard, clock):
    feed(guard, clock, [0] * 7)
    assert feed(guard, clock, [0.51, 0.49] * 20) == [True] * 40
    assert feed(guard, clock, [0.19, 0.21] * 20) == [True] * 40, "clear results must follow one another"


def test_many_results_in_a_short_time_are_not_enough(guard, clock):
    assert feed(guard, clock, [0] * 20, step_s=0.02) == [True] * 20, "20 results within 0.4 s"
    assert feed(guard, clock, [0] * 20, step_s=0.02)[-1] is False


def test_no_result_is_a_stop(guard, clock):
    feed(guard, clock, [0] * 7)
    clock.now += 0.299
    guard.check()
    assert not guard.stopped
    clock.now += 0.002
    guard.check()
    assert guard.stopped
    assert guard.reason == "no result for 301 ms"
    assert feed(guard, clock, [0] * 4) == [True] * 4, "clear results count from the start again"


def test_the_reason_of_a_stop_follows_its_cause(sample, clock):
    """A person is in the way from the first frame on."""
    reasons = []
    guard = sample.EmergencyStop(0.5, 0.2, on_change=lambda stopped, why: reasons.append(why), clock=clock)
    feed(guard, clock, [0.7, 0.8, 0.9])
    assert guard.reason == "danger 0.7 reaches 0.5"
    clock.now += 1
    guard.check()
    feed(guard, clock, [0.6])
    assert reasons == ["danger 0.7 reaches 0.5", "no result for 1000 ms", "danger 0.6 reaches 0.5"]


def test_a_repeated_result_is_no_result(guard, clock):
    feed(guard, clock, [0] * 7)
    captured = clock.now
    for _ in range(20):
        clock.now += 0.02
        guard.update(0, captured)
        guard.check()
    assert guard.stopped


def test_old_results_do_not_count_as_clear(guard, clock):
    for _ in range(20):
        clock.now += 0.1
        guard.update(0, clock.now - 0.4)
    assert guard.stopped
    assert guard.reason == "no result for 400 ms", "not that there is none yet"


def test_an_error_stops_until_the_way_is_clear_again(guard, clock):
    feed(guard, clock, [0] * 7)
    guard.fail("camera lost")
    assert guard.stopped
    assert guard.reason == "camera lost"
    assert feed(guard, clock, [0] * 7) == [True] * 4 + [False] * 3


def test_limits_without_hysteresis_are_refused(sample):
    with pytest.raises(ValueError, match="clear must be below near"):
        sample.EmergencyStop(0.5, 0.5)


def test_the_watchdog_stops_while_the_network_hangs(sample):
    changes = []
    guard = sample.EmergencyStop(
        0.5, 0.2, 150, 0.0, 1, on_change=lambda stopped, reason: changes.append((stopped, time.monotonic()))
    )
    ended = threading.Event()
    thread = threading.Thread(target=guard.watch, args=[ended])
    thread.start()
    captured = time.monotonic()
    guard.update(0, captured)
    time.sleep(0.6)  # a network that hangs, so that nothing calls update
    ended.set()
    thread.join()
    assert [stopped for stopped, _ in changes] == [False, True]
    assert 0.15 < changes[1][1] - captured < 0.5


def test_nearest_person(sample):
    class_map = np.zeros((60, 100), np.uint8)
    class_map[10:30, 10:30], class_map[10:30, 60:80] = 15, 7
    names = [f"class {i}" for i in range(15)] + ["person"]
    found = tfiseg.cluster(class_map, class_names=names)
    depth, camera = np.full((60, 100), 2, np.float32), (100, 100, 20, 20)
    depth[:, 50:] = 1  # the nearer object is no person
    assert sample.nearest_person_m(found, depth, camera) == pytest.approx(2, abs=0.02)
    assert sample.nearest_person_m(found[found.class_id == 7], depth, camera) == np.inf
    depth[:] = 0
    assert np.isnan(sample.nearest_person_m(found, depth, camera))
    assert sample.covered_share(found) == 0, "nobody is in the lower half"


def test_the_program_runs_and_ends_stopped(tmp_path):
    done = subprocess.run(
        [sys.executable, SAMPLE, "synthetic", "--seconds", "4"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "STOP: no result yet"
    assert lines[-1] == "STOP: time is up" or lines[-1].startswith("STOP: "), lines
