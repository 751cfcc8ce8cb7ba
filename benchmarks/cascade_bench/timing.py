"""Timing without self-deception: warm-up, a stated number of repeats, fair pairs.

In: something to call. Out: seconds, one a call, and their percentiles. A percentile here is a time
that was really measured (the nearest rank, rounded up), never one interpolated between two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Call = Callable[[int], object]
"""What is timed; it is told how many times it was called before."""

WARM_UP = 3
LEAST_P99, LEAST_P999 = 200, 2000  # so that at least two were slower
SPREAD_LIMIT = 1.3


@dataclass(frozen=True)
class Latency:
    """How long one call takes, in milliseconds, over so many repeats.

    p99_ms and p999_ms are NaN below `LEAST_P99` and `LEAST_P999` repeats: they would only be the
    slowest one under another name.
    """

    repeats: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def percentile(samples: Seconds, q: float) -> float:
    """The smallest sample that at least `q` percent of all samples do not exceed."""
    if not len(samples):
        raise ValueError("samples is empty, it has no percentile")
    rank = math.ceil(len(samples) * q / 100 - 1e-9)  # 99.9 % of 2000 is 1998, not a little more
    return float(np.sort(samples)[max(rank, 1) - 1])


def summarise(samples: Seconds) -> Latency:
    """Seconds a call to a `Latency`."""
    ms = 1000 * np.asarray(samples, dtype=np.float64)
    p50, p95 = percentile(ms, 50), percentile(ms, 95)
    p99 = percentile(ms, 99) if len(ms) >= LEAST_P99 else math.nan
    p999 = percentile(ms, 99.9) if len(ms) >= LEAST_P999 else math.nan
    return Latency(len(ms), float(ms.mean()), p50, p95, p99, p999, float(ms.max()))


def spread(samples: Seconds) -> float:
    """How uneven the machine was, of timings of the same work: the 90th over the 10th percentile.

    Unlike the slowest over the fastest it does not grow with how long one measures.
    """
    return percentile(samples, 90) / percentile(samples, 10)


def repeat(call: Call, *, seconds: float, least: int, warm_up: int = WARM_UP) -> Seconds:
    """Time `call` again and again: for about `seconds`, and at least `least` times.

    Args:
        warm_up: calls made first and not counted.
    """
    for index in range(warm_up):
        call(index)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        times.append(timed(call, len(times)))
    return np.array(times)


def interleaved(
    first: Call, second: Call, *, seconds: float, least: int, warm_up: int = 1
) -> Seconds:
    """Time two calls in pairs, one right after the other; see `in_rounds`.

    Returns:
        seconds [pairs, 2], column 0 of `first`; at least `least` pairs.
    """
    return in_rounds((first, second), seconds=seconds, least=least, warm_up=warm_up)


def in_rounds(calls: Sequence[Call], *, seconds: float, least: int, warm_up: int = 1) -> Seconds:
    """Time several calls in rounds, each once a round, so that all meet the same machine.

    Whatever slows the machine for a while slows all; the order turns round from round to round,
    since the second of two may find a warmer cache or a hotter processor.

    Returns:
        seconds [rounds, calls]; at least `least` rounds.
    """
    for index in range(warm_up):
        for call in calls:
            call(index)
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < least or time.perf_counter() < end:
        index = len(rounds)
        took = [0.0] * len(calls)
        for place in range(len(calls)) if index % 2 == 0 else reversed(range(len(calls))):
            took[place] = timed(calls[place], index)
        rounds.append(took)
    return np.array(rounds)


def timed(call: Call, index: int) -> float:
    """Seconds of one call, by the clock on the wall."""
    started = time.perf_counter()
    call(index)
    return time.perf_counter() - started
