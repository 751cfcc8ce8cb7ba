import numpy as np
import pytest

from cascade_calib.bounds import clopper_pearson_upper
from cascade_calib.certify import certify
from cascade_calib.sgr import fit_sgr
from cascade_runtime.errors import ConfigError, DataError


def honest(n, seed):
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.5, 1, n)
    return c, rng.random(n) > c


def test_the_threshold_holds_its_bound_at_a_share_of_delta():
    score, wrong = honest(3000, 0)
    fit = fit_sgr(score, wrong, "0.1", "0.1")
    chosen = score >= fit.thresholds["tau"]
    k, e = int(chosen.sum()), int((chosen & wrong).sum())
    assert (fit.accepted, fit.errors) == (k, e)
    assert fit.risk_upper == clopper_pearson_upper(e, k, 0.1 / 12) <= 0.1  # ceil(log2 3000) = 12


def test_with_few_images_it_keeps_less_than_a_path_fixed_beforehand():
    kept = {"sgr": 0.0, "certify": 0.0}
    for seed in range(20):
        score, wrong = honest(2000, seed)
        kept["sgr"] += fit_sgr(score, wrong, "0.1", "0.1").coverage
        kept["certify"] += certify(score, wrong, np.linspace(0.95, 0.5, 91), "0.1", "0.1").coverage
    assert 0 < kept["sgr"] < kept["certify"]


def test_all_right_is_accepted_almost_whole_and_all_wrong_not_at_all():
    assert fit_sgr(np.arange(500), np.zeros(500), "0.1", "0.1").accepted >= 499
    bad = fit_sgr(np.arange(500), np.ones(500), "0.1", "0.1")
    assert (bad.status, bad.thresholds, bad.accepted) == ("INFEASIBLE", {}, 0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_images_are_infeasible_with_a_count(n):
    fit = fit_sgr(np.ones(n), np.zeros(n), "0.1", "0.1")
    assert fit.status == "INFEASIBLE"
    assert "A proof takes 22" in fit.advice


def test_ties_are_accepted_together():
    fit = fit_sgr(np.repeat([2.0, 1.0], 200), np.repeat([0, 1], 200), "0.1", "0.1")
    assert (fit.thresholds["tau"], fit.accepted, fit.errors) == (2.0, 200, 0)


def test_bad_input_is_one_clear_error():
    with pytest.raises(DataError, match="NaN"):
        fit_sgr([np.nan], [0], "0.1", "0.1")
    with pytest.raises(ConfigError, match="risk"):
        fit_sgr([1], [0], 1, "0.1")
    with pytest.raises(ConfigError, match="delta"):
        fit_sgr([1], [0], "0.1", 0)
