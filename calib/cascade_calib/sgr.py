"""SGR, the baseline: the widest threshold that a binary search with a union bound certifies.

In: a confidence per calibration image and whether its answer was wrong. Out: a threshold with
P(wrong | accepted) <= risk for all but delta of the calibration sets. Geifman and El-Yaniv,
"Selective classification for deep neural networks", NeurIPS 2017, algorithm 1: ceil(log2 n)
thresholds are looked at, each at delta / ceil(log2 n). `certify` tests a path fixed beforehand
instead and spends all of delta on each step: it keeps more coverage where images are few, while
SGR, which is not bound to the steps of a path, can keep a little more where they are many
(docs/simulations.md).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cascade_calib.bounds import (
    as_fraction,
    clopper_pearson_lower,
    clopper_pearson_upper,
    least_accepted,
)
from cascade_calib.metrics import risk_coverage_curve
from cascade_calib.result import NOTHING, Result
from cascade_calib.words import percent


def fit_sgr(
    score: npt.ArrayLike,
    error: npt.ArrayLike,
    risk: str | float | Fraction,
    delta: str | float | Fraction,
) -> Result:
    """The SGR threshold: accept where score >= tau.

    Args:
        score: [n], higher is more trusted; error: [n], 1 where the answer is wrong.
        risk: the risk to promise; delta: how often that may fail; both in (0, 1).

    Returns:
        A `Result` with threshold "tau" and the bound of the step that found it.

    Raises:
        DataError: a NaN, another shape, or an error that is neither 0 nor 1.
        ConfigError: risk or delta out of range.
    """
    target, d = as_fraction(risk, "risk"), as_fraction(delta, "delta")
    curve = risk_coverage_curve(score, error)
    n = len(np.asarray(score))
    accepted = np.rint(curve.coverage * n).astype(np.int64)
    errors = np.rint(curve.generalized * n).astype(np.int64)
    steps = max(1, (n - 1).bit_length())  # ceil(log2 n)
    share = d / steps
    low, high = 0, n - 1  # positions in ascending score
    best: tuple[float, int, int, float] | None = None
    for _ in range(steps if n else 0):
        middle = (low + high + 1) // 2
        point = int(np.searchsorted(accepted, n - middle))  # ties are accepted together
        tau, k, e = float(curve.threshold[point]), int(accepted[point]), int(errors[point])
        upper = clopper_pearson_upper(e, k, share)
        if upper <= target:
            high = middle
            if best is None or k > best[1]:
                best = (tau, k, e, upper)
        else:
            low = middle
    promise = (
        f"Of the images accepted, at most {percent(target, 6)} are wrong, with "
        f"{percent(1 - d, 6)} confidence over the draw of the calibration images."
    )
    least = least_accepted(target, share)
    advice = f"A proof takes {least:,} accepted images without an error; n is {n:,}."
    tau, k, e, upper = best or (float("inf"), 0, 0, 1.0)
    return Result(
        method="SGR",
        status="CERTIFIED" if best else "INFEASIBLE",
        promise=promise if best else NOTHING,
        advice="" if best else advice,
        alpha=float(target),
        delta=float(d),
        thresholds={"tau": tau} if best else {},
        n=n,
        accepted=k,
        errors=e,
        risk_upper=upper,
        coverage=k / n if n else 0.0,
        coverage_lower=clopper_pearson_lower(k, n, d),
    )
