"""Whether new scores may come from where the calibration scores came from.

In: columns of numbers of reference images and of new ones. Out: for a batch, a permutation p-value
of the largest Kolmogorov-Smirnov distance; for a stream, a conformal test martingale. Both hold at
any sample size, with ties, and for any distribution: under exchangeability false alarms are no
more frequent than asked for. Sources: Vovk, Nouretdinov, Gammerman 2003 (conformal martingales);
Vovk et al. 2021, "Retrain or not retrain" (the simple jumper); Ville 1939.

Why Kolmogorov-Smirnov: it sees any change of a distribution, also one that leaves its middle where
it was, which Mann-Whitney's rank sum does not. Why by permutation: all columns then share one exact
p-value, ties included, and none is paid for by dividing the rate.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64
from cascade_runtime.errors import ConfigError, DataError

JUMP = 0.01
BETS = (-1.0, 0.0, 1.0)
LEAST_RATE = 1e-4
_CELLS = 4_000_000


@dataclass(frozen=True)
class BatchTest:
    """distance: KS of each column, in [0, 1]; p_value: of the largest of them."""

    distance: Float64
    p_value: float
    permutations: int


@dataclass(frozen=True)
class StreamTest:
    """Natural logs of the martingale of each column after each new value, [m, C], and the bar.

    alarm_at: index of the first new value at which some column reached the bar; None: none did.
    """

    log_capital: Float64
    log_bar: float
    alarm_at: int | None


def batch_test(
    reference: npt.ArrayLike, new: npt.ArrayLike, false_alarm: float, *, seed: int = 0
) -> BatchTest:
    """Test that the rows of both are exchangeable; alarm where p_value <= false_alarm.

    Args:
        reference, new: [n, C] and [m, C], a row an image; rows are independent of each other.
        false_alarm: the rate to test at, which sets the number of permutations.

    Raises:
        ConfigError: a rate below LEAST_RATE, or not below 1.
        DataError: another shape, a NaN, or so few rows that no p-value reaches the rate.
    """
    a, b = _checked(reference, new, false_alarm)
    n, m = len(a), len(b)
    if math.comb(n + m, min(n, m, 20)) * false_alarm < 1:
        raise DataError(
            f"{n} reference and {m} new images can never raise an alarm at a rate of "
            f"{false_alarm:g}; collect more of both"
        )
    order, ends = _ordered(np.concatenate([a, b]))
    is_new = (np.arange(n + m) >= n).astype(np.int64)[None]
    observed = _distances(is_new, order, ends, m)
    most = int(observed.max())
    permutations = math.ceil(20 / false_alarm) - 1
    rng, step, reached = np.random.default_rng(seed), max(1, _CELLS // (n + m)), 0
    for start in range(0, permutations, step):
        rows = np.repeat(is_new, min(step, permutations - start), axis=0)
        shuffled = rng.permuted(rows, axis=1)
        reached += int((_distances(shuffled, order, ends, m).max(axis=1) >= most).sum())
    return BatchTest(observed[0] / (n * m), (1 + reached) / (1 + permutations), permutations)


def ks_distances(reference: npt.ArrayLike, new: npt.ArrayLike) -> Float64:
    """The Kolmogorov-Smirnov distance of each column, [C], of [n, C] and [m, C] without NaN."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (reference, new))
    order, ends = _ordered(np.concatenate([a, b]))
    is_new = (np.arange(len(a) + len(b)) >= len(a)).astype(np.int64)[None]
    return np.asarray(_distances(is_new, order, ends, len(b))[0] / (len(a) * len(b)))


