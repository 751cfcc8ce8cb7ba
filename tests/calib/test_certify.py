import numpy as np
import pytest
from scipy.stats import binom

from cascade_calib.certify import certify
from cascade_runtime.errors import ConfigError, DataError


def honest(n, seed=0, exits=None):
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.5, 1, n if exits is None else (n, exits))
    return c, rng.random(c.shape) > c, rng.random(n) < 0.4


PATH = np.linspace(0.95, 0.5, 40)


def test_the_last_vector_before_the_first_failure_is_kept():
    score, wrong, _ = honest(2000)
    result = certify(score, wrong, PATH, "0.1", "0.1")
    k = np.array([(score >= t).sum() for t in PATH])
    e = np.array([(wrong & (score >= t)).sum() for t in PATH])
    first_failure = np.flatnonzero(binom.cdf(e, k, 0.1) > 0.1)[0]
    assert result.status == "CERTIFIED"
    assert result.thresholds == {"tau": PATH[first_failure - 1]}
    assert (result.accepted, result.errors) == (k[first_failure - 1], e[first_failure - 1])
    assert result.errors / result.accepted < result.risk_upper <= 0.1
    assert result.coverage_lower < result.coverage == result.accepted / 2000
    assert "at most 10 % are wrong, with 90 % confidence" in result.promise


def test_a_cascade_counts_the_first_exit_that_answers():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.3], [np.nan, 0.9]])
    wrong = np.array([[0, 1], [1, 0], [1, 1], [1, 1]])
    result = certify(np.tile(scores, (30, 1)), np.tile(wrong, (30, 1)), [[0.5, 0.5]], "0.5", "0.05")
    assert result.thresholds == {"tau_0": 0.5, "tau_1": 0.5}
    assert (result.n, result.accepted, result.errors) == (120, 90, 30)


def test_an_fnr_promise_is_tested_as_well_and_narrows_what_passes():
    score, wrong, positive = honest(4000)
    alone = certify(score, wrong, PATH, "0.2", "0.1")
    both = certify(score, wrong, PATH, "0.2", "0.1", positive=positive, fnr="0.1")
    acted = score >= both.thresholds["tau"]
    missed, found = int((acted & wrong & positive).sum()), int((acted & positive).sum())
    assert binom.cdf(missed, found, 0.1) <= 0.05  # half of delta
    assert both.accepted < alone.accepted
    assert "of the positives among them at most 10 % are missed" in both.promise


def test_a_floor_that_the_proof_does_not_reach_is_infeasible_with_the_numbers():
    score, wrong, _ = honest(2000)
    result = certify(score, wrong, PATH, "0.1", "0.1", coverage="0.9")
    assert (result.status, result.thresholds, result.accepted) == ("INFEASIBLE", {}, 0)
    assert "1800 were asked for" in result.advice


def test_too_few_images_and_too_many_errors_say_different_things():
    score, wrong, _ = honest(40)
    few = certify(score, np.zeros(40), PATH, "0.01", "0.05")
    assert "a proof takes 299 even without an error" in few.advice
    bad = certify(np.ones(2000), np.tile([0, 1], 1000), [0.5], "0.1", "0.05")
    assert "an alpha of 0.52" in bad.advice
    assert "path is empty" in certify(score, wrong, [], "0.1", "0.1").advice


def test_many_images_are_counted_in_parts_without_losing_any(monkeypatch):
    score, wrong, positive = honest(500, exits=2)
    path = np.stack([PATH, PATH], axis=1)
    whole = certify(score, wrong, path, "0.3", "0.1", positive=positive, fnr="0.4")
    monkeypatch.setattr("cascade_calib.certify._CELLS", 1)
    assert certify(score, wrong, path, "0.3", "0.1", positive=positive, fnr="0.4") == whole


def test_inputs_that_do_not_fit_are_refused_by_name():
    with pytest.raises(DataError, match="do not match"):
        certify([0.5, 0.6], [0], [0.5], "0.1", "0.1")
    with pytest.raises(DataError, match="0 or 1"):
        certify([0.5], [2], [0.5], "0.1", "0.1")
    with pytest.raises(DataError, match="path holds NaN"):
        certify([0.5], [0], [np.nan], "0.1", "0.1")
    with pytest.raises(ConfigError, match="without `positive`"):
        certify([0.5], [0], [0.5], "0.1", "0.1", fnr="0.1")
    with pytest.raises(DataError, match="positive must be 0 or 1"):
        certify([0.5], [0], [0.5], "0.1", "0.1", positive=[3], fnr="0.1")
