import numpy as np
import pytest

from cascade_calib import metrics
from cascade_calib.bootstrap import bootstrap_ci, ratio_intervals
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError, DataError


def test_interval_of_a_share_is_the_binomial_one():
    y = np.arange(1000) < 300
    (interval,) = ratio_intervals(y[:, None], np.ones((1000, 1)))
    se = np.sqrt(0.3 * 0.7 / 1000)
    assert interval.low == pytest.approx(0.3 - 1.96 * se, abs=0.004)
    assert interval.high == pytest.approx(0.3 + 1.96 * se, abs=0.004)


def test_same_seed_same_interval_and_another_seed_another():
    y, ones = np.sqrt(np.arange(500))[:, None], np.ones((500, 1))
    assert ratio_intervals(y, ones, seed=3) == ratio_intervals(y, ones, seed=3)
    assert ratio_intervals(y, ones, seed=3) != ratio_intervals(y, ones, seed=4)


def test_groups_are_drawn_whole_and_so_widen_the_interval():
    y = np.repeat(np.arange(50) % 2, 20)[:, None]  # 50 videos, all frames of one alike
    videos = [f"v{i // 20}" for i in range(1000)]
    (alone,) = ratio_intervals(y, np.ones((1000, 1)))
    (together,) = ratio_intervals(y, np.ones((1000, 1)), videos)
    width = np.sqrt(20) * (alone.high - alone.low)
    assert together.high - together.low == pytest.approx(width, rel=0.15)


def test_a_ratio_that_is_never_defined_is_nan():
    (interval,) = ratio_intervals(np.zeros((9, 1)), np.zeros((9, 1)))
    assert np.isnan(interval.low)
    assert np.isnan(ratio_intervals(np.zeros((0, 1)), np.zeros((0, 1)))[0].high)


def test_augrc_interval_covers_the_known_area_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(100):
        c = rng.uniform(0.5, 1, 300)
        wrong = rng.random(300) > c
        low, high = bootstrap_ci(c, wrong, "augrc", resamples=200, seed=repeat)
        hits += low <= 1 / 12 <= high
    assert 85 <= hits <= 99


def test_augrc_interval_of_one_group_is_the_point_itself_ties_included():
    rng = np.random.default_rng(1)
    score, wrong = rng.integers(0, 5, 200), rng.random(200) < 0.2
    low, high = bootstrap_ci(score, wrong, groups=["only"] * 200, resamples=10)
    assert low == pytest.approx(augrc(score, wrong)) == pytest.approx(high)


METRICS = {
    "augrc": metrics.augrc,
    "aurc": metrics.aurc,
    "aurc mean": lambda s, e: metrics.aurc(s, e, "mean"),
    "eaurc": metrics.eaurc,
    "eaugrc": metrics.eaugrc,
    "risk_at_coverage": lambda s, e: metrics.risk_at_coverage(s, e, 0.4).risk,
    "coverage_at_risk": lambda s, e: metrics.coverage_at_risk(s, e, 0.15).coverage,
}


@pytest.mark.parametrize("metric", METRICS)
def test_a_resample_is_worth_what_the_metric_says_of_the_images_drawn(metric):
    rng = np.random.default_rng(2)
    score, wrong = rng.integers(0, 9, 60), rng.random(60) < 0.3
    groups = [str(i // 12) for i in range(60)]
    (point,) = {bootstrap_ci(score, wrong, metric, at=at(metric), groups=groups, resamples=1)[0]}
    picks = np.random.default_rng(0).integers(0, 5, size=5)
    drawn = np.concatenate([np.arange(12 * i, 12 * i + 12) for i in picks])
    assert point == pytest.approx(METRICS[metric](score[drawn], wrong[drawn]), abs=1e-12)


def at(metric):
    return {"risk_at_coverage": 0.4, "coverage_at_risk": 0.15}.get(metric)


def test_all_wrong_and_all_right_have_an_interval_of_no_width():
    assert bootstrap_ci([3, 2, 1], [1, 1, 1], "eaurc", resamples=9) == pytest.approx((0, 0))
    assert bootstrap_ci([3, 2, 1], [0, 0, 0], "aurc mean", resamples=9) == (0, 0)


def test_what_cannot_be_resampled_is_refused_by_name():
    with pytest.raises(ConfigError, match="metric is 'auc'"):
        bootstrap_ci([1], [0], "auc")
    for bad in (None, 1.5):
        with pytest.raises(ConfigError, match="at is"):
            bootstrap_ci([1], [0], "risk_at_coverage", at=bad)
    with pytest.raises(DataError, match="2 groups for 1 images"):
        bootstrap_ci([1], [0], groups=["a", "b"])
    with pytest.raises(DataError, match="2 groups for 1 images"):
        ratio_intervals([[1]], [[1]], ["a", "b"])
    assert np.isnan(bootstrap_ci([], [])).all()
