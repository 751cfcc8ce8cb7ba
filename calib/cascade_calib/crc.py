"""Conformal risk control: hold the mean of any bounded loss that a threshold makes smaller.

In: per calibration image its loss at every candidate threshold lambda. Out: the smallest lambda
whose expected loss on a new image is at most alpha, on average over calibration sets.
CALIBRATION, "SCRC"; Angelopoulos et al., arXiv 2208.02814.
"""

from __future__ import annotations

from fractions import Fraction
from math import fsum

import numpy as np
import numpy.typing as npt

from cascade_calib.bounds import as_fraction, at_least
from cascade_calib.result import NOTHING, Result
from cascade_calib.words import percent
from cascade_runtime.errors import ConfigError, DataError


def conformal_risk_control(
    losses: npt.ArrayLike,
    lambdas: npt.ArrayLike,
    alpha: str | float | Fraction,
    bound: str | float | Fraction = 1,
) -> Result:
    """The smallest lambda with (sum of losses + bound) / (n + 1) <= alpha.

    Args:
        losses: [n, L], each in [0, bound], none growing along its row.
        lambdas: [L], ascending: larger is safer.
        alpha: the mean loss to hold, in (0, bound) for it to say anything.
        bound: the largest loss there can be, 1 for a 0/1 loss.

    Returns:
        A `Result` with threshold "lambda"; INFEASIBLE where not even the last one will do.

    Raises:
        DataError: shapes that do not match, a loss that is NaN, grows or is out of range.
        ConfigError: alpha or bound out of range.
    """
    table, lam = np.asarray(losses, dtype=np.float64), np.asarray(lambdas, dtype=np.float64)
    limit = Fraction(repr(float(bound)) if isinstance(bound, float) else bound)
    a = as_fraction(alpha, "alpha")
    if limit <= 0:
        raise ConfigError(f"bound is {bound}, expected the largest loss there can be, above 0")
    _check(table, lam, float(limit))
    n = len(table)
    whole = bool((table == np.floor(table)).all())  # counts, whose float sums are exact
    sums = [float(total) for total in table.sum(axis=0)] if whole else list(map(fsum, table.T))
    fits = [i for i, total in enumerate(sums) if Fraction(total) + limit <= a * (n + 1)]
    good = bool(fits)
    chosen = fits[0] if good else 0
    promise = (
        f"The mean loss of new images is at most {float(a):g}, on average over calibration sets."
        if limit != 1
        else f"The mean loss of new images is at most {percent(a, 6)}, on average over "
        "calibration sets."
    )
    return Result(
        method="CRC",
        status="CERTIFIED" if good else "INFEASIBLE",
        promise=promise if good else NOTHING,
        advice="" if good else _advice(a, limit, n, sums),
        alpha=float(a),
        delta=None,
        thresholds={"lambda": float(lam[chosen])} if good else {},
        n=n,
        accepted=n if good else 0,
        errors=int((table[:, chosen] > 0).sum()) if good else 0,
        risk_upper=float((Fraction(sums[chosen]) + limit) / (n + 1)) if good else float(limit),
        coverage=1.0 if good else 0.0,
        coverage_lower=1.0 if good else 0.0,
    )


def _advice(alpha: Fraction, bound: Fraction, n: int, sums: list[float]) -> str:
    if not sums:
        return "There is no lambda to choose from."
    if n and Fraction(sums[-1]) >= alpha * n:
        return (
            f"The mean loss is {sums[-1] / n:.3g} even at the largest lambda: no number of images "
            "helps; offer a safer lambda, or ask for a larger alpha."
        )
    least = max(n + 1, at_least(bound / alpha, 1) - 1)
    return f"{n} images are too few: at alpha {float(alpha):g} label at least {least:,}."


def _check(table: npt.NDArray[np.float64], lam: npt.NDArray[np.float64], bound: float) -> None:
    if table.ndim != 2 or lam.ndim != 1 or table.shape[1] != len(lam):
        raise DataError(
            f"losses have shape {table.shape} and lambdas {lam.shape}; expected [n, L] and [L]"
        )
    if np.isnan(lam).any() or (np.diff(lam) <= 0).any():
        raise DataError("lambdas must ascend, without a NaN")
    if not ((table >= 0) & (table <= bound)).all():  # written so that NaN is refused
        raise DataError(f"losses must lie between 0 and {bound:g} and not be NaN")
    if (np.diff(table, axis=1) > 0).any():
        raise DataError("a loss grows with lambda; it must fall or stay along every row")
