"""Exact binomial bounds, and the exact numbers that they start from.

In: integer counts and the decimals a person typed. Out: confidence bounds, p-values, and how many
labelled images a proof takes, by exact binomial sums.
CALIBRATION, "Bounds"; Clopper and Pearson 1934. Counts that follow from a decimal are computed in
`Fraction`s: in floats ceil(.55 * 100) is 56.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64
from cascade_runtime.decision import Bool
from cascade_runtime.errors import ConfigError

Counts: TypeAlias = npt.NDArray[np.integer] | npt.NDArray[np.floating]

MOST_IMAGES = 10_000_000
_NUMBER = re.compile(r"(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?|\d{1,20}/\d{1,20}")


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


def as_fraction(
    text: str | float | Fraction, name: str = "value", *, closed: bool = False
) -> Fraction:
    """The exact number that was typed, as "0.01", "1e-2" or "1/100", between 0 and 1.

    A float means its shortest decimal, which is what was typed: .55 is 11/20.

    Args:
        closed: whether 0 and 1 themselves are accepted.

    Raises:
        ConfigError: not a number, or out of range; names the field.
    """
    if isinstance(text, float):
        text = repr(float(text))  # float(): numpy's own floats do not print as decimals
    if isinstance(text, str) and not _NUMBER.fullmatch(text.strip()):
        hint = "; write a percentage as a decimal, 1% as 0.01" if "%" in text else ""
        raise ConfigError(f"{name} is {text!r}, expected a number such as 0.01{hint}")
    try:
        value = Fraction(text)
    except ZeroDivisionError as error:
        raise ConfigError(f"{name} is {text!r}, a division by zero") from error
    if not (0 <= value <= 1 if closed else 0 < value < 1):
        limits = "between 0 and 1" if closed else "above 0 and below 1"
        raise ConfigError(f"{name} is {text}, expected a number {limits}, such as 0.01")
    return value


def clopper_pearson_upper(errors: int, n: int, delta: float | Fraction) -> float:
    """The largest rate that `errors` of `n` leave plausible: exceeded with probability <= delta."""
    _check(errors, n)
    if errors == n:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(errors + 1, n - errors, 1 - float(delta)))


def clopper_pearson_lower(successes: int, n: int, delta: float | Fraction) -> float:
    """The smallest rate that `successes` of `n` leave plausible, at level 1 - delta."""
    _check(successes, n)
    if successes == 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(successes, n - successes + 1, float(delta)))


def binomial_p_value(errors: int, n: int, alpha: float | Fraction) -> float:
    """The p-value of "the risk is above alpha": P(Bin(n, alpha) <= errors); 1 when n = 0."""
    _check(errors, n)
    return float(binomial_p_values(np.array([errors]), np.array([n]), alpha)[0])


def binomial_p_values(errors: Counts, n: Counts, alpha: float | Fraction) -> Float64:
    """`binomial_p_value` element by element, float64, for counts that broadcast together.

    Counts need not be whole: between them the incomplete beta function interpolates.
    """
    from scipy.special import betainc

    e, total = np.broadcast_arrays(errors.astype(np.float64), n.astype(np.float64))
    tail = betainc(np.maximum(total - e, 1.0), e + 1.0, 1.0 - float(alpha))
    return np.asarray(np.where(e >= total, 1.0, tail), dtype=np.float64)


def least_accepted(alpha: Fraction, delta: Fraction) -> int:
    """How many accepted images, none of them wrong, certify alpha: ceil(ln delta/ln(1 - alpha))."""
    with localcontext(prec=60):
        ratio = _ln(delta) / _ln(1 - alpha)
        nearest = ratio.to_integral_value()
        if abs(ratio - nearest) < Decimal("1e-40"):  # delta is a whole power of 1 - alpha
            return int(nearest)
        return int(ratio.to_integral_value(ROUND_CEILING))


def at_least(share: Fraction, n: int) -> int:
    """ceil(share * n), exactly: the fewest of n that reach the share."""
    return -(-share.numerator * n // share.denominator)


def at_most(share: Fraction, n: int) -> int:
    """floor(share * n), exactly: the most of n that stay within the share."""
    return share.numerator * n // share.denominator


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


def _accepted_of(n: int, coverage: float) -> tuple[Int64, Float64]:
    """The counts that Bin(n, coverage) takes with any weight to speak of, and their weights."""
    from scipy.special import gammaln, xlog1py, xlogy

    if coverage >= 1:
        return np.array([n]), np.array([1.0])
    reach = 8 * np.sqrt(n * coverage * (1 - coverage)) + 10
    k = np.arange(max(0, int(n * coverage - reach)), min(n, int(n * coverage + reach)) + 1)
    log_ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return k, np.exp(log_ways + xlogy(k, coverage) + xlog1py(n - k, -coverage))


def _ln(value: Fraction) -> Decimal:
    return (Decimal(value.numerator) / Decimal(value.denominator)).ln()


def _check(part: int, n: int) -> None:
    if not 0 <= part <= n:
        raise ValueError(f"{part} of {n} is not a count")
