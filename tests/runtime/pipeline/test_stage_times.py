import math

import numpy as np
import pytest
from tfiseg.runtime.pipeline.stage_times import StageTimes, TimeHistogram


def test_quantiles_are_exact_within_one_percent():
    times, histogram = np.random.default_rng(0).lognormal(1, 2, 5000), TimeHistogram()
    for ms in times:
        histogram.add(ms)
    for share in (0.01, 0.5, 0.99):
        assert histogram.quantile(share) == pytest.approx(
            np.quantile(times, share, method="inverted_cdf"), rel=0.011
        )


@pytest.mark.parametrize(("ms", "lowest", "highest"), [(0, 0, 0.0011), (1e12, 1e7, math.inf)])
def test_times_out_of_range_are_clipped(ms, lowest, highest):
    histogram = TimeHistogram()
    histogram.add(ms)
    assert lowest < histogram.quantile(0.5) < highest


def test_quantile_without_times_is_nan():
    assert math.isnan(TimeHistogram().quantile(0.5))


def test_summary():
    times = StageTimes()
    times.add({"network": 10.0}, 2)
    times.add({"network": 10.0, "draw": 1.0}, 3)
    summary = times.summary()
    assert (summary["frames"], summary["instances"]) == (2, 5)
    assert summary["stages"]["network"]["p50_ms"] == pytest.approx(10, rel=0.01)
    assert set(summary["stages"]) == {"network", "draw"}
