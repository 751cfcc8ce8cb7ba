"""Percentiles are real measurements, repeats are counted, pairs are fair."""

from __future__ import annotations

import numpy as np
import pytest

from cascade_bench.timing import (
    LEAST_P99,
    LEAST_P999,
    interleaved,
    percentile,
    repeat,
    spread,
    summarise,
)


def test_percentiles_of_a_hundred_known_samples() -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000
    latency = summarise(samples)
    assert (latency.p50_ms, latency.p95_ms) == pytest.approx((50, 95))
    assert percentile(samples, 99) == 0.099
    assert (latency.mean_ms, latency.max_ms, latency.repeats) == (pytest.approx(50.5), 100, 100)


def test_percentile_of_few_samples_is_one_of_them_rounded_up() -> None:
    few = np.array([1.0, 2.0, 10.0])
    assert percentile(few, 50) == 2.0
    assert percentile(few, 95) == percentile(few, 99) == 10.0


def test_tails_are_only_given_where_they_are_more_than_the_slowest() -> None:
    assert np.isnan(summarise(np.arange(1, LEAST_P99) / 1000).p99_ms)
    assert summarise(np.arange(1, LEAST_P99 + 1) / 1000).p99_ms == pytest.approx(LEAST_P99 - 2)
    few = summarise(np.arange(1, LEAST_P999) / 1000)
    assert np.isnan(few.p999_ms)
    enough = summarise(np.arange(1, LEAST_P999 + 1) / 1000)
    assert enough.p999_ms == pytest.approx(LEAST_P999 - 2) and enough.max_ms == LEAST_P999


def test_spread_does_not_grow_with_how_long_one_measures() -> None:
    rng = np.random.default_rng(0)
    few, many = (float(spread(rng.lognormal(0, 0.05, n))) for n in (30, 3000))
    assert abs(few - many) < 0.05 and many < 1.2
    assert spread(np.array([1.0, 1.0, 1.0, 2.0, 2.0])) == 2.0


def test_no_samples_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="samples is empty"):
        percentile(np.array([]), 50)


def test_warm_up_calls_are_made_and_not_counted() -> None:
    calls: list[int] = []
    times = repeat(calls.append, seconds=0, least=5, warm_up=3)
    assert len(times) == 5
    assert calls == [0, 1, 2, 0, 1, 2, 3, 4]


def test_repeats_go_on_until_the_time_is_used_up() -> None:
    assert len(repeat(lambda _: None, seconds=0.01, least=2)) > 2


def test_pairs_alternate_and_swap_who_goes_first() -> None:
    calls: list[tuple[str, int]] = []
    times = interleaved(
        lambda index: calls.append(("cascade", index)),
        lambda index: calls.append(("full", index)),
        seconds=0,
        least=3,
        warm_up=0,
    )
    assert times.shape == (3, 2)
    assert calls == [
        ("cascade", 0),
        ("full", 0),
        ("full", 1),
        ("cascade", 1),
        ("cascade", 2),
        ("full", 2),
    ]


def test_a_time_stays_with_its_side_when_the_order_is_swapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    def takes(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr("cascade_bench.timing.time.perf_counter", lambda: clock[0])
    times = interleaved(lambda _: takes(1), lambda _: takes(3), seconds=0, least=4)
    assert np.array_equal(times, [[1, 3]] * 4)
