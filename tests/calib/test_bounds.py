from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from cascade_calib import bounds
from cascade_runtime.errors import ConfigError


def test_published_bound_and_least_accepted():
    assert bounds.clopper_pearson_upper(0, 299, 0.05) == pytest.approx(0.009969, abs=1e-6)
    assert bounds.least_accepted(Fraction(1, 100), Fraction(1, 10)) == 230
    assert bounds.least_accepted(Fraction(1, 100), Fraction(1, 20)) == 299


def test_a_whole_power_is_not_rounded_up():
    assert bounds.least_accepted(Fraction(1, 2), Fraction(1, 8)) == 3
    assert bounds.least_accepted(Fraction(1, 10), Fraction(81, 100)) == 2


@given(st.integers(1, 400), st.data())
def test_upper_bound_is_where_the_binomial_tail_is_delta(n, data):
    e = data.draw(st.integers(0, n - 1))
    upper = bounds.clopper_pearson_upper(e, n, 0.05)
    assert binom.cdf(e, n, upper) == pytest.approx(0.05, rel=1e-6)
    assert bounds.clopper_pearson_lower(n - e, n, 0.05) == pytest.approx(1 - upper, abs=1e-9)


def test_bounds_at_the_edges():
    assert bounds.clopper_pearson_upper(0, 0, 0.05) == 1.0
    assert bounds.clopper_pearson_upper(7, 7, 0.05) == 1.0
    assert bounds.clopper_pearson_lower(0, 7, 0.05) == 0.0
    assert bounds.binomial_p_value(0, 0, 0.05) == 1.0


@given(st.integers(1, 500), st.data(), st.sampled_from(["0.01", "0.1", "0.5"]))
def test_p_value_is_the_binomial_distribution(n, data, alpha):
    e = data.draw(st.integers(0, n))
    expected = binom.cdf(e, n, float(alpha))
    assert bounds.binomial_p_value(e, n, Fraction(alpha)) == pytest.approx(expected, abs=1e-12)


def test_p_values_of_many_agree_with_one_at_a_time():
    e, n = np.array([0, 3, 9]), np.array([0, 300, 9])
    one = [bounds.binomial_p_value(int(a), int(b), 0.02) for a, b in zip(e, n, strict=True)]
    assert bounds.binomial_p_values(e, n, 0.02).tolist() == one


def test_the_zero_error_certificate_needs_exactly_least_accepted():
    alpha, delta = Fraction(1, 100), Fraction(1, 20)
    least = bounds.least_accepted(alpha, delta)
    assert bounds.binomial_p_value(0, least, alpha) <= delta
    assert bounds.binomial_p_value(0, least - 1, alpha) > delta


def test_at_least_does_not_go_through_floats():
    assert bounds.at_least(Fraction("0.55"), 100) == 55
    assert bounds.at_least(Fraction("0.551"), 100) == 56


@pytest.mark.parametrize("text", ["0.01", "1e-2", ".01", "1/100"])
def test_typed_numbers_are_exact(text):
    assert bounds.as_fraction(text) == Fraction(1, 100)


@pytest.mark.parametrize("text", ["", "x", "nan", "-0.1", "1e-9999999", "1/0", "0", "1", "2"])
def test_numbers_out_of_range_name_the_field(text):
    with pytest.raises(ConfigError, match="alpha"):
        bounds.as_fraction(text, "alpha")


def test_a_percentage_is_refused_with_the_decimal_to_write():
    with pytest.raises(ConfigError, match=r"1% as 0\.01"):
        bounds.as_fraction("1%", "alpha")


def test_closed_range_takes_its_ends():
    assert bounds.as_fraction("0", closed=True) == 0
    assert bounds.as_fraction("1", closed=True) == 1
