"""Certified acting for any scores: the risk of what a model or a cascade acts on, proven.

In: scores and errors of calibration images, and a path of thresholds fixed without them. Out: a
`Result` with the cheapest vector of the path that is proven, by fixed-sequence exact binomial
tests. A bundle is certified by `certify_target`, which proposes the path as well and ties the proof
to engines. CALIBRATION, "Certifying what is acted on"; Learn-then-Test, arXiv 2110.01052.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cascade_calib import words
from cascade_calib.bounds import (
    as_fraction,
    at_least,
    binomial_p_values,
    clopper_pearson_lower,
    clopper_pearson_upper,
    least_accepted,
)
from cascade_calib.metrics import Float64, Int64
from cascade_calib.path import METHOD, Request, cheapest_covering, passed_first
from cascade_calib.result import NOTHING, Result
from cascade_runtime.decision import Bool
from cascade_runtime.errors import ConfigError, DataError

__all__ = ["Request", "certify"]

_CELLS = 4_000_000  # vectors x images held at once


def certify(
    scores: npt.ArrayLike,
    errors: npt.ArrayLike,
    path: npt.ArrayLike,
    alpha: str | float | Fraction,
    delta: str | float | Fraction,
    *,
    coverage: str | float | Fraction = 0,
    positive: npt.ArrayLike | None = None,
    fnr: str | float | Fraction | None = None,
) -> Result:
    """Prove the risk of a cascade, or of one model, from its scores alone.

    An exit answers where score >= threshold; the first that answers is final. The vectors of the
    path are tested in their order, each over all images that the whole cascade acts on, until one
    fails; of those that passed, the last that covers enough is kept.

    Args:
        scores: [n] or [n, S], one column an exit, higher is more trusted; a NaN never answers.
        errors: [n] or [n, S], 1 where that exit's answer is wrong.
        path: [C] or [C, S] thresholds, safest first, +inf: never answers. It must not have been
            chosen by looking at these images: take it from others.
        alpha, delta: risk <= alpha but for delta of the calibration sets.
        coverage: the least share of images to act on.
        positive: [n], 1 where the true class is 1; needed with `fnr`.
        fnr: also promise that of the positives acted on at most so many are missed; risk and FNR
            are then each tested at delta / 2, and hold both at once.

    Returns:
        A `Result` with threshold "tau", or "tau_0" and so on where there are several exits.

    Raises:
        DataError: shapes that do not match, an error that is neither 0 nor 1, a NaN in the path.
        ConfigError: a number out of range, or `fnr` without `positive`.
    """
    request = Request(
        as_fraction(alpha, "alpha"),
        as_fraction(delta, "delta"),
        as_fraction(coverage, "coverage", closed=True),
        fnr=None if fnr is None else as_fraction(fnr, "fnr"),
    )
    s, wrong, tau, is_positive = _scored(scores, errors, path, positive, request)
    k, e, k1, e1 = _counts(s, wrong, tau, is_positive)
    p = binomial_p_values(e, k, request.alpha)
    if request.fnr is not None:
        p = np.maximum(p, binomial_p_values(e1, k1, request.fnr))
    passed = passed_first(p, request.share)
    chosen = cheapest_covering(k[:passed], request.coverage, len(s))
    advice = "" if chosen is not None else _advice(request, passed, k, e, len(s))
    return _as_result(request, tau, chosen, k, e, len(s), advice)


def _counts(
    scores: Float64, wrong: Bool, tau: Float64, positive: Bool
) -> tuple[Int64, Int64, Int64, Int64]:
    """Per vector: acted on, wrong among these, positives among these, missed; int64 [C] each."""
    if tau.shape[1] == 1:  # one exit: count in sorted scores
        known = scores[:, 0] == scores[:, 0]
        kinds = (known, wrong[:, 0], positive, wrong[:, 0] & positive)
        ordered = [np.sort(scores[known & kind, 0]) for kind in kinds]
        k, e, k1, e1 = (len(x) - np.searchsorted(x, tau[:, 0]) for x in ordered)
        return k, e, k1, e1
    n, step = len(scores), max(1, _CELLS // max(1, len(scores)))
    counts = np.zeros((4, len(tau)), dtype=np.int64)
    for start in range(0, len(tau), step):
        rows = slice(start, start + step)
        pending = np.ones((len(tau[rows]), n), dtype=np.bool_)
        for stage in range(tau.shape[1]):
            answered = pending & (scores[:, stage] >= tau[rows, stage, None])
            missing = answered & wrong[:, stage]
            counts[0, rows] += answered.sum(axis=1)
            counts[1, rows] += missing.sum(axis=1)
            if positive.any():
                counts[2, rows] += (answered & positive).sum(axis=1)
                counts[3, rows] += (missing & positive).sum(axis=1)
            pending &= ~answered
    return counts[0], counts[1], counts[2], counts[3]


def _scored(
    scores: npt.ArrayLike,
    errors: npt.ArrayLike,
    path: npt.ArrayLike,
    positive: npt.ArrayLike | None,
    request: Request,
) -> tuple[Float64, Bool, Float64, Bool]:
    """The inputs as [n, S], [n, S], [C, S] and [n]."""
    s, e, tau = (np.asarray(x, dtype=np.float64) for x in (scores, errors, path))
    s, e, tau = (x[:, None] if x.ndim == 1 else x for x in (s, e, tau))
    if not (
        s.ndim == e.ndim == tau.ndim == 2 and s.shape == e.shape and tau.shape[1:] == s.shape[1:]
    ):
        raise DataError(
            f"scores {s.shape}, errors {e.shape} and path {tau.shape} do not match; expected "
            "[n, S], [n, S] and [C, S]"
        )
    if not np.isin(e, (0.0, 1.0)).all():
        raise DataError("errors must be 0 or 1 for every image")
    if np.isnan(tau).any():
        raise DataError("path holds NaN; write +inf for an exit that never answers")
    if request.fnr is not None and positive is None:
        raise ConfigError("fnr is asked for without `positive`, which images are of class 1")
    truth = np.zeros(len(s)) if positive is None else np.asarray(positive, dtype=np.float64)
    if truth.shape != (len(s),) or not np.isin(truth, (0.0, 1.0)).all():
        raise DataError(f"positive must be 0 or 1 for each of the {len(s)} images")
    return s, e == 1, tau, truth == 1


def _as_result(
    request: Request,
    tau: Float64,
    chosen: int | None,
    accepted: Int64,
    errors: Int64,
    n: int,
    advice: str,
) -> Result:
    good = chosen is not None
    k, e = (int(accepted[chosen]), int(errors[chosen])) if good else (0, 0)
    names = ["tau"] if tau.shape[1] == 1 else [f"tau_{i}" for i in range(tau.shape[1])]
    values = [float(x) for x in tau[chosen]] if good else []
    return Result(
        method=METHOD,
        status="CERTIFIED" if good else "INFEASIBLE",
        promise=words.promise(request, "that are acted on") if good else NOTHING,
        advice=advice,
        alpha=float(request.alpha),
        delta=float(request.delta),
        thresholds=dict(zip(names, values, strict=False)),
        n=n,
        accepted=k,
        errors=e,
        risk_upper=clopper_pearson_upper(e, k, request.share),
        coverage=k / n if n else 0.0,
        coverage_lower=clopper_pearson_lower(k, n, request.share),
    )


def _advice(request: Request, passed: int, accepted: Int64, errors: Int64, n: int) -> str:
    """Why nothing was proven, in one or two sentences."""
    if not len(accepted):
        return "The path is empty; propose thresholds on other images first."
    least = least_accepted(request.alpha, request.share)
    if passed:
        return (
            f"{passed} of {len(accepted)} vectors are proven, and act on at most "
            f"{int(accepted[:passed].max())} of {n} images; {at_least(request.coverage, n)} were "
            "asked for. Ask for less coverage, or label more images."
        )
    k, e = int(accepted[0]), int(errors[0])
    said = f"The first vector acts on {k} images and is wrong on {e}; "
    if k < least:
        return f"{said}a proof takes {least:,} even without an error. Label more images."
    upper = float(words.human_alpha(clopper_pearson_upper(e, k, request.share)))
    return f"{said}start the path safer, or ask for an alpha of {upper:g} on fresh images."
