"""What a fitted promise looks like to a program: the type that every method here returns.

In: what one of `certify`, `scrc`, `crc` or `sgr` found on labelled scores. Out: a `Result`, which
says what is promised, with which thresholds, and from which counts. A bundle carries the fuller
`manifest.Certificate`, which is also tied to engines; a `Result` is about plain arrays of scores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_calib.bounds import as_fraction
from cascade_calib.metrics import Float64
from cascade_runtime.errors import ConfigError, DataError
from cascade_runtime.manifest import Status

NOTHING = "No promise could be proven."


@dataclass(frozen=True, kw_only=True)
class Result:
    """One promise about scores, or why there is none.

    method: its name; promise: one English sentence; advice: what would make an infeasible request
    feasible, or an empty promise mean something, else "".
    thresholds: by name; empty where nothing may be accepted.
    n: calibration images; accepted: of them, by the thresholds; errors: wrong among these.
    risk_upper: bound on the risk, at confidence 1 - delta, or in expectation where delta is None.
    coverage: accepted / n; coverage_lower: its bound, likewise.
    """

    method: str
    status: Status
    promise: str
    advice: str
    alpha: float
    delta: float | None
    thresholds: dict[str, float]
    n: int
    accepted: int
    errors: int
    risk_upper: float
    coverage: float
    coverage_lower: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: infinite thresholds as the words "inf" and "-inf"."""
        plain = asdict(self)
        plain["thresholds"] = {
            name: value if np.isfinite(value) else str(value)
            for name, value in self.thresholds.items()
        }
        return plain


def paired(first: npt.ArrayLike, second: npt.ArrayLike, names: str) -> tuple[Float64, Float64]:
    """Two float64 arrays [n] that belong together; +-inf are ordinary values.

    Raises:
        DataError: another shape, or a NaN.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(f"{names} have shapes {a.shape} and {b.shape}; both must be [n]")
    if bad := int((np.isnan(a) | np.isnan(b)).sum()):
        raise DataError(f"{names} hold NaN for {bad} of {len(a)} images; remove those images")
    return a, b


def as_coverage(value: str | float | Fraction, name: str = "coverage") -> Fraction:
    """A share of images to accept, above 0 and at most 1.

    Raises:
        ConfigError: out of that range.
    """
    coverage = as_fraction(value, name, closed=True)
    if not coverage:
        raise ConfigError(f"{name} is 0, expected a number above 0 and at most 1, such as 0.7")
    return coverage
