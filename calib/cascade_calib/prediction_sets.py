"""Prediction sets over the images a gate accepts, as SCRC decides them at run time.

In: thresholds that `scrc` fitted. Out: which images are accepted, and which classes are in the
set of each, in a fixed number of comparisons an image. CALIBRATION, "SCRC".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_calib.metrics import Float64
from cascade_calib.result import Result
from cascade_runtime.decision import Bool

Form = Literal["rank", "grid"]
_INF = float("inf")


class Selective(Result):
    """What SCRC-T and SCRC-I have in common."""

    @property
    def tau(self) -> float:
        """The gate threshold; +inf when nothing may be accepted."""
        return self.thresholds.get("tau", _INF)

    def accepts(self, gate: npt.ArrayLike) -> Bool:
        """Where an image is accepted, bool like `gate`; a NaN never is."""
        raise NotImplementedError

    def limit(self, gate: npt.ArrayLike) -> Float64:
        """The largest nonconformity that is in the set of an image accepted with this gate."""
        raise NotImplementedError

    def prediction_set(self, gate: npt.ArrayLike, nonconformity: npt.ArrayLike) -> Bool:
        """bool [B, classes]: which classes are in the set; none for an image not accepted.

        Args:
            gate: [B].
            nonconformity: [B, classes], 1 - probability of each class; a NaN is never in.
        """
        s = np.asarray(nonconformity, dtype=np.float64)
        inside = s <= self.limit(gate)[:, None]
        return np.asarray(inside & self.accepts(gate)[:, None], dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class Transductive(Selective):
    """SCRC-T as three numbers: accept g >= tau; the set's limit is q_above or, at tau, q_at."""

    @property
    def q_above(self) -> float:
        """The limit where the gate is above tau."""
        return self.thresholds["q_above"]

    @property
    def q_at(self) -> float:
        """The limit where the gate is exactly tau."""
        return self.thresholds["q_at"]

    def accepts(self, gate: npt.ArrayLike) -> Bool:
        return np.asarray(np.asarray(gate, dtype=np.float64) >= self.tau, dtype=np.bool_)

    def limit(self, gate: npt.ArrayLike) -> Float64:
        above = np.asarray(gate, dtype=np.float64) > self.tau
        return np.where(above, self.q_above, self.q_at)


@dataclass(frozen=True, kw_only=True)
class Inductive(Selective):
    """SCRC-I: accept g > tau (rank) or g >= tau (grid); the set's limit is q."""

    form: Form

    @property
    def q(self) -> float:
        """The limit of the set; -inf, so that no class is in it, when nothing is proven."""
        return self.thresholds.get("q", -_INF)

    def accepts(self, gate: npt.ArrayLike) -> Bool:
        g = np.asarray(gate, dtype=np.float64)
        if self.status != "CERTIFIED":
            return np.zeros(g.shape, dtype=np.bool_)
        return np.asarray(g > self.tau if self.form == "rank" else g >= self.tau, dtype=np.bool_)

    def limit(self, gate: npt.ArrayLike) -> Float64:
        return np.full(np.shape(gate), self.q)


class SetFigures(NamedTuple):
    """Shares among the accepted images; NaN where there is none."""

    risk: float
    ambiguous: float
    singleton_error: float


def set_figures(members: npt.ArrayLike, labels: npt.ArrayLike, accepted: Bool) -> SetFigures:
    """Set risk, and what it hides: ambiguous sets, and errors of the single answers.

    Args:
        members: bool [B, classes], of `prediction_set`; labels: [B]; accepted: bool [B].
    """
    inside, y = np.asarray(members, dtype=np.bool_)[accepted], np.asarray(labels)[accepted]
    if not len(y):
        return SetFigures(float("nan"), float("nan"), float("nan"))
    missed = ~inside[np.arange(len(y)), y.astype(np.intp)]
    size = inside.sum(axis=1)
    single = missed[size == 1]
    error = float(single.mean()) if len(single) else float("nan")
    return SetFigures(float(missed.mean()), float((size > 1).mean()), error)
