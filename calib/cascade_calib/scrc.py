"""Selective conformal risk control: prediction sets that hold among the images accepted.

In: per calibration image a gate score (higher: trust) and the nonconformity of its true class
(1 - its probability). Out: thresholds for "is this image accepted" and "is this class in its
set", with P(true class outside its set | accepted) <= alpha: on average (SCRC-T) or for all but
delta of the calibration sets (SCRC-I). CALIBRATION, "SCRC"; Xu, Guo and Wei, arXiv 2512.12844 v2.

With two classes the set {0, 1} is never wrong: read the set risk only beside the share of
ambiguous sets and the error of the single answers (`set_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cascade_calib.bounds import as_fraction, at_least, at_most
from cascade_calib.metrics import Float64
from cascade_calib.prediction_sets import Form, Inductive, SetFigures, Transductive, set_figures
from cascade_calib.result import as_coverage, paired
from cascade_calib.scrc_inductive import GRID, fit_grid, fit_rank
from cascade_calib.words import human_alpha, percent
from cascade_runtime.errors import ConfigError

__all__ = [
    "Inductive",
    "SetFigures",
    "Transductive",
    "fit_inductive",
    "fit_transductive",
    "set_figures",
]

_NAMES = "gate and nonconformity"


def fit_transductive(
    gate: npt.ArrayLike,
    nonconformity: npt.ArrayLike,
    coverage: str | float | Fraction,
    alpha: str | float | Fraction,
) -> Transductive:
    """SCRC-T: exact for every size and every tie, on average over calibration sets and images.

    A test image is accepted iff its gate is among the `coverage` share highest of it and the
    calibration images together, and gets the classes whose conformal p-value among the accepted
    is above alpha. Whatever its gate, only two sets of accepted calibration images can come out,
    so that joint computation shrinks to three numbers. (The paper's equation 15 allows one error
    more and does not hold.)

    Args:
        gate: [n], higher is more trusted; +-inf are ordinary values.
        nonconformity: [n], of the true class.
        coverage: the share to accept, in (0, 1]; alpha: the risk to hold, in (0, 1).

    Raises:
        DataError: a NaN or lengths that differ; ConfigError: coverage or alpha out of range.
    """
    g, s = paired(gate, nonconformity, _NAMES)
    xi, a = as_coverage(coverage), as_fraction(alpha, "alpha")
    n = len(g)
    k = at_least(xi, n + 1)
    best = np.sort(g)[::-1]
    tau = float(best[k - 1]) if k <= n else float("-inf")
    above = g >= best[k - 2] if k > 1 else np.zeros(n, dtype=np.bool_)
    at = g >= tau
    q_above, q_at = _limit(s[above], a), _limit(s[at], a)
    accepted, m = int(at.sum()), int(above.sum())
    errors = int((s[at] > np.where(g[at] > tau, q_above, q_at)).sum())
    advice = ""
    if q_above == float("inf"):
        advice = (
            f"Every set is full, which promises nothing: with {m} accepted images not one error "
            f"can be allowed at alpha {float(a):g}. Label about {_least_for_sets(xi, a):,} images"
            + (f", or ask for an alpha of {float(human_alpha(1 / (m + 1))):g}." if m else ".")
        )
    promise = (
        f"Of the images accepted, at most {percent(a, 6)} have a prediction set without their true "
        "class, on average over calibration sets and images."
    )
    return Transductive(
        method="SCRC-T",
        status="CERTIFIED",
        promise=promise,
        advice=advice,
        alpha=float(a),
        delta=None,
        thresholds={"tau": tau, "q_above": q_above, "q_at": q_at},
        n=n,
        accepted=accepted,
        errors=errors,
        risk_upper=float(max(Fraction(at_most(a, size + 1), size + 1) for size in (m, accepted))),
        coverage=accepted / n if n else 0.0,
        coverage_lower=k / (n + 1),
    )


def fit_inductive(
    gate: npt.ArrayLike,
    nonconformity: npt.ArrayLike,
    coverage: str | float | Fraction,
    alpha: str | float | Fraction,
    delta: str | float | Fraction,
    form: Form = "rank",
    *,
    delta_coverage: str | float | Fraction | None = None,
    ties: int = 0,
    gate_grid: Sequence[float] = GRID,
    set_grid: Sequence[float] = GRID,
) -> Inductive:
    """SCRC-I: holds for all but delta of the calibration sets (PAC).

    "rank" accepts g > tau = g_[k+1], the images above which are independent draws given tau, and
    allows the errors that a binomial test leaves. "grid" is the paper's version 2, which bounds
    both thresholds over finite grids at once; it takes an order of magnitude more images.

    Args:
        gate, nonconformity, coverage, alpha: as for `fit_transductive`; for "grid" both arrays
            lie in [0, 1].
        delta: how often the risk may exceed alpha, in (0, 1).
        delta_coverage: "rank" only: how often the coverage may fall short; by default delta. The
            two statements hold separately, each with its own confidence.
        ties: "rank" only: how many calibration images may share one gate value, known before they
            are seen; 0 for a continuous gate. So many ranks more are accepted, to cover enough
            although a tie at the threshold is left out whole.
        gate_grid, set_grid: "grid" only: thresholds fixed before the data is seen.

    Raises:
        DataError: a NaN, lengths that differ, or values outside [0, 1] for "grid".
        ConfigError: coverage, alpha, delta or form out of range.
    """
    g, s = paired(gate, nonconformity, _NAMES)
    xi, a, d = as_coverage(coverage), as_fraction(alpha, "alpha"), as_fraction(delta, "delta")
    if form == "rank":
        spare = d if delta_coverage is None else as_fraction(delta_coverage, "delta_coverage")
        return fit_rank(g, s, xi, a, d, spare, max(0, ties))
    if form == "grid":
        return fit_grid(g, s, xi, a, d, gate_grid, set_grid)
    raise ConfigError(f"form is {form!r}, expected 'rank' or 'grid'")


def _limit(s: Float64, alpha: Fraction) -> float:
    """s_(m-b), b = floor((m+1) alpha) - 1 errors allowed among m; +inf, the full set, if b < 0."""
    m = len(s)
    b = at_most(alpha, m + 1) - 1
    return float("inf") if b < 0 else float(np.sort(s)[m - b - 1])


def _least_for_sets(xi: Fraction, alpha: Fraction) -> int:
    """The fewest calibration images with which SCRC-T allows an error: (m + 1) alpha >= 1."""
    m = at_least(1 / alpha, 1) - 1
    return max(0, at_least(1 / xi, m) - 1)
