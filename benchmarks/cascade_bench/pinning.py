"""How many threads are worth having, and whether pinning them to cores is.

In: a bundle and image files. Out: a `ThreadPoint` a number of threads, from fresh processes: once
free to run wherever the system puts them, once with `os.sched_setaffinity` on as many cores as they
have threads. The kinds take turns, the order turning with every round, so that a slow minute of the
machine is everybody's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from cascade_bench import fresh
from cascade_bench.fresh import Order, Run
from cascade_bench.ratios import Ratio, ratio_of
from cascade_bench.timing import percentile
from cascade_runtime.engines.processor import usable_cores

ROUNDS = 6  # the fewest of which there is a 95 % interval
LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class Speeds:
    """Medians over the processes: of their batch-1 p50 and p95, and of their rates from files."""

    p50_ms: float
    p95_ms: float
    images_per_s: float
    first_decision_s: float


@dataclass(frozen=True)
class ThreadPoint:
    """One number of threads; gain: the rate pinned to `cores` over the rate when free."""

    threads: int
    cores: tuple[int, ...]
    processes: int
    free: Speeds
    pinned: Speeds
    gain: Ratio


def measure(order: Order, seconds: float, rounds: int = ROUNDS) -> tuple[ThreadPoint, ...]:
    """Every number of threads that is a power of two, and all; none where nothing can be pinned.

    Args:
        order: threads and cores are replaced.
        seconds: of deciding, for everything together; starting the processes comes on top.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    cores = usable_cores()
    counts = [n for n in (2**k for k in range(len(cores).bit_length())) if n < len(cores)]
    counts.append(len(cores))
    kinds = [(n, pinned) for n in counts for pinned in (False, True)]
    share = max(LEAST_SECONDS, seconds / (rounds * len(kinds)))
    runs: dict[tuple[int, bool], list[Run]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for n, pinned in kinds if turn % 2 == 0 else reversed(kinds):
            chosen = cores[:n] if pinned else ()
            told = replace(order, threads=n, cores=chosen, seconds=share)
            runs[n, pinned].append(fresh.run(told))
    return tuple(
        _point(n, cores[:n], runs[n, False], runs[n, True], len(order.files)) for n in counts
    )


def _point(
    threads: int, cores: tuple[int, ...], free: list[Run], pinned: list[Run], images: int
) -> ThreadPoint:
    gain = ratio_of([median(r.whole_s) for r in free], [median(r.whole_s) for r in pinned], images)
    return ThreadPoint(
        threads, cores, len(free), _speeds(free, images), _speeds(pinned, images), gain
    )


def _speeds(runs: list[Run], images: int) -> Speeds:
    single = [1000 * np.array(run.single_s) for run in runs]
    return Speeds(
        p50_ms=median(percentile(times, 50) for times in single),
        p95_ms=median(percentile(times, 95) for times in single),
        images_per_s=median(images / median(run.whole_s) for run in runs),
        first_decision_s=median(run.first_decision_s for run in runs),
    )
