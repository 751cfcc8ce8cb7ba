"""How many times one thing takes of another, with an interval that asks little of the noise.

In: timings in pairs, both of a pair taken one right after the other. Out: a `Ratio`.

    ratio_of         pairs that all do the same work: the median of their ratios, and the sign
                     test's interval for it, two of the ratios themselves. It asks for no
                     distribution, only that a pair is as likely above the true median as below it.
                     Conover, Practical Nonparametric Statistics, 3.2.
    ratio_of_totals  pairs whose work differs, as that of images does which exit early or late:
                     total over total, since the median pair is then one kind of image and not the
                     mix of them. The interval is the jackknife's, of the ratio's logarithm, with
                     Student's t. Efron and Tibshirani, An Introduction to the Bootstrap, 11 and 12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """ratio: over `pairs` pairs of `images` images a side. low, high: its interval.

    confidence: of the interval. The sign test's is exact; with fewer than six pairs not even the
    smallest and the largest ratio are a 95 % interval, and this says how sure they are. The
    jackknife's is nominal: 91 to 95 % of draws where pairs hold 4 images or more, less for fewer
    than a dozen single images.
    """

    pairs: int
    images: int
    ratio: float
    low: float
    high: float
    confidence: float


def ratio_of(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, images: int, level: float = LEVEL
) -> Ratio:
    """The ratio of paired timings, and its interval at `level` or just above.

    Raises:
        ValueError: no pairs.
    """
    ratios = np.sort(np.asarray(numerator, np.float64) / np.asarray(denominator, np.float64))
    n = len(ratios)
    if not n:
        raise ValueError("there are no pairs, so there is no ratio")
    k, confidence = rank(n, level)
    low, high = float(ratios[k - 1]), float(ratios[n - k])
    return Ratio(n, images, float(np.median(ratios)), low, high, confidence)


def ratio_of_totals(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, images: int, level: float = LEVEL
) -> Ratio:
    """The ratio of the sums of paired timings; of one pair, without an interval (confidence 0).

    Raises:
        ValueError: no pairs.
    """
    from scipy.stats import t

    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    n = len(top)
    if not n:
        raise ValueError("there are no pairs, so there is no ratio")
    ratio = float(top.sum() / bottom.sum())
    if n == 1:
        return Ratio(n, images, ratio, ratio, ratio, 0.0)
    without = np.log((top.sum() - top) / (bottom.sum() - bottom))
    error = math.sqrt((n - 1) * float(np.var(without)))
    factor = math.exp(float(t.ppf(0.5 + level / 2, n - 1)) * error)
    return Ratio(n, images, ratio, ratio / factor, ratio * factor, level)


def rank(n: int, level: float = LEVEL) -> tuple[int, float]:
    """The k for which the k-th smallest and the k-th largest of n hold their median at `level`.

    Returns:
        k, at least 1, and the confidence 1 - 2 P(fewer than k of n fair coins fall heads).
    """
    from scipy.stats import binom

    outside = 2 * binom.cdf(np.arange(n), n, 0.5)  # for k = 1, 2, ...
    k = max(1, int((outside <= 1 - level).sum()))
    return k, max(0.0, 1 - float(outside[k - 1]))
