"""The runtime's own share of the way from files to decisions: what is neither engine nor decoding.

In: a cascade of the Python runtime, and the images. Out: an `OwnShare` a batch size. Everything is
read from the same call of `Cascade.classify`, so that no two moments of the machine are compared.
Where every thread takes images of its own, a call has `TURNS` gatherings of images for each:

    whole    the call by the clock on the wall, times its threads
    idle     of it, what threads stood still at the end, when only others had work left
    engine   the calls of engines
    decode   from a file to pixels
    own      1 - (engine + decode) / (whole - idle): threads started, pixels stacked, tokens handed
             on, decisions and results, and whatever threads waited for each other on the way

Where all threads share one batch, a call is a batch and whole is the clock on the wall; decoding is
then that of the thread that took longest, since nothing else runs meanwhile.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_bench.ratios import rank
from cascade_bench.timing import Seconds, repeat
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade, Result
from cascade_runtime.engines import Divisible, Engine
from cascade_runtime.errors import ImageError
from cascade_runtime.preprocess import ImageLike, Pixels
from cascade_runtime.stages import Stages

BATCHES = (8, 32)
TURNS = 2
LEAST_CALLS = 8
WARM_UP = 2


@dataclass(frozen=True)
class OwnShare:
    """Medians over `calls`.

    own: the share that is the runtime's, in [low, high] at `confidence` by the sign test.
    idle: the share of the whole that threads had nothing left to do at its end.
    ms_per_image, engine_ms, decode_ms: milliseconds an image of the rest and of its two parts, of
        one thread where each takes images of its own.
    """

    batch: int
    calls: int
    own: float
    low: float
    high: float
    confidence: float
    ms_per_image: float
    engine_ms: float
    decode_ms: float
    idle: float


class _Clock:
    """Seconds in engines and in decoding, and when the last answer was there, by thread."""

    def __init__(self) -> None:
        self.engine, self.decode = (defaultdict[int, float](float) for _ in range(2))
        self.done: dict[int, float] = {}

    def clear(self) -> None:
        for seconds in (self.engine, self.decode, self.done):
            seconds.clear()

    def batch_done(self) -> None:
        self.done[get_ident()] = time.perf_counter()


class _Clocked:
    """An engine whose calls are clocked, and its second form where it has one."""

    def __init__(self, engine: Engine, clock: _Clock) -> None:
        self._engine, self._clock = engine, clock

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        started = time.perf_counter()
        outputs = self._engine.run(batch)
        self._clock.engine[get_ident()] += time.perf_counter() - started
        return outputs

    def side_by_side(self) -> Engine | None:
        engine = self._engine
        one = engine.side_by_side() if isinstance(engine, Divisible) else None
        return None if one is None else _Clocked(one, self._clock)


class _Watched(Cascade):
    """An open cascade whose engines and decoding are clocked."""

    def __init__(self, cascade: Cascade) -> None:
        vars(self).update(vars(cascade))
        self._clock = _Clock()
        clocked = [_Clocked(engine, self._clock) for engine in cascade.stages.engines]
        self.stages = Stages(clocked, cascade.stages.batch_sizes, cascade.stages.inputs)
        self.divided = self.workers == 1 or self.stages.side_by_side() is not None

    def _load(self, image: ImageLike, name: str) -> Pixels | ImageError:
        started = time.perf_counter()
        pixels = super()._load(image, name)
        self._clock.decode[get_ident()] += time.perf_counter() - started
        return pixels

    def _decide(
        self, names: Sequence[str], loaded: Sequence[Pixels | ImageError], stages: Stages
    ) -> list[Result]:
        results = super()._decide(names, loaded, stages)
        self._clock.batch_done()
        return results

    def clocked(self, files: Sequence[Path], batch: int) -> tuple[float, float, float, float]:
        """Seconds in engines, in decoding, idle and of the whole, of one call."""
        clock = self._clock
        clock.clear()
        started = time.perf_counter()
        self.classify(files, batch)
        wall = time.perf_counter() - started
        engine = sum(clock.engine.values())
        if not self.divided:
            return engine, max(clock.decode.values()), 0.0, wall
        last = max(clock.done.values())
        idle = sum(last - done for done in clock.done.values())
        idle += (self.workers - len(clock.done)) * (last - started)  # never had any
        return engine, sum(clock.decode.values()), idle, wall * self.workers


def measure(cascade: Cascade, work: Workload, seconds: float) -> tuple[OwnShare, ...]:
    """Every batch size, `seconds` for all of them together."""
    return tuple(at_batch(cascade, work, batch, seconds / len(BATCHES)) for batch in BATCHES)


def at_batch(cascade: Cascade, work: Workload, batch: int, seconds: float) -> OwnShare:
    """One batch size; each call takes the next images, so that all calls have the mix."""
    watched = _Watched(cascade)
    count = watched.gathered * watched.workers * TURNS if watched.divided else batch
    parts: list[tuple[float, float, float, float]] = []

    def classify(index: int) -> None:
        files = [work.files[(index * count + k) % len(work)] for k in range(count)]
        parts.append(watched.clocked(files, batch))

    repeat(classify, seconds=seconds, least=LEAST_CALLS, warm_up=WARM_UP)
    return summarise(batch, count, np.array(parts[WARM_UP:]))


def summarise(batch: int, images: int, parts: Seconds) -> OwnShare:
    """The figures of calls on so many images: seconds [calls, 4] as `_Watched.clocked` has them."""
    engine, decode, idle, whole = parts.T
    own = np.sort(1 - (engine + decode) / (whole - idle))
    k, confidence = rank(len(own))
    per_image = 1000 / images
    return OwnShare(
        batch=batch,
        calls=len(own),
        own=float(np.median(own)),
        low=float(own[k - 1]),
        high=float(own[len(own) - k]),
        confidence=confidence,
        ms_per_image=per_image * float(np.median(whole - idle)),
        engine_ms=per_image * float(np.median(engine)),
        decode_ms=per_image * float(np.median(decode)),
        idle=float(np.median(idle / whole)),
    )
