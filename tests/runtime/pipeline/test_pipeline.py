"""Test the order of results, policies, errors and closing of pipelines."""

import asyncio
import threading
import time

import numpy as np
import pytest
import tfiseg
from tfiseg.runtime.sources.realtime import Realtime
from waiting import wait_until

EMPTY = tfiseg.cluster(np.zeros((4, 6), np.uint8))


class Numbers(tfiseg.Source):
    """A source of ``count`` frames that can fail at a frame, or be live with a frame rate."""

    def __init__(self, count=10, fails_at=None, fps=None, live=False):
        super().__init__("numbers")
        self.count, self.fails_at, self.fps, self.is_live, self.closed = count, fails_at, fps, live, 0

    def _read(self, index):
        if index == self.fails_at:
            raise tfiseg.SourceError("the cable is out")
        if self.fps:
            time.sleep(1 / self.fps)
        return (
            None
            if index == self.count
            else tfiseg.Frame(np.zeros((4, 6, 3), np.uint8), index, time.monotonic_ns())
        )

    def close(self):
        self.closed += 1


def slowly(ms, at=None):
    def segment(frame):
        time.sleep(ms / 1e3)
        if frame.index == at:
            raise ValueError("out of memory")
        return EMPTY

    return segment


class ResultList:
    def __init__(self, ms=0, fails_at=None):
        self.results, self.ms, self.fails_at = [], ms, fails_at

    def write(self, result):
        time.sleep(self.ms / 1e3)
        if result.frame.index == self.fails_at:
            raise tfiseg.OutputError("the disk is full")
        self.results.append(result)


def poll(pipeline):
    for _ in range(200):
        pipeline.newest()
        time.sleep(0.01)


def indices(results):
    return [r.frame.index for r in results]


def counts_add_up(stats):
    return stats["captured"] == stats["dropped"] + stats["skipped"] + stats["finished"] + stats["discarded"]


@pytest.mark.parametrize("workers", [1, 3])
def test_all_frames_in_order_through_all_stages(workers):
    sink = ResultList()
    with tfiseg.Pipeline(Numbers(30), slowly(1), workers=workers, draw=True, sinks=[sink]) as pipeline:
        results = list(pipeline)
    assert indices(results) == indices(sink.results) == list(range(30))
    assert all(r.overlay.shape == (4, 6, 3) and r.instances.frame_index == r.frame.index for r in results)
    assert {"segment", "draw"} <= set(results[0].instances.stage_ms)
    stats = pipeline.stats()
    assert "ResultList" in stats["times"]["stages"]
    assert stats["sinks"] == {"ResultList": {"written": 30, "dropped": 0}}
    assert (stats["captured"], stats["finished"], stats["given"], stats["dropped"], stats["queued"]) == (
        30,
        30,
        30,
        0,
        0,
    )


def test_stages_overlap():
    began = time.perf_counter()
    sinks = [ResultList(50), ResultList(50)]
    with tfiseg.Pipeline(Numbers(20), slowly(50), sinks=sinks) as pipeline:
        list(pipeline)
    busy_ms = sum(sum(r.instances.stage_ms.values()) for r in sinks[0].results)  # of the first stage
    elapsed_ms = 1e3 * (time.perf_counter() - began)
    assert elapsed_ms < 0.6 * 3 * max(busy_ms, 20 * 50)


def test_parallel_workers_keep_the_order_of_frames():
    def segment(frame):
        time.sleep(0.05 if frame.index == 0 else 0.005)
        return EMPTY

    with tfiseg.Pipeline(Numbers(12), segment, workers=4) as pipeline:
        assert indices(pipeline) == list(range(12))


