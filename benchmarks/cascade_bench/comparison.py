"""The cascade against the same network always run to the end.

In: a cascade and the images. Out: the ratio of their throughputs, of totals over interleaved pairs,
with its interval. Both sides are the same engines on the same images in the same batches; only the
early exits' thresholds differ, so the ratio is what exiting early is worth.
Of a two-model cascade the other side is the second model alone: nobody would run both to the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from cascade_bench.ratios import ratio_of_totals
from cascade_bench.timing import SPREAD_LIMIT, interleaved, spread
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade
from cascade_runtime.manifest import Decision, last_network
from cascade_runtime.stages import Stages

LEAST_PAIRS = 8


@dataclass(frozen=True)
class Comparison:
    """Paired timings, seconds for `images` images each, and the ratio full over cascade.

    ratio is of totals, between ratio_low and ratio_high at `confidence` (see `ratios`). spread is
    that of the always-full network's timings (see `timing`): its work is the same every time, so
    what varies is the machine.
    """

    batch: int
    images: int
    cascade_s: tuple[float, ...]
    always_full_s: tuple[float, ...]
    ratio: float
    ratio_low: float
    ratio_high: float
    confidence: float
    spread: float

    @property
    def noisy(self) -> bool:
        """Whether the machine was too uneven for the other timings to be taken as they are."""
        return self.spread > SPREAD_LIMIT


def always_full(decision: Decision) -> Decision:
    """The same decision with its early exits shut: every image goes through every stage."""
    shut = [msgspec.structs.replace(rule, tau_logit=None) for rule in decision.exits[:-1]]
    return msgspec.structs.replace(decision, exits=(*shut, decision.exits[-1]))


def full_network(cascade: Cascade) -> tuple[Stages, Decision]:
    """The last network alone and a decision that runs every image to its end."""
    stages, decision = cascade.stages, cascade.decision
    start = last_network(stages.inputs)
    if not start:
        return stages, always_full(decision)
    alone = Stages(stages.engines[start:], stages.batch_sizes, stages.inputs[start:])
    return alone, always_full(msgspec.structs.replace(decision, exits=decision.exits[start:]))


def compare(
    cascade: Cascade, work: Workload, batch: int, full_rate: float, seconds: float
) -> Comparison:
    """Time both on the same block of images, in turns; the next pair takes the next block.

    Args:
        full_rate: images a second of the always-full network, to size the block.
    """
    wanted = int(full_rate * seconds / (2 * LEAST_PAIRS) / batch)
    count = max(1, min(wanted, len(work) // batch))
    own, full = (cascade.stages, cascade.decision), full_network(cascade)

    def run(stages: Stages, decision: Decision, pair: int) -> None:
        for index in range(count):
            stages.forward(work.batch(pair * count + index, batch), decision)

    times = interleaved(
        lambda pair: run(*own, pair),
        lambda pair: run(*full, pair),
        seconds=seconds,
        least=LEAST_PAIRS,
    )
    return from_pairs(batch, batch * count, times)


def from_pairs(batch: int, images: int, times: np.ndarray) -> Comparison:
    """The figures of paired timings, seconds [pairs, 2], the cascade's in column 0."""
    found = ratio_of_totals(times[:, 1], times[:, 0], images)
    return Comparison(
        batch=batch,
        images=images,
        cascade_s=tuple(map(float, times[:, 0])),
        always_full_s=tuple(map(float, times[:, 1])),
        ratio=found.ratio,
        ratio_low=found.low,
        ratio_high=found.high,
        confidence=found.confidence,
        spread=spread(times[:, 1]),
    )
