"""Rules of instance heads: the mean of several fits."""

import numpy as np
import pytest

pytest.importorskip("torch")
from tfiseg.export.frame import rule_fitting
from tfiseg.export.instance.rule_fitting import average_rules, count_ratio
from tfiseg.plugins.neck import EVIDENCE_FEATURES

FEATURES = len(EVIDENCE_FEATURES)


def logit(rule, x):
    """Return a rule's logits for pairs (n, F), computed independently."""
    hidden = len(rule) // (FEATURES + 2)
    weight, bias, out, last = np.split(rule, np.cumsum([hidden * FEATURES, hidden, hidden]))
    return np.maximum(x @ weight.reshape(hidden, FEATURES).T + bias, 0) @ out + last


def components(rng, count=60, pairs=5):
    """Return pairs that are one object if the mean affinity is high, half of them of single objects."""
    found = []
    for k in range(count):
        x = rng.normal(0, 1, (pairs, FEATURES)).astype(np.float32)
        same = np.ones(pairs) if k % 2 else (x[:, EVIDENCE_FEATURES.index("mean affinity")] > 0).astype(float)
        found.append(((x, same, np.ones(pairs)), bool(k % 2)))
    return found


def test_average_rule_gives_the_mean_output():
    rng = np.random.default_rng(0)
    rules = [rng.normal(0, 1, hidden * (FEATURES + 2) + 1).astype(np.float32) for hidden in (3, 12, 5)]
    x = rng.normal(0, 1, (20, FEATURES))
    expected = np.mean([logit(rule, x) for rule in rules], axis=0)
    np.testing.assert_allclose(logit(average_rules(rules), x), expected, rtol=1e-4, atol=1e-4)


def test_count_ratio_is_smoothed():
    assert count_ratio([((None,) * 3, True)] * 9 + [((None,) * 3, False)] * 4) == pytest.approx(10 / 5)
    assert count_ratio([]) == 1


def test_each_member_is_fitted_on_a_subset_of_the_components(monkeypatch):
    samples, calls = components(np.random.default_rng(1)), []
    fit_rule = rule_fitting.fit_rule

    def fit(subset, seed, members):
        calls.append((len(subset), seed, members))
        return fit_rule(subset, seed, members)

    monkeypatch.setattr(rule_fitting, "fit_rule", fit)
    fit_of_all = rule_fitting._fit_bagged_rule(samples, 2.0, seed=5)
    assert [(seed, members) for _, seed, members in calls] == [(5, 1), (6, 1), (7, 1), (8, 1)]
    assert len({count for count, _, _ in calls}) > 1
    assert all(0.4 * len(samples) < count < 0.9 * len(samples) for count, _, _ in calls)
    assert fit_of_all.pairs == 5 * len(samples)
    assert len(fit_of_all.rule) == 48 * (FEATURES + 2) + 1  # the maximum in a model file


def test_heavier_single_objects_make_the_rule_merge_more():
    samples = components(np.random.default_rng(2))
    x = np.random.default_rng(3).normal(0, 1, (200, FEATURES))
    light, heavy = (
        logit(rule_fitting._fit_bagged_rule(samples, weight, 0).rule, x).mean() for weight in (0.5, 20.0)
    )
    assert heavy > light
