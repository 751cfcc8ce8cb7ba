"""From raw outputs to scores that read as probabilities: temperature and Platt scaling.

In: an exit's outputs on `val_select` and the truth. Out: one temperature for the classifier, two
Platt numbers for the gate, by maximum likelihood against Platt's smoothed targets (Platt 1999),
which keep the answer finite when every image is right, and float32-exact decimals of them.
Both maps are increasing: they change how a score reads, never which image ranks above which.
CALIBRATION, "Score scaling".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64

TEMPERATURES = (0.01, 100.0)
SLOPES = (0.05, 100.0)  # of the standardised gate: less and float32 would merge distinct scores


class Platt(NamedTuple):
    """P(correct) = sigmoid(a * gate + b), a > 0."""

    a: float
    b: float


@dataclass(frozen=True)
class Reliability:
    """What was said against what was so, for the bins that hold an image; arrays [bins]."""

    said: Float64
    found: Float64
    count: Int64


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The T for which (l1 - l0) / T best explains the labels, in TEMPERATURES.

    Args:
        logits: float [N, 2]; rows that are not finite are left out.
        labels: [N], 0 or 1.

    Returns:
        T > 0; 1 when there is nothing to learn from (no rows, or every margin 0).
    """
    raw = np.asarray(logits, dtype=np.float64)
    margin, y = _finite(raw[:, 1] - raw[:, 0], labels)
    if not np.any(margin):
        return 1.0
    from scipy.optimize import minimize_scalar

    target = smoothed(y)
    best = minimize_scalar(
        lambda log_t: _log_loss(margin / np.exp(log_t), target),
        bounds=(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1])),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return shortest_float32(float(np.exp(best.x)))


def fit_platt(gate: npt.ArrayLike, correct: npt.ArrayLike) -> Platt:
    """The (a, b) for which sigmoid(a * gate + b) best explains which answers were correct.

    A gate that tells nothing, or the opposite of the truth, still gets a small positive slope
    (SLOPES, per standard deviation): the ranking is the network's, and is never turned round.

    Args:
        gate: float [N]; entries that are not finite are left out.
        correct: [N], 1 where the exit's answer was right.

    Returns:
        a > 0 and b, finite; (1, 0) for no images, slope 1 for a constant gate.
    """
    g, y = _finite(np.asarray(gate, dtype=np.float64), correct)
    if not len(g):
        return Platt(1.0, 0.0)
    target = smoothed(y)
    centre, spread = float(g.mean()), float(g.std())
    if spread <= 1e-6 * max(1.0, abs(centre)):
        rate = float(target.mean())
        return _platt32(1.0, float(np.log(rate / (1 - rate))) - centre)
    from scipy.optimize import minimize

    z = (g - centre) / spread

    def loss(x: Float64) -> tuple[float, Float64]:
        logit = x[0] * z + x[1]
        miss = sigmoid(logit) - target
        return _log_loss(logit, target), np.array([np.mean(miss * z), np.mean(miss)])

    best = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[SLOPES, (-50.0, 50.0)]
    )
    slope = float(best.x[0]) / spread
    return _platt32(slope, float(best.x[1]) - slope * centre)


def smoothed(y: Float64) -> Float64:
    """Platt's targets: (N1 + 1)/(N1 + 2) for the ones, 1/(N0 + 2) for the zeros."""
    ones = float(y.sum())
    zeros = len(y) - ones
    return np.where(y == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))


def reliability(probability: npt.ArrayLike, outcome: npt.ArrayLike, bins: int = 15) -> Reliability:
    """Mean stated probability and share of ones per equal-width bin of [0, 1], empty bins left out.

    Args:
        probability: float [N] in [0, 1].
        outcome: [N], 0 or 1.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    held = count > 0
    said = np.bincount(which, weights=p, minlength=bins)[held] / count[held]
    found = np.bincount(which, weights=y, minlength=bins)[held] / count[held]
    return Reliability(said, found, count[held].astype(np.int64))


def sigmoid(x: npt.ArrayLike) -> Float64:
    """1 / (1 + exp(-x)) without overflow, float64."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, dtype=np.float64))))


def shortest_float32(x: float) -> float:
    """The float32 nearest to x, as the float whose repr is the shortest decimal that means it.

    Raises:
        ValueError: x is not finite as a float32; a manifest has no place for it.
    """
    nearest = np.float32(x)
    if not np.isfinite(nearest):
        raise ValueError(f"{x} has no finite float32")
    short = float(str(nearest))
    return short if np.float32(short) == nearest else float(nearest)


def _platt32(a: float, b: float) -> Platt:
    tiny = float(np.finfo(np.float32).tiny)
    return Platt(shortest_float32(max(a, tiny)), shortest_float32(b))


def _finite(values: Float64, outcome: npt.ArrayLike) -> tuple[Float64, Float64]:
    kept = np.isfinite(values)
    return values[kept], np.asarray(outcome, dtype=np.float64)[kept]


def _log_loss(logit: Float64, target: Float64) -> float:
    """Mean cross-entropy of sigmoid(logit) against targets in (0, 1)."""
    return float(np.mean(np.logaddexp(0.0, logit) - target * logit))
