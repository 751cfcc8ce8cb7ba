"""Slopes that outliers and restarts do not move, and intervals that hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cascade_bench.drift import LEAST_ROWS, SETTLE_HOURS, Drift, drift, settled

MINUTES = np.arange(240) / 60.0
ONE = np.ones(240, dtype=np.int64)


def test_a_line_has_its_own_slope_whatever_a_few_rows_do() -> None:
    values = 100 + 7 * MINUTES
    values[::10] += 500
    found = drift("memory", "MiB", values, MINUTES, ONE, limit=5)
    assert found.per_hour == pytest.approx(7, abs=0.1)
    assert found.low <= found.per_hour <= found.high and found.alarm


def test_a_slope_within_the_limit_is_no_alarm_however_sure_it_is() -> None:
    values = 100 + 3 * MINUTES
    found = drift("memory", "MiB", values, MINUTES, ONE, limit=5)
    assert found.low == pytest.approx(3) and not found.alarm and not found.undecided


def test_an_interval_around_the_limit_is_undecided() -> None:
    found = Drift("memory", "MiB", 60, 1.0, per_hour=2, low=0.5, high=4, confidence=0.95, limit=1)
    assert found.undecided and not found.alarm
    assert not replace(found, low=1.5).undecided and not replace(found, high=0.9).undecided


def test_a_restart_is_no_drop_and_no_jump() -> None:
    segments = np.repeat([1, 2], 120)
    values = np.where(segments == 1, 100.0, 300.0)
    found = drift("memory", "MiB", values, MINUTES, segments, limit=1)
    assert found.per_hour == 0 and not found.alarm


def test_rows_in_which_caches_fill_are_left_out_of_every_segment() -> None:
    segments = np.repeat([1, 2], 120)
    kept = settled(MINUTES, segments)
    for segment in (1, 2):
        hours = MINUTES[(segments == segment) & kept] - MINUTES[segments == segment][0]
        assert hours.min() > SETTLE_HOURS and hours.max() == pytest.approx(119 / 60)
    filling = np.where(MINUTES < 0.2, 1000 * MINUTES, 200.0)
    assert drift("memory", "MiB", filling, MINUTES, ONE, limit=1).per_hour == 0


def test_too_few_rows_or_minutes_are_no_alarm() -> None:
    few = drift("memory", "MiB", 1e6 * MINUTES[:LEAST_ROWS], MINUTES[:LEAST_ROWS], ONE[:20], 1)
    assert np.isnan(few.per_hour) and not few.judged and not few.alarm
    seconds = MINUTES / 60
    soon = drift("memory", "MiB", 1e6 * seconds, seconds, ONE, limit=1)
    assert soon.low > 1 and not soon.judged and not soon.alarm


def test_rows_without_a_value_are_left_out() -> None:
    values = 2 * MINUTES
    values[5::7] = np.nan
    found = drift("latency", "%", values, MINUTES, ONE, limit=5)
    assert found.per_hour == pytest.approx(2) and found.rows < 240


def test_noise_that_lasts_for_minutes_seldom_looks_like_drift() -> None:
    """No drift, rows that resemble their neighbours (AR 0.5), a limit of nothing at all."""
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(240)
        for k in range(1, 240):
            noise[k] += 0.5 * noise[k - 1]
        alarms += drift("memory", "MiB", 100 + noise, MINUTES, ONE, limit=0).alarm
    assert alarms <= 8  # 2.5 % of 60 is 1.5; resampled blocks are a little too sure of themselves


def test_a_leak_in_noise_is_found() -> None:
    rng = np.random.default_rng(0)
    values = 200 + 12 * MINUTES + rng.standard_normal(240)
    assert drift("memory", "MiB", values, MINUTES, ONE, limit=10).alarm
