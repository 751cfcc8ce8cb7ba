"""How long each stage takes for each number of images, and what an exit that is left out saves.

In: the engines of a network with all its exits, those of the same network with its last exit
alone, and pixels of `val_select`. Out: `Times`. After an exit few images are left, and a stage
takes longer an image the fewer it gets; so every size that the runtime cuts a batch into is timed,
the engines in turn, and any other number of images is the sum of its pieces.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from cascade_calib.arrays import Float64
from cascade_calib.progress import Progress
from cascade_runtime.manifest import Decision
from cascade_runtime.preprocess import Pixels
from cascade_runtime.stages import Stages

ROUNDS = 25
MOST_S = 20.0
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of a stage by how many of a batch's B images reach it; column n is for n images.

    stages: [S, B + 1], each with the exit behind it, its own call and the decision.
    saved: [B + 1], what less it takes when the exit between two stages is left out: one head, one
    call, and the tokens handed over.
    """

    stages: Float64
    saved: Float64

    @property
    def batch(self) -> int:
        return self.stages.shape[1] - 1

    def together(self, first: int, last: int) -> Float64:
        """Stages from `first` to before `last` as one, with the exit of that: [B + 1]."""
        return self.stages[first:last].sum(axis=0) - (last - first - 1) * self.saved

    def an_image(self, kept: Sequence[int], reach: Sequence[float]) -> float:
        """Seconds an image of a cascade, in batches of B images in random order.

        Args:
            kept: the stages whose exits are kept, rising; the cascade ends in the last of them.
            reach: share of the images that go through the stages before each of these exits.
        """
        sizes, total, first = np.arange(self.batch + 1), 0.0, 0
        for exit_, share in zip(kept, reach, strict=True):
            likely = binom.pmf(sizes, self.batch, share)
            total += float(likely @ self.together(first, exit_ + 1))
            first = exit_ + 1
        return total / self.batch


def measure_times(
    cascade: tuple[Stages, Decision],
    whole: tuple[Stages, Decision],
    pixels: Pixels,
    batch: int,
    *,
    progress: Progress | None = None,
) -> Times:
    """Time the stages of `cascade`, and `whole`, which has its last exit alone.

    Medians over rounds in which both have their turn at every size. The first round is not
    counted: an engine prepares itself for every batch size that it meets.

    Args:
        cascade, whole: with decisions by which no exit answers.
        pixels: uint8 [N, H, W, 3], N at least 1; repeated where a batch needs more.
        batch: how many images arrive at a time.
    """
    sizes = sorted(size for size in cascade[0].batch_sizes if size <= batch)
    taken: dict[int, list[list[float]]] = {size: [] for size in sizes}
    rounds, turn = ROUNDS, 0
    while turn <= rounds:
        started = time.perf_counter()
        for size in sizes if turn % 2 else reversed(sizes):
            images = pixels[np.arange(size) % len(pixels)]
            if turn % 2:
                parts, one = _pass(*cascade, images), _pass(*whole, images)
            else:
                one, parts = _pass(*whole, images), _pass(*cascade, images)
            if turn:
                taken[size].append([*parts, sum(one)])
        if turn == 1:
            affordable = int(MOST_S / (time.perf_counter() - started))
            rounds = max(LEAST_ROUNDS, min(ROUNDS, affordable))
        if progress is not None:
            progress("timing the stages", turn, rounds)
        turn += 1
    median = {size: np.median(rows, axis=0) for size, rows in taken.items()}
    stages = {size: row[:-1] for size, row in median.items()}
    return times_of(stages, {size: float(row[-1]) for size, row in median.items()}, batch)


def times_of(stages: dict[int, Float64], whole: dict[int, float], batch: int) -> Times:
    """`Times` for batches of `batch`, of seconds by piece: stages [S] each, and the whole."""
    parts, one = _by_count(stages, batch), _by_count(whole, batch)
    left_out = max(1, len(parts) - 1)
    return Times(parts, np.maximum(parts.sum(axis=0) - one[0], 0.0) / left_out)


def _by_count(pieces: dict[int, Float64] | dict[int, float], batch: int) -> Float64:
    """[S, batch + 1]: seconds for each number of images, cut into pieces as the runtime does."""
    columns = [np.zeros_like(np.atleast_1d(pieces[1]), dtype=np.float64)]
    for count in range(1, batch + 1):
        size = max(size for size in pieces if size <= count)
        columns.append(columns[count - size] + pieces[size])
    return np.stack(columns, axis=1)


def _pass(stages: Stages, decision: Decision, pixels: Pixels) -> list[float]:
    """Seconds of each stage."""
    seconds: list[float] = []
    stages.forward(pixels, decision, on_stage=lambda stage, count, s: seconds.append(s))
    return seconds
