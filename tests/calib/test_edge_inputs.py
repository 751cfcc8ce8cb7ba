"""Whatever arrays and settings come in: a defined answer, or one error of the user's kind."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_calib.bounds import (
    binomial_p_value,
    clopper_pearson_lower,
    clopper_pearson_upper,
    images_needed,
)
from cascade_calib.certify import certify
from cascade_calib.result import Result
from cascade_calib.scrc import fit_inductive, fit_transductive
from cascade_calib.sgr import fit_sgr
from cascade_runtime.errors import CascadeError, ConfigError

score = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.25, 0.5, 1.0, 2.0])
error = st.sampled_from([0, 0, 1, 1, 0.5, math.nan])
share = st.sampled_from(["0", "0.05", "0.5", "0.9", "1", "1.5", "-1", "nan", 0.1, 1.0, 0.0])

FITS = {
    "transductive": lambda x, y, c, a, d: fit_transductive(x, y, c, a),
    "rank": lambda x, y, c, a, d: fit_inductive(x, y, c, a, d, "rank"),
    "rank with ties": lambda x, y, c, a, d: fit_inductive(x, y, c, a, d, "rank", ties=2),
    "grid": lambda x, y, c, a, d: fit_inductive(x, y, c, a, d, "grid"),
    "certify": lambda x, y, c, a, d: certify(x, y, [0.5, 0.0], a, d, coverage=c),
    "sgr": lambda x, y, c, a, d: fit_sgr(x, y, a, d),
}


@settings(max_examples=120)
@given(
    st.sampled_from(sorted(FITS)),
    st.lists(score, max_size=5),
    st.lists(error, max_size=5),
    share,
    share,
    share,
    st.booleans(),
)
def test_a_fit_is_a_consistent_result_or_one_clear_error(name, x, y, c, a, d, repeat):
    if repeat:
        x, y = x * 60, y * 60
    try:
        result = FITS[name](x, y, c, a, d)
    except CascadeError as problem:
        assert "\n" not in str(problem)
        return
    assert isinstance(result, Result)
    assert 0 <= result.errors <= result.accepted <= result.n == len(x)
    assert 0 <= result.risk_upper <= 1
    assert 0 <= result.coverage_lower <= 1
    assert not any(math.isnan(t) for t in result.thresholds.values())
    if result.status == "INFEASIBLE":
        assert result.advice
        assert result.accepted == 0


@pytest.mark.parametrize("delta", [0, 1])
def test_bounds_at_certainty_and_at_none_are_defined(delta):
    assert clopper_pearson_upper(3, 10, delta) == 1 - delta
    assert clopper_pearson_lower(3, 10, delta) == delta
    assert clopper_pearson_upper(0, 0, delta) == 1.0
    assert clopper_pearson_lower(0, 0, delta) == 0.0


def test_p_values_at_certain_and_impossible_errors_are_defined():
    assert binomial_p_value(3, 10, 0) == 1.0  # a risk above 0 is never refuted
    assert binomial_p_value(3, 10, 1) == 0.0
    assert binomial_p_value(10, 10, 1) == 1.0


@pytest.mark.parametrize(("coverage", "error"), [(1.2, 0.001), (0.5, -0.1), (math.nan, 0.001)])
def test_plans_out_of_range_are_refused_by_name(coverage, error):
    with pytest.raises(ConfigError, match=r"(coverage|error) is"):
        images_needed(Fraction(1, 100), Fraction(1, 20), coverage, error)
