"""Images a second: the engines over batch sizes, and whole files through `classify`.

In: a cascade and the images. Out: a `Rate` a batch size, of the cascade and of the same network
always run to the end, timed in pairs on the same images; and the rate from files to decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_bench.comparison import full_network
from cascade_bench.ratios import Ratio, ratio_of_totals
from cascade_bench.timing import interleaved, repeat
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LEAST_PASSES = 3


@dataclass(frozen=True)
class Rate:
    """Images a second at one batch size, over `repeats` batches each.

    ratio: the cascade's rate over that of the network always run to the end, of paired batches.
    """

    batch: int
    repeats: int
    cascade: float
    always_full: float
    ratio: Ratio


@dataclass(frozen=True)
class FileRate:
    """Images a second from files to decisions, over `repeats` passes of `images` each, which walk
    through all images."""

    batch: int
    images: int
    repeats: int
    images_per_s: float


def at_batch(cascade: Cascade, work: Workload, batch: int, seconds: float) -> Rate:
    """Engine-only throughput at one batch size; total images over total seconds."""
    stages, decision = cascade.stages, cascade.decision
    alone, full = full_network(cascade)
    times = interleaved(
        lambda index: stages.forward(work.batch(index, batch), decision),
        lambda index: alone.forward(work.batch(index, batch), full),
        seconds=seconds,
        least=LEAST_PASSES,
    )
    rates = batch * len(times) / times.sum(axis=0)
    ratio = ratio_of_totals(times[:, 1], times[:, 0], batch)
    return Rate(batch, len(times), float(rates[0]), float(rates[1]), ratio)


def sweep(cascade: Cascade, work: Workload, seconds: float) -> tuple[Rate, ...]:
    """`at_batch` over the batch sizes, `seconds` for all of them together.

    It ends early once one pass of the next size would take longer than its share: a big network
    on a small machine is at its best rate long before batch 128, and would take minutes to show it.
    """
    share = seconds / len(BATCHES)
    rates: list[Rate] = []
    for batch in BATCHES:
        if rates and _pass_seconds(rates[-1], batch) > share > 0:
            break
        rates.append(at_batch(cascade, work, batch, share))
    return tuple(rates)


def _pass_seconds(rate: Rate, batch: int) -> float:
    """How long both sides of a pair will take for `batch` images, going by an earlier rate."""
    return batch / rate.cascade + batch / rate.always_full


def best(rates: Sequence[Rate]) -> Rate:
    """The batch size at which the cascade is quickest."""
    return max(rates, key=lambda rate: rate.cascade)


def from_files(
    cascade: Cascade, work: Workload, batch: int, rate: float, seconds: float
) -> FileRate:
    """`Cascade.classify` on many files at once, a pass being as many as half the time allows.

    Args:
        rate: images a second in the engines alone, to size a pass.
    """
    wanted = max(1, int(rate * seconds / (2 * LEAST_PASSES * batch))) * batch
    images = min(wanted, max(batch, len(work) // batch * batch))

    def one_pass(number: int) -> None:
        start = number * images
        cascade.classify(
            [work.files[index % len(work)] for index in range(start, start + images)], batch
        )

    times = repeat(one_pass, seconds=seconds, least=LEAST_PASSES, warm_up=1)
    return FileRate(batch, images, len(times), images / float(times.mean()))
