import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_calib import metrics
from cascade_runtime.errors import ConfigError, DataError

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
    assert metrics.eaugrc(CONF, ERR) == pytest.approx(0.16 - e**2 / 2)
    best = e + (1 - e) * np.log(1 - e)
    assert metrics.eaurc(CONF, ERR) == pytest.approx(0.2421825397 - best, abs=1e-9)
    assert metrics.eaurc([0.9, 0.8], [1, 1]) == pytest.approx(0.0)


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


def test_augrc_equals_its_auroc_identity_on_1000_random_tied_inputs():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n = int(rng.integers(2, 60))
        score, error = rng.integers(0, int(rng.integers(1, 12)), n), rng.random(n) < rng.random()
        right, wrong = score[~error][:, None], score[error]
        a = len(right) / n
        pairs = max(right.size * wrong.size, 1)
        auroc = ((right > wrong).sum() + (right == wrong).sum() / 2) / pairs
        expected = (1 - auroc) * a * (1 - a) + (1 - a) ** 2 / 2
        assert abs(metrics.augrc(score, error) - expected) < 1e-12


@given(scored, st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_tied_images(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    for metric in (
        metrics.augrc,
        metrics.aurc,
        lambda s, e: metrics.aurc(s, e, "mean"),
        metrics.eaurc,
        metrics.eaugrc,
        lambda s, e: metrics.coverage_at_risk(s, e, 0.3),
        lambda s, e: metrics.risk_at_coverage(s, e, 0.5),
    ):
        before = metric([p[0] for p in pairs], [p[1] for p in pairs])
        after = metric([p[0] for p in shuffled], [p[1] for p in shuffled])
        assert before == after


def test_a_tie_is_never_split():
    curve = metrics.risk_coverage_curve([1, 1, 0, 0], [0, 1, 0, 1])
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


EVERY_METRIC = (
    metrics.risk_coverage_curve,
    metrics.augrc,
    metrics.aurc,
    lambda s, e: metrics.aurc(s, e, "mean"),
    metrics.eaurc,
    metrics.eaugrc,
    lambda s, e: metrics.risk_at_coverage(s, e, 0.5),
    lambda s, e: metrics.coverage_at_risk(s, e, 0.1),
    lambda s, e: metrics.bootstrap_ci(s, e, resamples=5),
)
any_score = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1.0, 1e300])
any_error = st.sampled_from([0, 1, 1, 0, 0.5, -1, np.nan])


@given(st.lists(any_score, max_size=6), st.lists(any_error, max_size=6))
def test_every_input_has_a_defined_answer_or_one_clear_error(score, error):
    good = len(score) == len(error) and not np.isnan(score).any() and set(error) <= {0, 1}
    for metric in EVERY_METRIC:
        if not good:
            with pytest.raises(DataError):
                metric(score, error)
        elif len(score) and metric is not metrics.risk_coverage_curve:
            assert np.isfinite(np.atleast_1d(metric(score, error))[0])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_coverage_and_risk_out_of_range_name_the_field(value):
    with pytest.raises(ConfigError, match="coverage"):
        metrics.risk_at_coverage(CONF, ERR, value)
    with pytest.raises(ConfigError, match="risk"):
        metrics.coverage_at_risk(CONF, ERR, value)


def test_risk_at_coverage_and_coverage_at_risk_at_the_customary_points():
    risks = [metrics.risk_at_coverage(CONF, ERR, c).risk for c in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert risks == pytest.approx([1 / 5, 2 / 6, 2 / 7, 3 / 8, 4 / 9])
    reached = [metrics.coverage_at_risk(CONF, ERR, r).coverage for r in (0.01, 0.02, 0.05, 0.1)]
    assert reached == [0.2, 0.2, 0.2, 0.2]


def test_confusion_counts_only_what_was_acted_on():
    counts = metrics.confusion([1, 1, 1, 0, 0, -1, -1], [1, 1, 0, 0, 1, 0, 1])
    assert counts == (2, 1, 1, 1)
    assert counts.accuracy == 3 / 5
    assert counts.fnr == 1 / 3
    assert counts.fpr == 1 / 2
    assert counts.mcc == pytest.approx(np.corrcoef([1, 1, 1, 0, 0], [1, 1, 0, 0, 1])[0, 1])


def test_confusion_of_one_class_and_of_nothing_is_defined():
    one = metrics.confusion([1, 1], [1, 1])
    assert (one.accuracy, one.fnr, one.mcc) == (1.0, 0.0, 0.0)
    assert np.isnan(one.fpr)
    nothing = metrics.confusion([-1], [1])
    assert np.isnan([nothing.accuracy, nothing.fnr, nothing.mcc]).all()
    with pytest.raises(DataError, match="shape"):
        metrics.confusion([1], [1, 0])
    with pytest.raises(DataError, match="-1, 0 or 1"):
        metrics.confusion([2], [1])
