"""Does a figure creep up over hours? A slope that outliers do not move, with its interval.

In: values over time, in segments (a resumed run starts anew in each). Out: a `Drift`. The slope is
Theil and Sen's, the median over pairs of rows of the same segment; the interval comes from
resampling blocks of residuals, since neighbouring minutes resemble each other (Theil 1950, Sen
1968; Kunsch 1989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
LEAST_ROWS = 20
LEAST_HOURS = 0.25
SETTLE_SHARE = 0.25
SETTLE_HOURS = 0.25
MOST_BINS = 48
RESAMPLES = 1000

Values = npt.NDArray[np.float64]
Segments = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Drift:
    """per_hour: in `unit` an hour, between low and high at `confidence`; NaN with too few rows.

    rows, hours: those used, after every segment's first ones, in which caches fill. limit: the
    slope that is still allowed.
    """

    name: str
    unit: str
    rows: int
    hours: float
    per_hour: float
    low: float
    high: float
    confidence: float
    limit: float

    @property
    def judged(self) -> bool:
        """Whether there are rows enough to say anything."""
        return self.rows >= LEAST_ROWS and self.hours >= LEAST_HOURS

    @property
    def alarm(self) -> bool:
        """Whether the whole interval lies above the limit."""
        return self.judged and self.low > self.limit

    @property
    def undecided(self) -> bool:
        """Whether the interval has the limit within it: neither shown nor excluded."""
        return self.judged and self.low <= self.limit < self.high


def drift(
    name: str, unit: str, values: Values, hours: Values, segments: Segments, limit: float
) -> Drift:
    """The slope of `values` over `hours`; rows without a finite value are left out."""
    used = settled(hours, segments) & np.isfinite(values)
    x, y, s = hours[used], values[used], segments[used]
    span = float(sum(np.ptp(x[s == segment]) for segment in np.unique(s)))
    if len(x) < LEAST_ROWS:
        nothing = math.nan
        return Drift(name, unit, len(x), span, nothing, nothing, nothing, LEVEL, limit)
    bins = [binned(part, s) for part in (x, y)]
    of = binned(s.astype(np.float64), s).astype(np.int64)
    slope, low, high = slope_interval(bins[0], bins[1], of)
    return Drift(name, unit, len(x), span, slope, low, high, LEVEL, limit)


def settled(hours: Values, segments: Segments) -> npt.NDArray[np.bool_]:
    """All rows but those of the first quarter of every segment, or of its first quarter hour."""
    kept = np.zeros(len(segments), dtype=np.bool_)
    for segment in np.unique(segments):
        rows = np.flatnonzero(segments == segment)
        since = hours[rows] - hours[rows[0]]
        kept[rows[since > min(SETTLE_HOURS, SETTLE_SHARE * since[-1])]] = True
    return kept


def binned(values: Values, segments: Segments) -> Values:
    """Medians of neighbouring rows of a segment, so that there are at most about `MOST_BINS`."""
    size = -(-len(values) // MOST_BINS)
    found = []
    for segment in np.unique(segments):
        own = values[segments == segment]
        found += [float(np.median(own[k : k + size])) for k in range(0, len(own), size)]
    return np.array(found)


def slope_interval(x: Values, y: Values, segments: Segments) -> tuple[float, float, float]:
    """Theil and Sen's slope over pairs of a segment, and its interval at `LEVEL`."""
    rows, others = np.triu_indices(len(x), 1)
    same = (segments[rows] == segments[others]) & (x[rows] != x[others])
    rows, others = rows[same], others[same]
    if not len(rows):
        return math.nan, math.nan, math.nan
    gaps = x[others] - x[rows]
    slope = float(np.median((y[others] - y[rows]) / gaps))
    residuals = y - slope * x
    for segment in np.unique(segments):
        own = segments == segment
        residuals[own] -= np.median(residuals[own])
    n, block = len(x), max(2, math.isqrt(len(x)))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, n, (RESAMPLES, -(-n // block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :n] % n
    noise = residuals[index]
    slopes = np.array([np.median((e[others] - e[rows]) / gaps) for e in noise])
    low, high = np.quantile(slopes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return slope, slope + float(low), slope + float(high)
