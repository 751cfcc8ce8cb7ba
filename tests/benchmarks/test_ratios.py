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


@pytest.mark.parametrize(("images", "pairs"), [(4, 5), (4, 12), (1, 40)])
def test_interval_of_totals_holds_as_often_as_it_says(images: int, pairs: int) -> None:
    """An early exit takes .4, a late one 1.05, the other side 1, each with noise of its own."""
    rng = np.random.default_rng(images)
    true, held = 1 / (0.8 * 0.4 + 0.2 * 1.05), 0
    for _ in range(1000):
        mix = np.where(rng.random((pairs, images)) < 0.8, 0.4, 1.05).mean(axis=1)
        bottom, top = mix * rng.lognormal(0, 0.05, pairs), rng.lognormal(0, 0.05, pairs)
        found = ratio_of_totals(top, bottom, images=images)
        held += found.low <= true <= found.high
    assert 0.92 <= held / 1000 <= 0.98


def test_one_pair_of_different_work_has_no_interval() -> None:
    found = ratio_of_totals([5.0], [2.0], images=4)
    assert (found.ratio, found.low, found.high, found.confidence) == (2.5, 2.5, 2.5, 0)
    with pytest.raises(ValueError, match="no pairs"):
        ratio_of_totals([], [], images=1)
