"""Test pipelines of a user's own source: frames without index or capture time, or with a wrong one."""

import re
import time

import numpy as np
import pytest
import tfiseg

IMAGE = np.zeros((4, 6, 3), np.uint8)
EMPTY = tfiseg.cluster(np.zeros((4, 6), np.uint8))


class Camera(tfiseg.Source):
    """``count`` frames with these fields."""

    is_live = True

    def __init__(self, count=7, **fields):
        self.count, self.fields = count, fields

    def _read(self, index):
        fields = {name: value() for name, value in self.fields.items()}
        return None if index == self.count else tfiseg.Frame(IMAGE, **fields)


def results_of(source, **options):
    with tfiseg.Pipeline(source, lambda frame: EMPTY, **{"policy": "all", **options}) as pipeline:
        return list(pipeline)


def test_frames_without_index_are_counted():
    assert [r.frame.index for r in results_of(Camera())] == [0, 1, 2, 3, 4, 5, 6]
    assert [r.instances.frame_index for r in results_of(Camera(), policy="every_nth", nth=3)] == [0, 3, 6]


def test_frames_without_capture_time_are_as_old_as_their_reading():
    began = time.monotonic_ns()
    times = [r.frame.capture_time_ns for r in results_of(Camera())]
    assert times == sorted(times)
    assert began < times[0] <= times[-1] < time.monotonic_ns()
    assert all(0 <= r.age_ms < 5000 for r in results_of(Camera()))


def test_given_capture_times_stay():
    stamp = time.monotonic_ns() - 250_000_000
    (result,) = results_of(Camera(1, capture_time_ns=lambda: stamp))
    assert result.frame.capture_time_ns == result.instances.capture_time_ns == stamp
    assert result.age_ms > 250


@pytest.mark.parametrize("clock", [time.time_ns, lambda: time.monotonic_ns() + 500_000_000])
def test_a_capture_time_in_the_future_is_an_error(clock):
    # the age would be negative: a robot that stops above 300 ms would never stop
    with pytest.raises(
        tfiseg.PipelineError, match=r"capture: source gave .* in the future.*time.monotonic_ns"
    ) as raised:
        results_of(Camera(capture_time_ns=clock))
    assert isinstance(raised.value.__cause__, tfiseg.SourceError)


def test_a_clock_that_is_slightly_ahead_is_used():
    (result,) = results_of(Camera(1, capture_time_ns=lambda: time.monotonic_ns() + 50_000_000))
    assert result.age_ms < 5000


def test_a_source_without_read_is_named():
    with pytest.raises(tfiseg.PipelineError, match="Empty must implement _read"):
        results_of(type("Empty", (tfiseg.Source,), {})("empty"))


def test_frames_and_results_are_printed_in_one_line():
    frame = tfiseg.Frame(IMAGE, 3, time.monotonic_ns(), "frame-000003")
    assert repr(frame) == "<Frame 3 'frame-000003': 6x4 pixels>"
    assert re.fullmatch(
        r"<Result: <Frame 3 'frame-000003': 6x4 pixels>, <Instances: none in 6x4 pixels>, \d+ ms old>",
        repr(tfiseg.Result(frame, EMPTY)),
    )


def test_frames_are_compared_as_objects():
    # arrays have no single truth value, so that a comparison raised
    frame, other = tfiseg.Frame(IMAGE), tfiseg.Frame(IMAGE.copy())
    assert frame == frame
    assert frame != other
    assert len({frame, other}) == 2
    assert [other, frame].index(frame) == 1
