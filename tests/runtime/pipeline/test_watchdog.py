"""Test sinks and sources that never return: waits are bounded and reported."""

import threading
import time

import numpy as np
import pytest
import tfiseg
from tfiseg.errors import InputError, PipelineError
from tfiseg.runtime.pipeline import pipeline as pipeline_module
from tfiseg.runtime.pipeline import watchdog
from tfiseg.runtime.sources.base import Frame, Source

EMPTY = tfiseg.cluster(np.zeros((8, 8), np.uint8))


class Pictures(Source):
    fps = 30.0

    def __init__(self, count=5, blocks_at=None, live=False):
        super().__init__("pictures")
        self.count, self.blocks_at, self.is_live = count, blocks_at, live
        self.release = threading.Event()

    def _read(self, index):
        if index == self.blocks_at:
            self.release.wait(60)
        time.sleep(0.01 * self.is_live)
        return (
            None if index >= self.count else Frame(np.zeros((8, 8, 3), np.uint8), index, time.monotonic_ns())
        )


class Stuck:
    """A sink that does not return before ``release``."""

    name = "stuck"
    timeout_s = 0.3

    def __init__(self, **attributes):
        self.release, self.reasons = threading.Event(), []
        self.__dict__.update(attributes)

    def write(self, result):
        self.release.wait(60)


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(watchdog, "_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(pipeline_module, "_STOP_SECONDS", 0.5)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_stuck_sink_fails_the_pipeline(count):
    sink = Stuck()
    began = time.monotonic()
    with (
        pytest.raises(PipelineError, match=r"stuck: it did not return for 0\.3 s"),
        tfiseg.Pipeline(Pictures(count), lambda frame: EMPTY, sinks=[sink]) as pipeline,
    ):
        list(pipeline)
    assert time.monotonic() - began < 10
    sink.release.set()


def test_a_stuck_sink_with_give_up_is_abandoned(caplog):
    sink = Stuck()
    sink.give_up = sink.reasons.append
    with tfiseg.Pipeline(Pictures(30), lambda frame: EMPTY, sinks=[sink]) as pipeline:
        assert len(list(pipeline)) == 30
    assert sink.reasons == ["it did not return for 0.3 s"]
    assert "sink stuck did not return within 0.5 s; its thread is abandoned" in caplog.text
    sink.release.set()


def test_a_slow_sink_is_not_stuck():
    class Slow:
        name, timeout_s = "slow", 5

        def write(self, result):
            time.sleep(0.05)

    with tfiseg.Pipeline(Pictures(10), lambda frame: EMPTY, sinks=[Slow()]) as pipeline:
        assert len(list(pipeline)) == 10
    assert pipeline.stats()["sinks"]["slow"]["written"] == 10


def test_a_silent_source_is_named_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "SOURCE_SECONDS", 0.2)
    source = Pictures(5, blocks_at=2, live=True)
    with tfiseg.Pipeline(source, lambda frame: EMPTY) as pipeline:
        until = time.monotonic() + 20
        while "has given no frame" not in caplog.text:
            pipeline.newest()
            assert time.monotonic() < until
            time.sleep(0.02)
        began = time.monotonic()
    assert time.monotonic() - began < 5  # closing does not wait for the source
    assert "pictures has given no frame for 0 s; waiting for it" in caplog.text
    assert "reading pictures did not return within 0.5 s" in caplog.text
    source.release.set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 100_000}, "workers must be an integer in 1..64, got 100000"),
        ({"workers": 2.5}, "workers must be"),
        ({"workers": "2"}, "workers must be"),
        ({"workers": True}, "workers must be"),
        ({"max_frames": 1.5}, "max_frames must be"),
        ({"max_frames": "3"}, "max_frames must be"),
        ({"nth": "2"}, "nth must be"),
        ({"sinks": 5}, "sinks must be"),
        ({"sinks": [5]}, "sinks must be"),
        ({"tracker": 5}, "tracker must be callable"),
        ({"policy": 5}, "policy must be one of"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        tfiseg.Pipeline(Pictures(), lambda frame: EMPTY, **options)


def test_a_closed_segmenter_refuses_frames():
    segmenter = tfiseg.Segmenter(quality="fast")
    segmenter.close()
    segmenter.close()
    with pytest.raises(InputError, match="this segmenter is closed"):
        segmenter(np.zeros((48, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tfiseg.Pipeline(Arrays(), lambda frame: EMPTY),
            "capture: arrays gave ndarray, expected tfiseg.Frame",
        ),
        (lambda: tfiseg.Pipeline(Pictures(), lambda frame: None), "segment: the segmenter returned NoneType"),
        (
            lambda: tfiseg.Pipeline(Pictures(), lambda frame: EMPTY, tracker=lambda found: 5),
            "track: the tracker returned int",
        ),
    ],
)
def test_return_values_of_user_functions_are_checked(make, message):
    with pytest.raises(PipelineError, match=message), make() as pipeline:
        list(pipeline)
    stats = pipeline.stats()
    assert stats["captured"] == stats["dropped"] + stats["skipped"] + stats["finished"] + stats["discarded"]


class Arrays(Source):
    def __init__(self):
        super().__init__("arrays")

    def _read(self, index):
        return np.zeros((8, 8, 3), np.uint8)
