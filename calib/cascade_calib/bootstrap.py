"""Confidence intervals by resampling whole images, or whole groups of them.

In: per image the numerator and the denominator of each ratio (errors over accepted, say). Out:
percentile intervals over seeded resamples. Images that share a group are drawn together, since
frames of one video are not independent. CALIBRATION, "Selective metrics"; Efron 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_calib.metrics import Float64, Int64, risk_coverage

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

    Images that count alike are one kind, and a resample is a multinomial draw over the kinds: for
    a handful of yes/no ratios that is a few dozen kinds, however many images there are.

    Args:
        numerators, denominators: [N, S], a column a ratio.
        groups: N names; None: every image is its own group.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    ratios = top.shape[1]
    units = np.concatenate([top, bottom], axis=1)
    if groups is not None:
        member = _group_index(groups)
        units = np.stack([np.bincount(member, weights=column) for column in units.T], axis=1)
    if not len(units):
        return [Interval(float("nan"), float("nan"))] * ratios
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
        values = sums[:, :ratios] / sums[:, ratios:]
    return [_percentiles(column, level) for column in values.T]


def augrc_interval(
    score: npt.ArrayLike,
    error: npt.ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The interval of `metrics.augrc`: every resample is a weighting of the same sorted images."""
    risk_coverage(score, error)  # refuses what augrc refuses
    s, e = np.asarray(score, np.float64), np.asarray(error, np.float64)
    if not len(s):
        return Interval(float("nan"), float("nan"))
    order = np.argsort(-s, kind="stable")
    s, e = s[order], e[order]
    last_of_tie = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    member = np.arange(len(s)) if groups is None else _group_index(groups)
    member, drawn = member[order], int(member.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(s))
    areas = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(0, drawn, size=(rows, drawn)) + drawn * np.arange(rows)[:, None]
        count = np.bincount(picks.ravel(), minlength=rows * drawn).reshape(rows, drawn)
        weight = count[:, member]
        areas.append(_weighted_augrc(weight, e, last_of_tie))
    return _percentiles(np.concatenate(areas), level)


def _weighted_augrc(weight: Int64, error: Float64, last_of_tie: Int64) -> Float64:
    """AUGRC per row of integer weights [R, N] over images in order of trust."""
    k = np.cumsum(weight, axis=1)[:, last_of_tie].astype(np.float64)
    wrong = np.cumsum(weight * error, axis=1)[:, last_of_tie]
    total = k[:, -1:]
    width = np.diff(k, axis=1, prepend=0.0) / total
    height = (wrong + np.concatenate([np.zeros_like(total), wrong[:, :-1]], axis=1)) / total
    return np.asarray((width * height).sum(axis=1) / 2)


def _group_index(groups: Sequence[str]) -> Int64:
    return np.asarray(np.unique(np.asarray(groups), return_inverse=True)[1], dtype=np.int64)


def _percentiles(values: Float64, level: float) -> Interval:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
