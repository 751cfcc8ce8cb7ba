"""The runtime's own share of the way from files to decisions: what is neither engine nor decoding.

In: a cascade of the Python runtime, and the images. Out: an `OwnShare` a batch size. Everything is
read from the same call of `Cascade.classify` on one batch of files, so that no two moments of the
machine are compared, and with the bundle's own number of threads:

    whole    the call, by the clock on the wall
    engine   the calls of engines within it
    decode   from a file to pixels, within it; of threads that share the batch, the one that took
             longest, since nothing else runs meanwhile
    own      1 - (engine + decode) / whole: threads started and waited for, pixels stacked, tokens
             handed on, decisions and results
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_bench.ratios import rank
from cascade_bench.timing import Seconds, repeat
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade
from cascade_runtime.engines import Engine
from cascade_runtime.errors import ImageError
from cascade_runtime.preprocess import ImageLike, Pixels
from cascade_runtime.stages import Stages

BATCHES = (8, 32)
LEAST_CALLS = 8
WARM_UP = 2


@dataclass(frozen=True)
class OwnShare:
    """Medians over `calls` of one batch each.

    own: the share that is the runtime's, in [low, high] at `confidence` by the sign test.
    ms_per_image, engine_ms, decode_ms: milliseconds an image of the whole and of its two parts.
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


class _Clocked:
    """An engine that adds up the seconds that it takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = 0.0

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        started = time.perf_counter()
        outputs = self._engine.run(batch)
        self.seconds += time.perf_counter() - started
        return outputs


class _Watched(Cascade):
    """An open cascade whose engines and decoding are clocked."""

    def __init__(self, cascade: Cascade) -> None:
        vars(self).update(vars(cascade))
        self._clocked = [_Clocked(engine) for engine in cascade.stages.engines]
        self.stages = Stages(self._clocked, cascade.stages.batch_sizes, cascade.stages.inputs)
        self._decoding: dict[int, float] = defaultdict(float)  # seconds, by thread

    def _load(self, image: ImageLike, name: str) -> Pixels | ImageError:
        started = time.perf_counter()
        pixels = super()._load(image, name)
        self._decoding[get_ident()] += time.perf_counter() - started
        return pixels

    def spent(self) -> tuple[float, float]:
        """Seconds in engines and in decoding since this was last asked."""
        found = (
            sum(engine.seconds for engine in self._clocked),
            max(self._decoding.values(), default=0.0),
        )
        self._decoding.clear()
        for engine in self._clocked:
            engine.seconds = 0.0
        return found


def measure(cascade: Cascade, work: Workload, seconds: float) -> tuple[OwnShare, ...]:
    """Every batch size, `seconds` for all of them together."""
    return tuple(at_batch(cascade, work, batch, seconds / len(BATCHES)) for batch in BATCHES)


def at_batch(cascade: Cascade, work: Workload, batch: int, seconds: float) -> OwnShare:
    """One batch size; each call takes the next images, so that all calls have the mix."""
    watched = _Watched(cascade)
    parts: list[tuple[float, float]] = []

    def classify(index: int) -> None:
        files = [work.files[(index * batch + k) % len(work)] for k in range(batch)]
        watched.classify(files, batch)
        parts.append(watched.spent())

    whole = repeat(classify, seconds=seconds, least=LEAST_CALLS, warm_up=WARM_UP)
    return summarise(batch, whole, np.array(parts[WARM_UP:]))


def summarise(batch: int, whole: Seconds, parts: Seconds) -> OwnShare:
    """The figures of seconds [calls] and [calls, 2], in engines and in decoding."""
    own = np.sort(1 - parts.sum(axis=1) / whole)
    k, confidence = rank(len(own))
    per_image = 1000 / batch
    return OwnShare(
        batch=batch,
        calls=len(own),
        own=float(np.median(own)),
        low=float(own[k - 1]),
        high=float(own[len(own) - k]),
        confidence=confidence,
        ms_per_image=per_image * float(np.median(whole)),
        engine_ms=per_image * float(np.median(parts[:, 0])),
        decode_ms=per_image * float(np.median(parts[:, 1])),
    )
