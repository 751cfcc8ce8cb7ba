"""SCRC-I: set thresholds that hold for all but delta of the calibration sets.

In: checked gates and nonconformities, exact settings. Out: an `Inductive`, by the order statistic
that a binomial test leaves ("rank") or by bounds over finite grids ("grid", Xu, Guo and Wei, arXiv
2512.12844 v2). The budget of that paper's first version, ceil((n + 1) alpha xi_lcb) - 1 errors, is
left out: it does not hold (docs/simulations.md shows it). CALIBRATION, "SCRC".
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from cascade_calib.bounds import (
    allowed_errors,
    at_least,
    binomial_p_value,
    clopper_pearson_lower,
    clopper_pearson_upper,
    least_accepted,
)
from cascade_calib.metrics import Float64
from cascade_calib.prediction_sets import Inductive
from cascade_calib.result import NOTHING
from cascade_calib.words import human_alpha, percent
from cascade_runtime.errors import DataError

GRID = tuple(i / 100 for i in range(101))
_INF = float("inf")


def fit_rank(
    g: Float64,
    s: Float64,
    xi: Fraction,
    alpha: Fraction,
    delta: Fraction,
    spare: Fraction,
    ties: int,
) -> Inductive:
    """The images above g_[k+1] are independent draws given it: a binomial test on them.

    Nothing above tau may influence where tau lies, which is why `ties` is set beforehand.
    """
    n = len(g)
    base = rank_for_coverage(n, xi, spare)
    k = min(n, base + ties)
    tau = float(np.sort(g)[::-1][k]) if k < n else -_INF
    chosen = g > tau
    m = int(chosen.sum())
    allowed = int(allowed_errors(np.array([m]), alpha, delta)[0])
    advice = ""
    if m < (base + 1 if ties else base):
        shared = int((g == tau).sum())
        advice = (
            f"{shared} images share the gate {tau:g}, which is where {k} of {n} would be accepted; "
            f"a tie is never split, and the {m} above it do not prove the coverage of "
            f"{percent(xi)}. On fresh images ask with ties={shared} or more, or use a gate with "
            "finer values."
        )
    elif allowed < 0:
        least = least_accepted(alpha, delta)
        more = max(1, _images_for_rank(least, xi, spare) - n)
        advice = (
            f"{m} images are accepted, and a proof takes {least:,} even without an error: label "
            f"about {more:,} more"
        )
        if m:
            reachable = float(human_alpha(clopper_pearson_upper(0, m, delta)))
            advice += f", or ask for an alpha of {reachable:g}"
        advice += "."
    good = not advice
    q = float(np.sort(s[chosen])[m - allowed - 1]) if good else -_INF
    errors = int((s[chosen] > q).sum()) if good else 0
    lower = clopper_pearson_lower(base + 1, n, spare) if base < n else 1.0
    promise = (
        f"Of the images accepted, at most {percent(alpha, 6)} have a prediction set without their "
        f"true class, with {percent(1 - delta, 6)} confidence over the draw of the calibration "
        f"images; at least {percent(xi, 6)} of images are accepted, with {percent(1 - spare, 6)}."
    )
    return Inductive(
        form="rank",
        method="SCRC-I rank",
        status="CERTIFIED" if good else "INFEASIBLE",
        promise=promise if good else NOTHING,
        advice=advice,
        alpha=float(alpha),
        delta=float(delta),
        thresholds={"tau": tau, "q": q} if good else {},
        n=n,
        accepted=m if good else 0,
        errors=errors,
        risk_upper=clopper_pearson_upper(allowed, m, delta) if good else 1.0,  # whatever the ties
        coverage=m / n if good and n else 0.0,
        coverage_lower=lower if good else 0.0,
    )


@lru_cache(maxsize=4096)
def rank_for_coverage(n: int, coverage: Fraction, delta: Fraction) -> int:
    """The smallest k for which accepting above g_[k+1] covers `coverage`, but for delta.

    The true coverage falls short only if k + 1 of n gates lie in the highest `coverage` share of
    the population: the smallest k with P(Bin(n, coverage) >= k + 1) <= delta. That is for a
    continuous gate. Where one value can hold much of that share, only the images strictly above
    tau are sure to lie in it, so one more of them is needed.
    """
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        short = 1.0 - binomial_p_value(middle, n, coverage)  # P(Bin(n, coverage) >= middle + 1)
        low, high = (low, middle) if short <= delta else (middle, high)
    return high


def fit_grid(
    g: Float64,
    s: Float64,
    xi: Fraction,
    alpha: Fraction,
    delta: Fraction,
    gate_grid: Sequence[float],
    set_grid: Sequence[float],
) -> Inductive:
    """Hoeffding over all pairs of grid thresholds at once, and DKW for the coverage."""
    for name, values in (("gate", g), ("nonconformity", s)):
        if len(values) and not (values.min() >= 0 and values.max() <= 1):
            raise DataError(f"{name} must lie in [0, 1] for the grid form; use form='rank'")
    n = len(g)
    taus, limits = np.sort(np.asarray(gate_grid))[::-1], np.sort(np.asarray(set_grid))
    kept = n - np.searchsorted(np.sort(g), taus, side="left")
    wide = np.flatnonzero(kept >= max(1, at_least(xi, n)))
    least = _images_for_grid(xi, alpha, delta, len(taus), len(limits))
    advice, tau, q, m, errors, lower, upper = "", _INF, -_INF, 0, 0, 0.0, 1.0
    if not len(wide):
        advice = f"No gate threshold of the grid accepts {percent(xi)} of the {n} images."
    else:
        tau, m = float(taus[wide[0]]), int(kept[wide[0]])
        room = float(np.sqrt(np.log(4 * len(taus) * len(limits) / float(delta)) / (2 * n)))
        lower = max(m / n - float(np.sqrt(np.log(4 / float(delta)) / (2 * n))), 0.0)
        beyond = m - np.searchsorted(np.sort(s[g >= tau]), limits, side="right")
        fits = np.flatnonzero(beyond / n + room <= float(alpha) * lower)
        if len(fits):
            q, errors = float(limits[fits[0]]), int(beyond[fits[0]])
            upper = (errors / n + room) / lower
        else:
            advice = f"Its bounds leave no error to allow on {n} images."
    if advice:
        advice += f" Without an error this form takes about {least:,} images; 'rank' takes fewer."
    good = not advice
    promise = (
        f"Of the images accepted, at most {percent(alpha, 6)} have a prediction set without their "
        f"true class, with {percent(1 - delta, 6)} confidence over the draw of the calibration "
        "images."
    )
    return Inductive(
        form="grid",
        method="SCRC-I grid",
        status="CERTIFIED" if good else "INFEASIBLE",
        promise=promise if good else NOTHING,
        advice=advice,
        alpha=float(alpha),
        delta=float(delta),
        thresholds={"tau": tau, "q": q} if good else {},
        n=n,
        accepted=m if good else 0,
        errors=errors,
        risk_upper=upper,
        coverage=m / n if good else 0.0,
        coverage_lower=lower if good else 0.0,
    )


def _images_for_rank(accepted: int, xi: Fraction, spare: Fraction) -> int:
    """The fewest images whose rank for the coverage accepts so many."""
    low, high = 0, accepted
    while rank_for_coverage(high, xi, spare) < accepted:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = rank_for_coverage(middle, xi, spare) >= accepted
        low, high = (low, middle) if enough else (middle, high)
    return high


def _images_for_grid(xi: Fraction, alpha: Fraction, delta: Fraction, taus: int, limits: int) -> int:
    """Solves room <= alpha (xi - slack) for n, both falling as one over its root."""
    room = np.sqrt(np.log(4 * taus * limits / float(delta)) / 2)
    slack = np.sqrt(np.log(4 / float(delta)) / 2)
    a = float(alpha)
    return int(np.ceil(((room + a * slack) / (a * float(xi))) ** 2))
