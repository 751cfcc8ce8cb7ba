"""Interleaved rounds: in each, every contender classifies the same files once.

In: contenders, images, a batch size. Out: `Times`. Whatever slows the machine for a round slows
all of them, so ratios are of the same round. The order is drawn anew for each round: nobody always
runs behind the one whose threads are still spinning. A round takes the next images, so that all
rounds together have the mix of easy and hard ones that the images have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade_bench.compare.sample import Sample
from cascade_bench.peers.contender import Contender
from cascade_bench.timing import Seconds, timed
from cascade_bench.workload import SEED
from cascade_runtime.preprocess import Pixels

WARM_UP = 2  # calls: the second is the first that nothing is compiled in


@dataclass(frozen=True)
class Times:
    """Seconds [rounds, contenders] for `images` images in batches of `batch`; NaN: not measured.

    files: from files to decisions. engine: pixels in, outputs out.
    """

    batch: int
    images: int
    names: tuple[str, ...]
    files: Seconds
    engine: Seconds


def measure(
    contenders: Sequence[Contender],
    sample: Sample,
    batch: int,
    *,
    rounds: int,
    seconds: float,
    tell: Callable[[], None] = lambda: None,
) -> Times:
    """Time everybody at one batch size.

    Args:
        seconds: for all rounds together; a round is never less than one batch each.
        tell: called after the warm-up and after each round, while no clock runs.
    """
    cost = sum(_warm(contender, sample, batch) for contender in contenders)
    tell()
    fit = max(1, min(int(seconds / rounds / cost), len(sample) // batch))
    count = fit * batch
    order = np.random.default_rng(SEED)
    files = np.full((rounds, len(contenders)), np.nan)
    engine = files.copy()
    for number in range(rounds):
        block = sample.block(number * count, count)
        for column in order.permutation(len(contenders)):
            files[number, column], engine[number, column] = _turn(contenders[column], block, batch)
        tell()
    return Times(batch, count, tuple(c.name for c in contenders), files, engine)


def _turn(
    contender: Contender, block: tuple[Sequence[Path], Pixels], batch: int
) -> tuple[float, float]:
    """Seconds of one contender for one block: from files, and in the engine."""
    files, pixels = block
    from_files = timed(lambda _: contender.classify(files, batch), 0)
    forward = contender.forward
    if forward is None:
        return from_files, math.nan

    def engine(_: int) -> None:
        for start in range(0, len(pixels), batch):
            forward(pixels[start : start + batch])

    return from_files, timed(engine, 0)


def _warm(contender: Contender, sample: Sample, batch: int) -> float:
    """Seconds of one batch, from files and in the engine together."""
    for _ in range(WARM_UP):
        took = _turn(contender, sample.block(0, batch), batch)
    return float(np.nansum(took))
