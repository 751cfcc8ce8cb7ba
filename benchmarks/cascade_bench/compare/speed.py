"""From times to what is said of them: rates, and how many times as fast the cascade is.

In: `Times`. Out: a `Batch`. Rounds have different images, so rates and ratios are of totals (see
`ratios`): the median round of a few images would be an easy one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cascade_bench.compare.rounds import Times
from cascade_bench.peers.own import ALWAYS_FULL, CASCADE, OWN
from cascade_bench.ratios import ratio_of_totals
from cascade_bench.timing import SPREAD_LIMIT, Seconds, spread


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the cascade is, with an interval at `confidence`; 0: it has none."""

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Speed:
    """One contender: images a second, and the cascade beside it.

    files: from files to decisions. engine: in the engine alone; NaN where it cannot be called so.
    files_s, engine_s: seconds of each round.
    """

    name: str
    files: float
    engine: float
    over_files: Ratio
    over_engine: Ratio
    files_s: tuple[float, ...]
    engine_s: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """All contenders at one batch size, the fastest from files first.

    images: of a round. spread: of the rounds of the always-full engines (see `timing`), whose work
    is the same every time.
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
            files=float(times.images / times.files[:, column].mean()),
            engine=float(times.images / times.engine[:, column].mean()),
            over_files=_ratio(times.files[:, column], times.files[:, own], times.images),
            over_engine=_ratio(times.engine[:, column], times.engine[:, own], times.images),
            files_s=tuple(map(float, times.files[:, column])),
            engine_s=tuple(map(float, times.engine[:, column])),
        )
        for column, name in enumerate(times.names)
    ]
    same = times.engine[:, times.names.index(ALWAYS_FULL)]
    return Batch(
        batch=times.batch,
        rounds=len(times.files),
        images=times.images,
        spread=spread(same),
        speeds=tuple(sorted(speeds, key=lambda speed: -speed.files)),
    )


def _ratio(theirs: Seconds, ours: Seconds, images: int) -> Ratio:
    if np.isnan(theirs / ours).any():
        return Ratio(math.nan, math.nan, math.nan, 0.0)
    found = ratio_of_totals(theirs, ours, images)
    return Ratio(found.ratio, found.low, found.high, found.confidence)
