"""How well a score separates right answers from wrong ones: the selective metrics.

In: a score per image (higher is more trusted) and whether its answer was wrong. Out: the
risk-coverage curve and the areas and points read off it. Tied scores are never split, so no
result depends on the order of the images. CALIBRATION, "Selective metrics"; AUGRC after Traub et
al. 2024, AURC after Geifman et al. 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64, scored
from cascade_calib.bootstrap import bootstrap_ci
from cascade_runtime.errors import ConfigError, DataError

__all__ = [
    "Confusion",
    "CoverageAtRisk",
    "Float64",
    "Int64",
    "RiskAtCoverage",
    "RiskCoverage",
    "augrc",
    "aurc",
    "bootstrap_ci",
    "confusion",
    "coverage_at_risk",
    "eaugrc",
    "eaurc",
    "ece",
    "risk_at_coverage",
    "risk_coverage_curve",
]

Convention = Literal["trapezoid", "mean"]


@dataclass(frozen=True)
class RiskCoverage:
    """One point per distinct score, most trusted first; each array float64 [points].

    coverage: k/n, the share with a score >= threshold.
    selective: E/k, the error among those.
    generalized: E/n, the share of all images that is accepted and wrong.
    """

    coverage: Float64
    selective: Float64
    generalized: Float64
    threshold: Float64


class CoverageAtRisk(NamedTuple):
    """The widest coverage whose risk holds, and its threshold (+inf with coverage 0: none)."""

    coverage: float
    threshold: float


class RiskAtCoverage(NamedTuple):
    """The risk at the first point that covers enough, and the coverage reached there."""

    risk: float
    coverage: float


def risk_coverage_curve(score: npt.ArrayLike, error: npt.ArrayLike) -> RiskCoverage:
    """The curve of accepting every image whose score is at least a threshold.

    Args:
        score: float [N], higher is more trusted; +-inf are ordinary values.
        error: [N], 1 where the answer is wrong, else 0.

    Raises:
        DataError: a NaN, another shape, or an error that is neither 0 nor 1.
    """
    s, e = scored(score, error)
    order = np.argsort(-s, kind="stable")
    s, wrong = s[order], np.cumsum(e[order])
    last_of_tie = np.flatnonzero(np.append(s[1:] != s[:-1], True)) if len(s) else np.arange(0)
    accepted = last_of_tie + 1.0
    errors = wrong[last_of_tie]
    n = max(len(s), 1)
    return RiskCoverage(accepted / n, errors / accepted, errors / n, s[last_of_tie])


def augrc(score: npt.ArrayLike, error: npt.ArrayLike) -> float:
    """Area under generalized risk over coverage, from (0, 0); 0 is best, 1/2 worst, n = 0: NaN.

    For 0/1 errors it is (1 - AUROC_f) a (1 - a) + (1 - a)^2 / 2, a the accuracy.
    """
    curve = risk_coverage_curve(score, error)
    return _area(curve.coverage, curve.generalized, start=0.0)


def aurc(score: npt.ArrayLike, error: npt.ArrayLike, convention: Convention = "trapezoid") -> float:
    """Area under selective risk over coverage, in one of the two conventions in use; n = 0: NaN.

    "trapezoid": between the points, the first one's risk held down to coverage 0.
    "mean": the mean over k = 1..n of the risk of the k most trusted, where the members of a tie
    each count with the tie's mean error.
    """
    if convention == "mean":
        s, e = scored(score, error)
        if not len(s):
            return float("nan")
        _, tie, size = np.unique(-s, return_inverse=True, return_counts=True)
        shared = (np.bincount(tie, weights=e) / size)[np.sort(tie)]
        return float(np.mean(np.cumsum(shared) / np.arange(1, len(s) + 1)))
    curve = risk_coverage_curve(score, error)
    first = float(curve.selective[0]) if len(curve.selective) else 0.0
    return _area(curve.coverage, curve.selective, start=first)


def eaurc(
    score: npt.ArrayLike, error: npt.ArrayLike, convention: Convention = "trapezoid"
) -> float:
    """AURC above that of the best ranking: AURC - (e + (1 - e) ln(1 - e)), e the error rate."""
    e = _error_rate(error)
    best = e + ((1 - e) * float(np.log1p(-e)) if e < 1 else 0.0)
    return aurc(score, error, convention) - best


def eaugrc(score: npt.ArrayLike, error: npt.ArrayLike) -> float:
    """AUGRC above that of the best ranking: AUGRC - e^2 / 2, e the error rate."""
    return augrc(score, error) - _error_rate(error) ** 2 / 2


def coverage_at_risk(score: npt.ArrayLike, error: npt.ArrayLike, risk: float) -> CoverageAtRisk:
    """The largest coverage with selective risk <= `risk`.

    Selective risk is not monotone, so every point is looked at. An empirical reading: it promises
    nothing about new images (see `certify`).

    Raises:
        DataError: as `risk_coverage_curve`; ConfigError: `risk` is not in [0, 1].
    """
    _share(risk, "risk")
    curve = risk_coverage_curve(score, error)
    holds = np.flatnonzero(curve.selective <= risk)
    if not len(holds):
        return CoverageAtRisk(0.0, float("inf"))
    return CoverageAtRisk(float(curve.coverage[holds[-1]]), float(curve.threshold[holds[-1]]))


def risk_at_coverage(score: npt.ArrayLike, error: npt.ArrayLike, coverage: float) -> RiskAtCoverage:
    """The selective risk of the smallest accepted set that covers `coverage`; n = 0: NaN, 0.

    Raises:
        DataError: as `risk_coverage_curve`; ConfigError: `coverage` is not in [0, 1].
    """
    _share(coverage, "coverage")
    curve = risk_coverage_curve(score, error)
    enough = np.flatnonzero(curve.coverage >= coverage)
    if not len(enough):
        return RiskAtCoverage(float("nan"), 0.0)
    return RiskAtCoverage(float(curve.selective[enough[0]]), float(curve.coverage[enough[0]]))


def ece(probability: npt.ArrayLike, outcome: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins of [0, 1]; n = 0: NaN.

    Args:
        probability: float [N] in [0, 1], the stated probability that the outcome is 1.
        outcome: [N], 0 or 1.
    """
    p, y = scored(probability, outcome)
    if not len(p):
        return float("nan")
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(which, weights=p - y, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


class Confusion(NamedTuple):
    """Counts of answers; "positive" is class 1. A rate of nothing is NaN."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return _ratio(self.true_positive + self.true_negative, sum(self))

    @property
    def fnr(self) -> float:
        """The share of positives called negative."""
        return _ratio(self.false_negative, self.false_negative + self.true_positive)

    @property
    def fpr(self) -> float:
        """The share of negatives called positive."""
        return _ratio(self.false_positive, self.false_positive + self.true_negative)

    @property
    def mcc(self) -> float:
        """Matthews correlation of answer and truth, in [-1, 1]; 0 where either is constant."""
        tp, fp, tn, fn = self
        if not sum(self):
            return float("nan")
        scale = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return (tp * tn - fp * fn) / math.sqrt(scale) if scale else 0.0


def confusion(answer: npt.ArrayLike, truth: npt.ArrayLike) -> Confusion:
    """Answers against the truth, over the images acted on.

    Args:
        answer: [N], 0 or 1, or -1 for a deferred image, which is not counted; truth: [N], 0 or 1.

    Raises:
        DataError: another shape, or another value.
    """
    a, y = np.asarray(answer), np.asarray(truth)
    if a.ndim != 1 or a.shape != y.shape:
        raise DataError(f"answer has shape {a.shape} and truth {y.shape}; both must be [N]")
    if not (np.isin(a, (-1, 0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise DataError("answer must be -1, 0 or 1 and truth 0 or 1 for every image")
    return Confusion(
        *(int(((a == i) & (y == j)).sum()) for i, j in ((1, 1), (1, 0), (0, 0), (0, 1)))
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _share(value: float, name: str) -> None:
    if not 0 <= value <= 1:  # written so that NaN is refused
        raise ConfigError(f"{name} is {value}, expected a number between 0 and 1, such as 0.05")


def _error_rate(error: npt.ArrayLike) -> float:
    e = np.asarray(error, dtype=np.float64)
    return float(e.mean()) if len(e) else float("nan")


def _area(coverage: Float64, risk: Float64, start: float) -> float:
    if not len(coverage):
        return float("nan")
    return float(np.trapezoid(np.append(start, risk), np.append(0.0, coverage)))
