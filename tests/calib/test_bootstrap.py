import numpy as np
import pytest

from cascade_calib.bootstrap import augrc_interval, ratio_intervals
from cascade_calib.metrics import augrc


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
        low, high = augrc_interval(c, wrong, resamples=200, seed=repeat)
        hits += low <= 1 / 12 <= high
    assert 85 <= hits <= 99


def test_augrc_interval_of_one_group_is_the_point_itself_ties_included():
    rng = np.random.default_rng(1)
    score, wrong = rng.integers(0, 5, 200), rng.random(200) < 0.2
    low, high = augrc_interval(score, wrong, ["only"] * 200, resamples=10)
    assert low == pytest.approx(augrc(score, wrong)) == pytest.approx(high)
