"""Exact binomial bounds, and the exact numbers that they start from.

In: integer counts and the decimals a person typed. Out: confidence bounds and p-values.
CALIBRATION, "Bounds"; Clopper and Pearson 1934. Counts that follow from a decimal are computed in
`Fraction`s: in floats ceil(.55 * 100) is 56.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cascade_calib.metrics import Float64
from cascade_runtime.errors import ConfigError

Counts: TypeAlias = npt.NDArray[np.integer] | npt.NDArray[np.floating]

_NUMBER = re.compile(r"(\d{1,20}(\.\d{0,20})?|\.\d{1,20})([eE][+-]?\d{1,2})?|\d{1,20}/\d{1,20}")


def as_fraction(text: str | Fraction, name: str = "value", *, closed: bool = False) -> Fraction:
    """The exact number that was typed, as "0.01", "1e-2" or "1/100", between 0 and 1.

    Args:
        closed: whether 0 and 1 themselves are accepted.

    Raises:
        ConfigError: not a number, or out of range; names the field.
    """
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


def _ln(value: Fraction) -> Decimal:
    return (Decimal(value.numerator) / Decimal(value.denominator)).ln()


def _check(part: int, n: int) -> None:
    if not 0 <= part <= n:
        raise ValueError(f"{part} of {n} is not a count")
