"""From times to what is said of them: rates, and how many times as fast the cascade is.

In: `Times`. Out: a `Batch`. A ratio is the median of the rounds' ratios, with the lowest and the
highest round beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cascade_bench.compare.rounds import Times
from cascade_bench.comparison import SPREAD_LIMIT
from cascade_bench.peers.own import ALWAYS_FULL, CASCADE, OWN
from cascade_bench.timing import Seconds


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the cascade is: median over the rounds, lowest, highest."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """One contender: images a second (median), and the cascade beside it.

    files: from files to decisions. engine: in the engine alone; NaN where it cannot be called so.
    """

    name: str
    files: float
    engine: float
    over_files: Ratio
    over_engine: Ratio


@dataclass(frozen=True)
class Batch:
    """All contenders at one batch size, the fastest from files first.

    images: of a round. spread: the slowest over the fastest round of the always-full engines, whose
    work is the same every time.
    """

    batch: int
    rounds: int
    images: int
    spread: float
    speeds: tuple[Speed, ...]

    @property
    def noisy(self) -> bool:
        """Whether the machine was too uneven for single rates to be taken as they are."""
        return self.spread > SPREAD_LIMIT

    def of(self, name: str) -> Speed:
        """One contender's."""
        return next(speed for speed in self.speeds if speed.name == name)

    @property
    def best_peer(self) -> str | None:
        """Whom the cascade is ahead of by the least, of others than its own engines."""
        peers = [s for s in self.speeds if s.name not in OWN]
        return min(peers, key=lambda s: s.over_files.value).name if peers else None


def summarise(times: Times) -> Batch:
    """The figures of one batch size."""
    own = times.names.index(CASCADE)
    speeds = [
        Speed(
            name=name,
            files=float(times.images / np.median(times.files[:, column])),
            engine=float(times.images / np.median(times.engine[:, column])),
            over_files=_ratio(times.files[:, column], times.files[:, own]),
            over_engine=_ratio(times.engine[:, column], times.engine[:, own]),
        )
        for column, name in enumerate(times.names)
    ]
    same = times.engine[:, times.names.index(ALWAYS_FULL)]
    return Batch(
        batch=times.batch,
        rounds=len(times.files),
        images=times.images,
        spread=float(same.max() / same.min()),
        speeds=tuple(sorted(speeds, key=lambda speed: -speed.files)),
    )


def _ratio(theirs: Seconds, ours: Seconds) -> Ratio:
    each = theirs / ours
    if np.isnan(each).any():
        return Ratio(math.nan, math.nan, math.nan)
    return Ratio(float(np.median(each)), float(each.min()), float(each.max()))
