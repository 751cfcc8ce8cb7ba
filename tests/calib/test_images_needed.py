from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from cascade_calib.bounds import allowed_errors, binomial_p_value, images_needed, pass_probability
from cascade_runtime.errors import ConfigError

ALPHA, DELTA = Fraction(1, 100), Fraction(1, 20)


def test_without_errors_and_full_coverage_it_is_the_zero_error_count():
    assert images_needed(ALPHA, DELTA, 1, 0).images == 299


def test_the_plan_is_the_smallest_that_passes_nine_times_in_ten():
    plan = images_needed(ALPHA, DELTA, 0.7, 0.005)
    assert pass_probability(plan.images, ALPHA, DELTA, 0.7, 0.005) >= 0.9
    assert pass_probability(plan.images - 1, ALPHA, DELTA, 0.7, 0.005) < 0.9


def test_pass_probability_agrees_with_simulation():
    rng = np.random.default_rng(0)
    k = rng.binomial(2000, 0.7, 20_000)
    e = rng.binomial(k, 0.006)
    passed = binom.cdf(e, k, 0.01) <= 0.05
    expected = pass_probability(2000, ALPHA, DELTA, 0.7, 0.006)
    assert passed.mean() == pytest.approx(expected, abs=0.012)


def test_allowed_errors_are_the_most_that_pass():
    accepted = np.arange(0, 3000, 7)
    for k, e in zip(accepted, allowed_errors(accepted, ALPHA, DELTA), strict=True):
        assert e == -1 or binomial_p_value(int(e), int(k), ALPHA) <= DELTA
        assert e + 1 > k or binomial_p_value(int(e) + 1, int(k), ALPHA) > DELTA


def test_an_error_rate_above_alpha_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"not below alpha 0\.01"):
        images_needed(ALPHA, DELTA, 0.7, 0.01)
    with pytest.raises(ConfigError, match="larger alpha"):
        images_needed(ALPHA, DELTA, 0.7, 0.00999)
    with pytest.raises(ConfigError, match="coverage is 0"):
        images_needed(ALPHA, DELTA, 0, 0.001)
