"""The roofline model: what rate a machine allows to work of a given arithmetic intensity.

In: a peak, FLOP/s, and a bandwidth, bytes/s. Out: attainable rates and least times. Williams,
Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009. A
multiply and an add are two FLOPs, of integers too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Roof:
    """`peak` in FLOP/s, `bandwidth` in bytes/s; both above 0."""

    peak: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not (self.peak > 0 and self.bandwidth > 0):
            raise ValueError(f"{self}: peak and bandwidth must be above 0")

    @property
    def ridge(self) -> float:
        """The intensity, FLOPs a byte, from which the peak limits and no longer the memory."""
        return self.peak / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """The highest rate, FLOP/s, of work that does `intensity` FLOPs a byte."""
        return min(self.peak, intensity * self.bandwidth)

    def least_seconds(self, flops: float, traffic: float) -> float:
        """The shortest time for `flops` FLOPs and `traffic` bytes, the two overlapping."""
        return max(flops / self.peak, traffic / self.bandwidth)