def test_policy_latest_drops_older_frames():
    with tfiseg.Pipeline(Numbers(60, fps=200, live=True), slowly(20)) as pipeline:
        assert pipeline.policy == "latest"
        results = [(r, r.age_ms) for r in pipeline]
    stats = pipeline.stats()
    assert 8 <= len(results) <= 40
    assert stats["captured"] == 60
    assert stats["dropped"] == 60 - stats["finished"]
    assert sorted(age for _, age in results)[len(results) // 2] < 2 * 20
    assert results[-1][0].frame.index == 59


def test_a_slow_caller_gets_the_newest_result():
    with tfiseg.Pipeline(Numbers(40, fps=200, live=True), slowly(1)) as pipeline:
        stream = iter(pipeline)
        next(stream)
        wait_until(lambda: pipeline.stats()["finished"] >= 12, 30)
        late = next(stream)
        assert late.frame.index > 8
        list(stream)
    stats = pipeline.stats()
    assert stats["dropped_results"] + stats["given"] == stats["finished"]


def test_every_nth():
    with tfiseg.Pipeline(Numbers(10), slowly(1), policy="every_nth", nth=3) as pipeline:
        assert indices(pipeline) == [0, 3, 6, 9]
    assert pipeline.stats()["skipped"] == 6


def test_max_frames_counts_source_frames():
    with tfiseg.Pipeline(Numbers(10), slowly(0), policy="every_nth", nth=2, max_frames=5) as pipeline:
        assert indices(pipeline) == [0, 2, 4]


@pytest.mark.parametrize(
    ("source", "segmenter", "sink", "stage", "cause", "before"),
    [
        (Numbers(10, fails_at=4), slowly(1), ResultList(), "capture", tfiseg.SourceError, 4),
        (Numbers(10), slowly(1, at=3), ResultList(), "segment", ValueError, 3),
        (Numbers(10), slowly(1), ResultList(fails_at=5), "ResultList", tfiseg.OutputError, 5),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_with_its_stage_follows_the_finished_results(
    source, segmenter, sink, stage, cause, before, workers
):
    sink.results = []
    with tfiseg.Pipeline(source, segmenter, workers=workers, draw=True, sinks=[sink]) as pipeline:
        results = []
        with pytest.raises(tfiseg.PipelineError, match=f"^{stage}: ") as raised:
            results.extend(r for r in pipeline if results.append(r))
    assert raised.value.stage == stage
    assert isinstance(raised.value.__cause__, cause)
    # a sink runs after the other stages, which may finish a few more frames before it fails
    assert indices(results) == list(range(len(results)))
    assert len(results) == before if stage != "ResultList" else before <= len(results) <= before + 4
    assert counts_add_up(pipeline.stats())


def test_closing_from_another_thread_ends_the_loop():
    pipeline = tfiseg.Pipeline(Numbers(10**6), slowly(1))
    threading.Timer(0.05, pipeline.close).start()
    found = indices(pipeline)
    assert len(found) > 5
    assert found == list(range(len(found)))
    pipeline.close()
    assert counts_add_up(pipeline.stats())
    assert not [t for t in threading.enumerate() if t.name.startswith("tfiseg-")]


def test_leaving_the_block_closes_the_source_only_if_the_pipeline_opened_it(monkeypatch):
    own = Numbers(10**6)
    with tfiseg.Pipeline(own, slowly(1)) as pipeline:
        next(iter(pipeline))
    assert own.closed == 0
    opened = Numbers(10**6)
    monkeypatch.setattr("tfiseg.runtime.pipeline.pipeline.open_source", lambda name: opened)
    with tfiseg.Pipeline("any", slowly(1)) as pipeline:
        next(iter(pipeline))
    pipeline.close()
    assert opened.closed == 1
    with pytest.raises(tfiseg.InputError, match="is closed"):
        pipeline.start()


def test_newest_returns_at_once():
    with tfiseg.Pipeline(Numbers(20, fps=100, live=True), slowly(2)) as pipeline:
        assert pipeline.newest() is None
        time.sleep(0.1)
        first = pipeline.newest()
        time.sleep(0.05)
        assert pipeline.newest().frame.index > first.frame.index
        assert 0 < pipeline.newest().age_ms < 500
        with pytest.raises(tfiseg.SourceError, match="numbers has ended"):
            poll(pipeline)


def test_newest_raises_the_error_of_a_stage():
    with (
        tfiseg.Pipeline(Numbers(20, live=True, fps=100), slowly(2, at=2)) as pipeline,
        pytest.raises(tfiseg.PipelineError, match="segment"),
    ):
        poll(pipeline)


def test_newest_needs_policy_latest():
    with pytest.raises(tfiseg.InputError, match="latest"):
        tfiseg.Pipeline(Numbers(), slowly(1)).newest()


def test_a_paused_live_source_skips_frames():
    with tfiseg.Pipeline(Numbers(40, fps=200, live=True), slowly(1)) as pipeline:
        pipeline.start()
        pipeline.pause()
        time.sleep(0.1)
        assert pipeline.paused
        pipeline.resume()
        list(pipeline)
    assert pipeline.stats()["skipped"] >= 5
    assert counts_add_up(pipeline.stats())


def test_a_paused_file_waits():
    with tfiseg.Pipeline(Numbers(10), slowly(0)) as pipeline:
        pipeline.pause()
        pipeline.start()
        threading.Timer(0.05, pipeline.resume).start()
        assert indices(pipeline) == list(range(10))


def test_async_for():
    async def main():
        with tfiseg.Pipeline(Numbers(20), slowly(1)) as pipeline:
            return [r.frame.index async for r in pipeline]

    assert asyncio.run(main()) == list(range(20))


def test_async_for_raises_and_does_not_block_the_loop():
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        other = asyncio.create_task(tick())
        with (
            tfiseg.Pipeline(Numbers(20), slowly(5, at=15)) as pipeline,
            pytest.raises(tfiseg.PipelineError, match="out of memory"),
        ):
            async for _ in pipeline:
                pass
        other.cancel()
        return ticks

    assert asyncio.run(main()) >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "newest"}, "policy must be"),
        ({"nth": 2}, "every_nth"),
        ({"workers": 0}, "workers"),
        ({"max_frames": 0}, "at least 1"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(tfiseg.InputError, match=message):
        tfiseg.Pipeline(Numbers(), slowly(0), **options)


def test_a_real_network_on_a_source_in_real_time():
    segmenter = tfiseg.Segmenter()
    with tfiseg.Pipeline(
        Realtime(tfiseg.open_source("synthetic"), fps=60), segmenter, max_frames=20, draw=True
    ) as pipeline:
        results = list(pipeline)
    assert results
    assert results[-1].frame.index == 19
    assert {"network", "cluster", "draw"} <= set(pipeline.stats()["times"]["stages"])
    assert "segment" not in pipeline.stats()["times"]["stages"]


@pytest.mark.parametrize("bad", [None, "instances"])
@pytest.mark.parametrize("policy", ["all", "latest"])
def test_an_invalid_result_is_an_error_with_its_stage(bad, policy):
    with (
        tfiseg.Pipeline(Numbers(10), slowly(1), policy=policy, tracker=lambda found: bad) as pipeline,
        pytest.raises(tfiseg.PipelineError, match=r"^track: "),
    ):
        list(pipeline)
    assert counts_add_up(pipeline.stats())


def test_a_slow_sink_delays_nothing():
    slow = ResultList(100)
    with tfiseg.Pipeline(Numbers(80, fps=100, live=True), slowly(10), sinks=[slow], draw=True) as pipeline:
        ages = [r.age_ms for r in pipeline]
    assert sorted(ages)[len(ages) // 2] < 60
    sinks = pipeline.stats()["sinks"]["ResultList"]
    assert sinks["written"] == len(slow.results) < 20
    assert sinks["written"] + sinks["dropped"] == pipeline.stats()["finished"]


def test_a_slow_stage_limits_the_frames_in_progress():
    def slow_tracker(found):
        time.sleep(0.05)
        return found

    with tfiseg.Pipeline(
        Numbers(60, fps=100, live=True), slowly(5), tracker=slow_tracker, draw=True
    ) as pipeline:
        ages = [r.age_ms for r in pipeline]
    assert sorted(ages)[len(ages) // 2] < 2 * 50 + 40


def test_a_sink_with_takes_all_gets_every_result():
    sink = ResultList(5)
    sink.takes_all = True
    with tfiseg.Pipeline(Numbers(40, fps=200, live=True), slowly(1), sinks=[sink]) as pipeline:
        list(pipeline)
    assert len(sink.results) == pipeline.stats()["finished"]


def test_finished_results_are_written_on_close():
    sink = ResultList(20)
    sink.backlog = 5
    with tfiseg.Pipeline(Numbers(1000), slowly(1), sinks=[sink]) as pipeline:
        stream = iter(pipeline)
        for _ in range(10):
            next(stream)
    assert len(sink.results) == pipeline.stats()["sinks"]["ResultList"]["written"] >= 10


def test_sinks_of_one_name_are_numbered():
    with tfiseg.Pipeline(Numbers(5), slowly(0), sinks=[ResultList(), ResultList()]) as pipeline:
        list(pipeline)
    assert set(pipeline.stats()["sinks"]) == {"ResultList-1", "ResultList-2"}


def test_a_file_is_tracked_by_media_time():
    stamps = []

    def tracker(found):
        stamps.append(found.capture_time_ns)
        return found

    source = Numbers(6)
    source.fps = None
    with tfiseg.Pipeline(source, slowly(0), tracker=tracker, workers=3) as pipeline:
        results = list(pipeline)
    assert np.allclose(np.diff(stamps), 1e9 / 30, atol=1)
    assert [r.instances.capture_time_ns for r in results] == [r.frame.capture_time_ns for r in results]


def test_the_traceback_of_a_repeated_error_does_not_grow():
    with tfiseg.Pipeline(Numbers(5, live=True, fps=100), slowly(1, at=0)) as pipeline:
        with pytest.raises(tfiseg.PipelineError):
            poll(pipeline)
        depths = set()
        for _ in range(5):
            with pytest.raises(tfiseg.PipelineError) as again:
                pipeline.newest()
            depths.add(len(again.traceback))
        assert len(depths) == 1
