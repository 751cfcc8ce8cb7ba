import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_calib import metrics
from cascade_runtime.errors import DataError

CONF = [0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]
ERR = [0, 0, 1, 0, 0, 1, 0, 1, 1, 0]

scored = st.lists(
    st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40
)  # few distinct scores, so ties are common


def test_worked_example_gives_the_published_values():
    assert metrics.augrc(CONF, ERR) == pytest.approx(0.16, abs=1e-12)
    assert metrics.aurc(CONF, ERR, "trapezoid") == pytest.approx(0.2421825397, abs=1e-10)
    assert metrics.aurc(CONF, ERR, "mean") == pytest.approx(0.2621825397, abs=1e-10)
    assert metrics.coverage_at_risk(CONF, ERR, 0.25) == (0.5, 0.8)
    assert metrics.risk_at_coverage(CONF, ERR, 0.8) == (0.375, 0.8)


def test_excess_areas_subtract_the_best_ranking():
    e = 0.4
    assert metrics.e_augrc(CONF, ERR) == pytest.approx(0.16 - e**2 / 2)
    best = e + (1 - e) * np.log(1 - e)
    assert metrics.e_aurc(CONF, ERR) == pytest.approx(0.2421825397 - best, abs=1e-9)
    assert metrics.e_aurc([0.9, 0.8], [1, 1]) == pytest.approx(0.0)


@given(scored)
def test_augrc_equals_its_auroc_identity(pairs):
    score, error = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    right, wrong = score[~error], score[error]
    a = len(right) / len(score)
    above = (right[:, None] > wrong).mean() if len(right) and len(wrong) else 0.0
    tied = (right[:, None] == wrong).mean() if len(right) and len(wrong) else 0.0
    auroc = above + tied / 2
    expected = (1 - auroc) * a * (1 - a) + (1 - a) ** 2 / 2
    assert metrics.augrc(score, error) == pytest.approx(expected, abs=1e-12)


@given(scored, st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_tied_images(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    for metric in (
        metrics.augrc,
        metrics.aurc,
        lambda s, e: metrics.aurc(s, e, "mean"),
        lambda s, e: metrics.coverage_at_risk(s, e, 0.3),
        lambda s, e: metrics.risk_at_coverage(s, e, 0.5),
    ):
        before = metric([p[0] for p in pairs], [p[1] for p in pairs])
        after = metric([p[0] for p in shuffled], [p[1] for p in shuffled])
        assert before == pytest.approx(after)


def test_a_tie_is_never_split():
    curve = metrics.risk_coverage([1, 1, 0, 0], [0, 1, 0, 1])
    assert curve.coverage.tolist() == [0.5, 1.0]
    assert curve.selective.tolist() == [0.5, 0.5]
    assert curve.threshold.tolist() == [1, 0]


def test_population_areas_of_honest_scores():
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 1, 200_000)
    error = rng.random(len(c)) > c
    assert metrics.augrc(c, error) == pytest.approx(1 / 12, abs=2e-3)
    assert metrics.aurc(c, error) == pytest.approx(1 / 8, abs=4e-3)  # three standard errors


def test_coverage_at_risk_scans_past_a_rise_of_the_risk():
    score, error = [5, 4, 3, 2, 1], [1, 0, 0, 0, 0]
    assert metrics.coverage_at_risk(score, error, 0.2) == (1.0, 1.0)


def test_unreachable_risk_accepts_nothing():
    assert metrics.coverage_at_risk([2, 1], [1, 1], 0.5) == (0.0, float("inf"))


@pytest.mark.parametrize(("error", "area"), [([0, 0, 0], 0.0), ([1, 1, 1], 0.5)])
def test_all_right_and_all_wrong_and_constant_scores_are_defined(error, area):
    assert metrics.augrc([0.7] * 3, error) == pytest.approx(area)
    assert metrics.aurc([0.7] * 3, error) == pytest.approx(2 * area)


def test_no_images_give_nan_and_one_image_a_number():
    assert np.isnan(metrics.augrc([], []))
    assert np.isnan(metrics.aurc([], [], "mean"))
    assert metrics.coverage_at_risk([], [], 0.1).coverage == 0
    assert metrics.risk_at_coverage([], [], 0.1).coverage == 0
    assert metrics.augrc([1.0], [1]) == 0.5


def test_nan_and_bad_errors_are_refused():
    with pytest.raises(DataError, match="1 NaN of 2"):
        metrics.augrc([0.5, float("nan")], [0, 1])
    with pytest.raises(DataError, match="0 or 1"):
        metrics.augrc([0.5, 0.6], [0, 2])
    with pytest.raises(DataError, match="shape"):
        metrics.augrc([0.5, 0.6], [0])


def test_ece_is_zero_for_true_probabilities_and_the_gap_otherwise():
    rng = np.random.default_rng(1)
    p = rng.uniform(0, 1, 100_000)
    y = rng.random(len(p)) < p
    assert metrics.ece(p, y) < 0.01
    assert metrics.ece([0.9] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.4)
    assert metrics.ece([1.0], [1]) == 0.0
