"""Ratios are of pairs, and their intervals are as sure as they say."""

from __future__ import annotations

import numpy as np
import pytest

from cascade_bench.ratios import rank, ratio_of, ratio_of_totals


def test_interval_is_two_of_the_ratios_and_says_how_sure_it_is() -> None:
    found = ratio_of(np.arange(1, 13), np.ones(12), images=5)
    assert (found.pairs, found.images, found.ratio) == (12, 5, 6.5)
    assert (found.low, found.high) == (3, 10)  # of 12 coins, 2 or fewer heads: 79 of 4096
    assert found.confidence == pytest.approx(1 - 2 * 79 / 4096)


def test_few_pairs_give_their_extremes_and_admit_it() -> None:
    found = ratio_of([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], images=1)
    assert (found.low, found.ratio, found.high) == (2, 3, 4)
    assert found.confidence == pytest.approx(0.75)


@pytest.mark.parametrize("n", [6, 9, 17, 40])
def test_rank_is_the_narrowest_that_is_sure_enough(n: int) -> None:
    k, confidence = rank(n)
    assert confidence >= 0.95
    ratios = np.random.default_rng(n).lognormal(size=(4000, n))
    ratios.sort(axis=1)
    held = ((ratios[:, k - 1] <= 1) & (ratios[:, n - k] >= 1)).mean()
    assert held == pytest.approx(confidence, abs=0.015)


def test_no_pairs_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        ratio_of([], [], images=1)


def test_pairs_of_different_work_are_weighed_by_it() -> None:
    """Three images of four exit early at a third of the time: the median pair hides the fourth."""
    cascade = np.tile([1.0, 1.0, 1.0, 3.0], 25)
    full = np.full(100, 3.0)
    found = ratio_of_totals(full, cascade, images=1)
    assert ratio_of(full, cascade, images=1).ratio == 3
    assert found.ratio == 2 and found.low < 2 < found.high and found.confidence == 0.95


def test_resampled_interval_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        bottom = rng.lognormal(0, 0.3, 40)
        found = ratio_of_totals(2 * bottom * rng.lognormal(0, 0.1, 40), bottom, images=1)
        held += found.low <= 2 * np.exp(0.1**2 / 2) <= found.high
    assert 175 <= held <= 200


def test_few_pairs_of_different_work_have_the_plain_interval() -> None:
    found = ratio_of_totals([2.0, 9.0], [1.0, 3.0], images=1)
    assert (found.ratio, found.low, found.high, found.confidence) == (2.75, 2, 3, 0.5)
