"""Rules of instance heads: the mean of several fits."""

import numpy as np
import pytest

pytest.importorskip("torch")
from tfiseg.export.frame import rule_fitting
from tfiseg.export.instance.rule_fitting import averaged, lone_odds_of
from tfiseg.plugins.neck import EVIDENCE_FEATURES

FEATURES = len(EVIDENCE_FEATURES)


def logit(rule, x):
    """What a rule says of pairs (n, F), written out."""
    hidden = len(rule) // (FEATURES + 2)
    weight, bias, out, last = np.split(rule, np.cumsum([hidden * FEATURES, hidden, hidden]))
    return np.maximum(x @ weight.reshape(hidden, FEATURES).T + bias, 0) @ out + last


def components(rng, count=60, pairs=5):
    """Pairs that are one object where the mean affinity is high; half of the components are lone objects."""
    found = []
    for k in range(count):
        x = rng.normal(0, 1, (pairs, FEATURES)).astype(np.float32)
        same = np.ones(pairs) if k % 2 else (x[:, EVIDENCE_FEATURES.index("mean affinity")] > 0).astype(float)
        found.append(((x, same, np.ones(pairs)), bool(k % 2)))
    return found


def test_the_mean_of_rules_says_the_mean_of_what_they_say():
    rng = np.random.default_rng(0)
    rules = [rng.normal(0, 1, hidden * (FEATURES + 2) + 1).astype(np.float32) for hidden in (3, 12, 5)]
    x = rng.normal(0, 1, (20, FEATURES))
    expected = np.mean([logit(rule, x) for rule in rules], axis=0)
    np.testing.assert_allclose(logit(averaged(rules), x), expected, rtol=1e-4, atol=1e-4)


def test_lone_odds_are_smoothed():
    assert lone_odds_of([((None,) * 3, True)] * 9 + [((None,) * 3, False)] * 4) == pytest.approx(10 / 5)
    assert lone_odds_of([]) == 1


def test_each_member_sees_a_part_of_the_components(monkeypatch):
    its, seen = components(np.random.default_rng(1)), []
    fit_rule = rule_fitting.fit_rule

    def fit(samples, seed, members):
        seen.append((len(samples), seed, members))
        return fit_rule(samples, seed, members)

    monkeypatch.setattr(rule_fitting, "fit_rule", fit)
    fit_of_all = rule_fitting._bagged(its, 2.0, seed=5)
    assert [(seed, members) for _, seed, members in seen] == [(5, 1), (6, 1), (7, 1), (8, 1)]
    assert len({count for count, _, _ in seen}) > 1
    assert all(0.4 * len(its) < count < 0.9 * len(its) for count, _, _ in seen)
    assert fit_of_all.pairs == 5 * len(its)
    assert len(fit_of_all.rule) == 48 * (FEATURES + 2) + 1  # what a model file may hold


def test_a_heavier_lone_object_makes_the_rule_rather_merge():
    its = components(np.random.default_rng(2))
    x = np.random.default_rng(3).normal(0, 1, (200, FEATURES))
    light, heavy = (logit(rule_fitting._bagged(its, weight, 0).rule, x).mean() for weight in (0.5, 20.0))
    assert heavy > light
