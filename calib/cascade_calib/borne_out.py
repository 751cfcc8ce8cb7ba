"""Is a promise borne out by counts on new images?

In: what was promised, and a count among new images. Out: one word: "held" where the share keeps
to the promise, "not contradicted" where it does not but the promise would still give such a count
in more than 5 % of cases, else "contradicted". Where nothing was counted nothing is held.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from cascade_calib.bounds import (
    as_fraction,
    at_most,
    clopper_pearson_lower,
    clopper_pearson_upper,
)
from cascade_runtime.manifest import Certificate

Held = Literal["held", "not contradicted", "contradicted", "no promise", "nothing to judge"]
CHANCE = Fraction(1, 20)


def rate_held(certificate: Certificate, part: int, of: int, promised: float) -> Held:
    """Of a rate that is promised to be at most so large for all but delta of calibrations."""
    if certificate.status != "CERTIFIED":
        return "no promise"
    if not of:
        return "nothing to judge"
    if part <= promised * of:
        return "held"
    low = clopper_pearson_lower(part, of, CHANCE)
    return "not contradicted" if low <= promised else "contradicted"


def set_risk_held(certificate: Certificate, part: int, of: int) -> Held:
    """Of the set risk. SCRC-T promises its mean: the risk of one calibration lies about alpha.

    With b + 1 = floor((m + 1) alpha) of m selected images it is Beta(b + 1, m - b) distributed, so
    the misses among new images are beta-binomial (Vovk, arXiv 1209.2673, for split conformal).
    """
    found = rate_held(certificate, part, of, certificate.alpha)
    if found != "contradicted" or certificate.delta is not None or certificate.sets is None:
        return found
    from scipy.stats import betabinom

    m = certificate.sets.accepted
    allowed = at_most(as_fraction(certificate.alpha, "alpha"), m + 1)
    by_chance = float(betabinom.sf(part - 1, of, allowed, m + 1 - allowed))
    return "not contradicted" if by_chance > CHANCE else "contradicted"


def coverage_held(certificate: Certificate, part: int, of: int) -> Held | None:
    """Of the share of images accepted, which only SCRC-I promises; None under other policies."""
    if certificate.sets is None or certificate.delta is None:
        return None
    if certificate.status != "CERTIFIED":
        return "no promise"
    floor = certificate.coverage_floor
    if not of or part >= floor * of:
        return "held" if of else "nothing to judge"
    high = clopper_pearson_upper(part, of, CHANCE)
    return "not contradicted" if high >= floor else "contradicted"
