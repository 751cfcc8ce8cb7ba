"""How long one image takes, alone: from its file to a decision, and in the engines only.

In: a cascade, who answers for it, and the images, taken in turn, so that early and late exits are
mixed as in the data. Out: a `Latency` of each, timed in pairs on the same image, so that their
difference is decoding and not the hour of the day. Files are read through the system's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascade_bench.timing import WARM_UP, Latency, interleaved, summarise
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade

LEAST = 20


@dataclass(frozen=True)
class Latencies:
    """Batch 1: `decision` from the bytes of a file to a `Result`, `engine` from pixels.

    warm_up: calls of each that came first and were not counted.
    """

    decision: Latency
    engine: Latency
    warm_up: int


def measure(cascade: Cascade, answering: Cascade, work: Workload, seconds: float) -> Latencies:
    """`Cascade.classify([path])` as a program with one image would call it, and `Stages.forward`.

    Args:
        answering: who is asked for decisions, `cascade` or libcascade on the same bundle.
        seconds: for both together.
    """
    decision = cascade.decision
    times = interleaved(
        lambda index: answering.classify([work.files[index % len(work)]]),
        lambda index: cascade.stages.forward(work.batch(index, 1), decision),
        seconds=seconds,
        least=LEAST,
        warm_up=WARM_UP,
    )
    return Latencies(summarise(times[:, 0]), summarise(times[:, 1]), WARM_UP)
