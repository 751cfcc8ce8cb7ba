"""The toolkit's four targets, and whether this bundle on this machine meets them.

In: the limits and what was measured. Out: a `Check` each. A figure that could not be measured
(NaN) never passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade_bench.quality import Quality


@dataclass(frozen=True)
class Limits:
    """What is asked for; the defaults are the toolkit's own promise."""

    max_ms: float = 50.0
    min_rate: float = 100.0
    min_coverage: float = 0.70
    max_error: float = 0.01


@dataclass(frozen=True)
class Check:
    """One target: `value` must be at most (`at_most`) or at least `limit`, both in `unit`.

    of: what the value was measured as. unit: "ms", "images/s" or "share" (0..1).
    """

    name: str
    of: str
    value: float
    limit: float
    at_most: bool
    unit: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def judge(
    limits: Limits, *, p95_ms: float, rate: float, batch: int, quality: Quality
) -> tuple[Check, ...]:
    """The four targets, in the order in which they are always named."""
    source, x = quality.source, limits
    return (
        Check("latency", "file to decision, p95", p95_ms, x.max_ms, True, "ms"),
        Check("throughput", f"files, batch {batch}", rate, x.min_rate, False, "images/s"),
        Check("coverage", source, quality.coverage.value, x.min_coverage, False, "share"),
        Check("exit error", source, quality.error.value, x.max_error, True, "share"),
    )
