"""Which checkpoint to keep: the constraints first, then AUGRC among those that satisfy them.

In: one exit's scores on `val_select`, which answers are wrong, and the labels. Out: the threshold
at which the exit comes closest to "coverage >= c, error <= e, FNR <= f", how far that is from all
three, and an order among checkpoints. Error and FNR are those of the acted-on images (DESIGN,
"Words"). All of it is an empirical reading that steers training; the promise is made later, by
certification on images that nothing here has seen.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, scored
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError, DataError


class Constraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the exit is asked for at one threshold; (1, 1) for error and FNR asks for nothing.

    `Constraints(coverage=1, error=1, fnr=f)` is an FNR limit on everything, without deferring.
    """

    coverage: float = 0.7
    error: float = 1.0
    fnr: float = 0.2

    def __post_init__(self) -> None:
        for field in ("coverage", "error", "fnr"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"constraints.{field} is {value}; expected a share from 0 to 1, such as 0.2"
                )

    def __str__(self) -> str:
        return (
            f"coverage >= {percent(self.coverage)}, error <= {percent(self.error)} and "
            f"FNR <= {percent(self.fnr)}"
        )


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One threshold and what acting on `score >= threshold` does.

    fnr is 1 where positives exist and none is acted on: what is never found is missed.
    violation: the three excesses over the constraints, summed; 0 exactly where all hold.
    """

    threshold: float
    coverage: float
    error: float
    fnr: float
    violation: float


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint stands: its best operating point and the AUGRC of its score."""

    point: OperatingPoint
    augrc: float

    @property
    def satisfied(self) -> bool:
        """Whether one threshold meets all constraints."""
        return self.point.violation == 0


def standing(
    score: npt.ArrayLike,
    wrong: npt.ArrayLike,
    labels: npt.ArrayLike,
    constraints: Constraints,
) -> Standing:
    """Judge one score by the constraints and by AUGRC.

    Args:
        score: float [N], higher is more trusted; wrong: [N], 1 where the answer is wrong;
        labels: [N], 1 for positives.

    Raises:
        DataError: no images, a NaN, another shape or another value.
    """
    return Standing(
        point=operating_point(score, wrong, labels, constraints), augrc=augrc(score, wrong)
    )


def operating_point(
    score: npt.ArrayLike,
    wrong: npt.ArrayLike,
    labels: npt.ArrayLike,
    constraints: Constraints,
) -> OperatingPoint:
    """The widest coverage that meets all constraints; where none does, the least violation.

    Every distinct score is tried, since neither error nor FNR is monotone in coverage.
    Arguments and errors are those of `standing`.
    """
    threshold, coverage, error, fnr = _curve(score, wrong, labels)
    over = (constraints.coverage - coverage, error - constraints.error, fnr - constraints.fnr)
    violation = np.maximum(0.0, over).sum(axis=0)
    best = int(np.flatnonzero(violation == np.min(violation))[-1])  # of equals, the widest
    return OperatingPoint(
        threshold=float(threshold[best]),
        coverage=float(coverage[best]),
        error=float(error[best]),
        fnr=float(fnr[best]),
        violation=float(violation[best]),
    )


def _curve(
    score: npt.ArrayLike, wrong: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Float64, Float64, Float64, Float64]:
    """Threshold, coverage, error and FNR at each distinct score, most trusted first."""
    s, e = scored(score, wrong)
    positive = np.asarray(labels, dtype=np.float64)
    if positive.shape != s.shape or not np.isin(positive, (0.0, 1.0)).all():
        raise DataError(f"labels must be 0 or 1 for each of the {len(s)} scores")
    if not len(s):
        raise DataError("there are no images to judge a checkpoint by; val_select is empty")
    order = np.argsort(-s, kind="stable")
    s, e, positive = s[order], e[order], positive[order]
    last_of_tie = np.flatnonzero(np.append(s[1:] != s[:-1], True))
    accepted = last_of_tie + 1.0
    errors = np.cumsum(e)[last_of_tie]
    found = np.cumsum(positive)[last_of_tie]
    missed = np.cumsum(e * positive)[last_of_tie]
    none_found = 1.0 if positive.any() else 0.0
    fnr = np.where(found > 0, missed / np.maximum(found, 1.0), none_found)
    return s[last_of_tie], accepted / len(s), errors / accepted, fnr


def better(new: Standing, best: Standing | None) -> bool:
    """Whether `new` is to be kept instead of the `best` so far; an equal is not.

    One that satisfies the constraints beats one that does not. Among those that do, the lower AUGRC
    wins; among those that do not, the smaller violation, and then the lower AUGRC.
    """
    return best is None or _rank(new) < _rank(best)


def _rank(standing: Standing) -> tuple[float, float]:
    area = math.inf if math.isnan(standing.augrc) else standing.augrc
    return standing.point.violation, area


def statement(point: OperatingPoint, constraints: Constraints) -> str:
    """One or two sentences: the constraints are met, or which are not and by how much."""
    acts = (
        f"acts on {percent(point.coverage)} of val_select with {percent(point.error)} wrong and "
        f"an FNR of {percent(point.fnr)}"
    )
    if point.violation == 0:
        return f"The selected checkpoint {acts}, within {constraints}."
    misses = [
        f"{name} {percent(value)}, {100 * abs(value - limit):.3g} points {side} {percent(limit)}"
        for name, value, limit, side in (
            ("coverage", point.coverage, constraints.coverage, "below"),
            ("error", point.error, constraints.error, "above"),
            ("FNR", point.fnr, constraints.fnr, "above"),
        )
        if (value < limit if side == "below" else value > limit)
    ]
    return (
        f"No checkpoint reaches {constraints} at one threshold. The closest {acts} "
        f"({'; '.join(misses)}) and was kept. Train longer or on more images, or ask for less."
    )


def percent(share: float) -> str:
    """A share of one in percent, with three significant digits."""
    return f"{100 * share:.3g} %"
