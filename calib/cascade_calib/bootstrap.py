"""Confidence intervals by resampling whole images, or whole groups of them.

In: per image the numerator and the denominator of each ratio (errors over accepted, say). Out:
percentile intervals over seeded resamples. Images that share a group are drawn together, since
frames of one video are not independent. CALIBRATION, "Selective metrics"; Efron 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64, scored
from cascade_runtime.errors import ConfigError, DataError

Metric = Literal[
    "augrc", "aurc", "aurc mean", "eaurc", "eaugrc", "risk_at_coverage", "coverage_at_risk"
]
LEVEL = 0.95
RESAMPLES = 2000
_CELLS = 4_000_000


class Interval(NamedTuple):
    """A percentile interval; NaN at both ends where the ratio is never defined."""

    low: float
    high: float


def ratio_intervals(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Interval]:
    """Intervals of sum(numerator) / sum(denominator), one a column.

    Args:
        numerators, denominators: [N, S], a column a ratio.
        groups: N names; None: every image is its own group.

    Raises:
        DataError: groups of another length.
    """
    values = _resampled(numerators, denominators, groups, resamples, seed)
    return [_percentiles(column, level) for column in values.T]


def difference_intervals(
    first: tuple[npt.ArrayLike, npt.ArrayLike],
    second: tuple[npt.ArrayLike, npt.ArrayLike],
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    levels: Sequence[float] = (LEVEL,),
) -> list[list[Interval]]:
    """Intervals of first ratio minus second ratio: for each level, one a column.

    Args:
        first, second: (numerators, denominators), [N, S] each, of the same N images: a resample
            draws an image for both at once, so that what they have in common cancels.
    """
    pairs = [[np.asarray(x, np.float64) for x in one] for one in (first, second)]
    tops, bottoms = (np.concatenate([one[i] for one in pairs], axis=1) for i in (0, 1))
    values = _resampled(tops, bottoms, groups, resamples, seed)
    half = values.shape[1] // 2
    gaps = values[:, :half] - values[:, half:]
    return [[_percentiles(column, level) for column in gaps.T] for level in levels]


def _resampled(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    groups: Sequence[str] | None,
    resamples: int,
    seed: int,
) -> Float64:
    """The ratios of each resample, [R, S]; NaN where one is undefined.

    Images that count alike are one kind, and a resample is a multinomial draw over the kinds: for
    a handful of yes/no ratios that is a few dozen kinds, however many images there are.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    ratios = top.shape[1]
    units = np.concatenate([top, bottom], axis=1)
    if groups is not None:
        if len(groups) != len(units):
            raise DataError(f"there are {len(groups)} groups for {len(units)} images")
        member = _group_index(groups)
        units = np.stack([np.bincount(member, weights=column) for column in units.T], axis=1)
    if not len(units):
        return np.full((1, ratios), np.nan)
    kinds, count = np.unique(units, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    share = count / count.sum()
    step = max(1, _CELLS // len(kinds))
    sums = np.concatenate(
        [
            rng.multinomial(len(units), share, size=min(step, resamples - start)) @ kinds
            for start in range(0, resamples, step)
        ]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[:, :ratios] / sums[:, ratios:])


def bootstrap_ci(
    score: npt.ArrayLike,
    error: npt.ArrayLike,
    metric: Metric = "augrc",
    *,
    at: float | None = None,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The interval of one of the selective metrics; every resample is a weighting of the images.

    Args:
        score, error: as for the metrics, [N].
        metric: which; "aurc" is the trapezoid convention, "aurc mean" the other.
        at: the coverage of "risk_at_coverage", the risk of "coverage_at_risk".
        groups: N names; None: every image is its own group.

    Raises:
        DataError: what the metrics refuse, or groups of another length.
        ConfigError: an unknown metric, `at` missing or out of [0, 1].
    """
    s, e = scored(score, error)
    if metric not in _METRICS:
        raise ConfigError(f"metric is {metric!r}, expected one of {', '.join(_METRICS)}")
    if metric.endswith(("at_coverage", "at_risk")) and not (at is not None and 0 <= at <= 1):
        raise ConfigError(f"at is {at}, expected for {metric} a number between 0 and 1")
    if groups is not None and len(groups) != len(s):
        raise DataError(f"there are {len(groups)} groups for {len(s)} images")
    if not len(s):
        return Interval(float("nan"), float("nan"))
    order = np.argsort(-s, kind="stable")
    s, e = s[order], e[order]
    last_of_tie = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    member = None if groups is None else _group_index(groups)[order]
    drawn = len(s) if member is None else int(member.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(s))
    values = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(0, drawn, size=(rows, drawn)) + drawn * np.arange(rows)[:, None]
        weight = np.bincount(picks.ravel(), minlength=rows * drawn).reshape(rows, drawn)
        if member is not None:
            weight = weight[:, member]
        k = np.cumsum(weight, axis=1)[:, last_of_tie].astype(np.float64)
        wrong = np.cumsum(weight * e, axis=1)[:, last_of_tie]
        values.append(_METRICS[metric](k, wrong, 0.0 if at is None else at))
    return _percentiles(np.concatenate(values), level)


def _group_index(groups: Sequence[str]) -> Int64:
    return np.asarray(np.unique(np.asarray(groups), return_inverse=True)[1], dtype=np.int64)


def _augrc(k: Float64, wrong: Float64, at: float) -> Float64:
    """AUGRC per row of accepted and wrong counts [R, P], a column a distinct score."""
    total = k[:, -1:]
    return _trapezoid(k / total, wrong / total, np.zeros_like(total))


def _aurc(k: Float64, wrong: Float64, at: float) -> Float64:
    risk = _selective(k, wrong)
    return _trapezoid(k / k[:, -1:], risk, risk[:, :1])


def _aurc_mean(k: Float64, wrong: Float64, at: float) -> Float64:
    """Summed over a tie of w, mean error m, after K with E: w m + (E - m K)(H(K + w) - H(K))."""
    harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1, int(k.max()) + 1)))
    width = np.diff(k, axis=1, prepend=0.0)
    mean = np.diff(wrong, axis=1, prepend=0.0) / np.maximum(width, 1.0)
    before, errors = k - width, wrong - mean * width
    gain = harmonic[k.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return np.asarray((width * mean + (errors - mean * before) * gain).sum(axis=1) / k[:, -1])


def _eaurc(k: Float64, wrong: Float64, at: float) -> Float64:
    e = wrong[:, -1] / k[:, -1]
    rest = np.where(e < 1, 1 - e, 1.0)
    return np.asarray(_aurc(k, wrong, at) - (e + rest * np.log(rest)))


def _eaugrc(k: Float64, wrong: Float64, at: float) -> Float64:
    return np.asarray(_augrc(k, wrong, at) - (wrong[:, -1] / k[:, -1]) ** 2 / 2)


def _risk_at_coverage(k: Float64, wrong: Float64, at: float) -> Float64:
    enough = (k / k[:, -1:] >= at) & (k > 0)
    return np.asarray(_selective(k, wrong)[np.arange(len(k)), enough.argmax(axis=1)])


def _coverage_at_risk(k: Float64, wrong: Float64, at: float) -> Float64:
    holds = (_selective(k, wrong) <= at) & (k > 0)
    return np.asarray(np.where(holds, k / k[:, -1:], 0.0).max(axis=1))


def _selective(k: Float64, wrong: Float64) -> Float64:
    """Selective risk; before the first image that was drawn, that of the first point."""
    rows, first = np.arange(len(k)), (k > 0).argmax(axis=1)
    start = (wrong[rows, first] / k[rows, first])[:, None]
    return np.where(k > 0, wrong / np.maximum(k, 1.0), start)


def _trapezoid(x: Float64, y: Float64, start: Float64) -> Float64:
    """The area per row from x = 0, where y = start [R, 1]."""
    before = np.concatenate([start, y[:, :-1]], axis=1)
    return np.asarray((np.diff(x, axis=1, prepend=0.0) * (y + before)).sum(axis=1) / 2)


_METRICS: dict[str, Callable[[Float64, Float64, float], Float64]] = {
    "augrc": _augrc,
    "aurc": _aurc,
    "aurc mean": _aurc_mean,
    "eaurc": _eaurc,
    "eaugrc": _eaugrc,
    "risk_at_coverage": _risk_at_coverage,
    "coverage_at_risk": _coverage_at_risk,
}


def _percentiles(values: Float64, level: float) -> Interval:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