def stream_test(
    reference: npt.ArrayLike, new: npt.ArrayLike, false_alarm: float, *, seed: int = 0
) -> StreamTest:
    """Bet against exchangeability, value by value; ever reaching the bar has at most that rate.

    Each column has a martingale that starts at 1; by Ville's inequality it ever reaches C / rate
    with probability at most rate / C, and there are C columns.

    Args:
        reference, new: as for `batch_test`; the rows of `new` in the order of arrival.

    Raises:
        ConfigError, DataError: as `batch_test`, but any number of rows will do.
    """
    a, b = _checked(reference, new, false_alarm)
    rng = np.random.default_rng(seed)
    columns = [log_capital(conformal_p_values(a[:, c], b[:, c], rng)) for c in range(a.shape[1])]
    capital = np.stack(columns, axis=1)
    log_bar = math.log(a.shape[1] / false_alarm)
    alarms = np.flatnonzero(capital.max(axis=1) >= log_bar)
    return StreamTest(capital, log_bar, int(alarms[0]) if len(alarms) else None)


def conformal_p_values(
    reference: npt.ArrayLike, new: npt.ArrayLike, rng: np.random.Generator
) -> Float64:
    """For each new value its randomised rank among the reference *and the new ones so far*.

    Under exchangeability these are independent and uniform on [0, 1]. Ranks against the reference
    alone would be uniform one by one but share its luck, and a martingale on them alarms falsely.

    Returns:
        float64 [m]: (less + u * equal) / count, itself included, u uniform.
    """
    seen = sorted(np.asarray(reference, dtype=np.float64).tolist())
    u = rng.random(len(np.asarray(new)))
    p = np.empty(len(u))
    for i, value in enumerate(np.asarray(new, dtype=np.float64).tolist()):
        insort(seen, value)
        less = bisect_left(seen, value)
        p[i] = (less + u[i] * (bisect_right(seen, value) - less)) / len(seen)
    return p


def log_capital(p: Float64) -> Float64:
    """The simple jumper's martingale, natural log, after each of the p-values [m].

    Capital is spread over the bets 1 + e (p - 1/2), e in BETS; before each p-value a share JUMP of
    it is spread anew, so that it can follow a change of direction.
    """
    bets = np.array(BETS)
    shares, total = np.full(len(bets), 1 / len(bets)), 0.0
    path = np.empty(len(p))
    for i, value in enumerate(p):
        shares = (1 - JUMP) * shares + JUMP / len(bets)
        shares *= 1 + bets * (value - 0.5)
        gain = float(shares.sum())
        shares /= gain
        total += math.log(gain)
        path[i] = total
    return path


def _distances(is_new: Int64, order: Int64, ends: list[Int64], m: int) -> Int64:
    """KS distances times n * m, in whole numbers [R, C], of rows that say which are new [R, N]."""
    total = is_new.shape[1]
    columns = []
    for c, end in enumerate(ends):
        count = np.cumsum(is_new[:, order[:, c]], axis=1)[:, end]
        columns.append(np.abs(count * total - (end + 1) * m).max(axis=1))
    return np.stack(columns, axis=1)


def _ordered(pooled: Float64) -> tuple[Int64, list[Int64]]:
    """Each column's sorting order [N, C], and in it the last place of every distinct value."""
    order = np.argsort(pooled, axis=0, kind="stable")
    columns = np.take_along_axis(pooled, order, axis=0).T
    ends = [np.flatnonzero(np.append(c[1:] != c[:-1], True)) for c in columns]
    return order, ends


def _checked(
    reference: npt.ArrayLike, new: npt.ArrayLike, false_alarm: float
) -> tuple[Float64, Float64]:
    if not LEAST_RATE <= false_alarm < 1:
        raise ConfigError(
            f"--false-alarm is {false_alarm:g}, expected a rate from {LEAST_RATE:g} to below 1"
        )
    a, b = (np.asarray(x, dtype=np.float64) for x in (reference, new))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or not a.shape[1]:
        raise DataError(f"reference {a.shape} and new {b.shape}: expected [n, C] and [m, C]")
    if not len(a) or not len(b):
        raise DataError(f"{len(a)} reference and {len(b)} new images; there must be some of both")
    if np.isnan(a).any() or np.isnan(b).any():
        raise DataError("a score is NaN; replace it by what it stands for, -inf for never trusted")
    return a, b
