"""How many labelled images to collect before asking for a certificate.

In: the promise wanted (alpha, delta), the coverage and the error rate expected of the engine at
that coverage. Out: the smallest number of calibration images with which the binomial test of
`certify` passes with probability >= 90 %, by exact binomial sums. CALIBRATION, "Bounds".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np

from cascade_calib.bounds import binomial_p_values, least_accepted
from cascade_calib.metrics import Float64, Int64
from cascade_runtime.decision import Bool
from cascade_runtime.errors import ConfigError

MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Plan:
    """What to collect, and what the test will then allow.

    images: labelled images; accepted: how many of them the engine is expected to act on;
    allowed_errors: how many of `accepted` may be wrong; least_accepted: the fewest that certify
    with no error at all; probability: that the test passes with `images`.
    """

    images: int
    accepted: int
    allowed_errors: int
    least_accepted: int
    probability: float

    def to_dict(self) -> dict[str, int | float]:
        return asdict(self)


def images_needed(
    alpha: Fraction,
    delta: Fraction,
    coverage: Fraction | float,
    error: Fraction | float,
    power: float = 0.9,
) -> Plan:
    """The smallest calibration set that is certified with probability >= `power`.

    The probability is not quite monotone in the number of images (one more allowed error comes
    as a jump), so the images before the first crossing found are looked through as well.

    Args:
        coverage: expected share of images acted on, in (0, 1].
        error: expected share of wrong answers among those, in [0, alpha).

    Raises:
        ConfigError: the error is not below alpha, or more than MOST_IMAGES would be needed.
    """
    c, e = float(coverage), float(error)
    if not 0 < c <= 1:
        raise ConfigError(f"coverage is {c:g}, expected a number above 0 and at most 1")
    if not 0 <= e < alpha:
        raise ConfigError(
            f"error is {e:g}, not below alpha {float(alpha):g}: no number of images certifies "
            "that; ask for a larger alpha or a lower coverage"
        )
    least = least_accepted(alpha, delta)
    high = least
    while pass_probability(high, alpha, delta, c, e) < power:
        high *= 2
        if high > MOST_IMAGES:
            raise ConfigError(
                f"error {e:g} is so near alpha {float(alpha):g} that more than "
                f"{MOST_IMAGES:,} images would be needed; ask for a larger alpha"
            )
    low = least - 1
    while high - low > 1:
        middle = (low + high) // 2
        enough = pass_probability(middle, alpha, delta, c, e) >= power
        low, high = (low, middle) if enough else (middle, high)
    images = _first_within_a_tooth(
        max(least, high - min(int(3 / alpha), 500)), high, power, alpha, delta, c, e
    )
    accepted = int(images * c)
    allowed = int(allowed_errors(np.array([accepted]), alpha, delta)[0])
    probability = pass_probability(images, alpha, delta, c, e)
    return Plan(images, accepted, max(allowed, 0), least, probability)


def pass_probability(
    n: int, alpha: Fraction, delta: Fraction, coverage: float, error: float
) -> float:
    """P(the binomial test passes) with n images, each accepted and wrong independently."""
    accepted, weight = _accepted_of(n, coverage)
    return float(weight @ _passes(accepted, alpha, delta, error))


def _first_within_a_tooth(
    low: int,
    high: int,
    power: float,
    alpha: Fraction,
    delta: Fraction,
    coverage: float,
    error: float,
) -> int:
    """The first of low..high that passes often enough; `high` is known to."""
    least, most = _accepted_of(low, coverage)[0][0], _accepted_of(high, coverage)[0][-1]
    table = _passes(np.arange(least, most + 1), alpha, delta, error)
    for n in range(low, high):
        accepted, weight = _accepted_of(n, coverage)
        if weight @ table[accepted - least] >= power:
            return n
    return high


def _passes(accepted: Int64, alpha: Fraction, delta: Fraction, error: float) -> Float64:
    """P(the test passes) per number of accepted images."""
    allowed = allowed_errors(accepted, alpha, delta)
    few_enough = binomial_p_values(np.maximum(allowed, 0), accepted, error)
    return np.where(allowed >= 0, few_enough, 0.0)


def allowed_errors(accepted: Int64, alpha: Fraction, delta: Fraction) -> Int64:
    """The most errors e with BinCDF(e; accepted, alpha) <= delta, per entry; -1: not even none."""
    from scipy.special import ndtri

    a = float(alpha)
    guess = accepted * a + float(ndtri(float(delta))) * np.sqrt(accepted * a * (1 - a))
    most = np.maximum(np.floor(guess), -1).astype(np.int64)

    def passes(errors: Int64) -> Bool:
        p = binomial_p_values(np.maximum(errors, 0), accepted, alpha)
        return np.asarray(p <= float(delta), dtype=np.bool_)

    while (more := passes(most + 1)).any():
        most += more
    while (less := (most >= 0) & ~passes(most)).any():
        most -= less
    return np.asarray(most, dtype=np.int64)


def _accepted_of(n: int, coverage: float) -> tuple[Int64, Float64]:
    """The counts that Bin(n, coverage) takes with any weight to speak of, and their weights."""
    from scipy.special import gammaln, xlog1py, xlogy

    if coverage >= 1:
        return np.array([n]), np.array([1.0])
    reach = 8 * np.sqrt(n * coverage * (1 - coverage)) + 10
    k = np.arange(max(0, int(n * coverage - reach)), min(n, int(n * coverage + reach)) + 1)
    log_ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return k, np.exp(log_ways + xlogy(k, coverage) + xlog1py(n - k, -coverage))
