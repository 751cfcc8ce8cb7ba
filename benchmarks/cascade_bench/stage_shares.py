"""Where images stop and where the time goes, stage by stage.

In: a cascade and the images. Out: a `StageShare` a stage, from `Stages.forward`'s own callback, so
that a stage's time holds its engine, its decision and nothing of the others.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade


@dataclass(frozen=True)
class StageShare:
    """One stage: images that reached it, were final there, were acted on there; its seconds.

    The shares are of all images and of all stages' time.
    """

    images: int
    final: int
    acted: int
    seconds: float
    image_share: float
    final_share: float
    time_share: float

    @property
    def ms_per_image(self) -> float:
        """Milliseconds for an image that reaches the stage; NaN when none does."""
        return 1000 * self.seconds / self.images if self.images else float("nan")


def measure(cascade: Cascade, work: Workload, batch: int, seconds: float) -> tuple[StageShare, ...]:
    """Run whole passes over the images for about `seconds`, at least one."""
    stages = len(cascade.stages.engines)
    images, final, acted = (np.zeros(stages, dtype=np.int64) for _ in range(3))
    spent = np.zeros(stages)
    total = 0

    def on_stage(stage: int, count: int, took: float) -> None:
        images[stage] += count
        spent[stage] += took

    end = time.perf_counter() + seconds
    while not total or time.perf_counter() < end:
        for start in range(0, len(work), batch):
            pixels = work.pixels[start : start + batch]
            verdict = cascade.stages.forward(pixels, cascade.decision, on_stage)
            final += np.bincount(verdict.stage, minlength=stages)
            acted += np.bincount(verdict.stage[verdict.acted], minlength=stages)
            total += len(pixels)
    return tuple(
        StageShare(
            images=int(images[stage]),
            final=int(final[stage]),
            acted=int(acted[stage]),
            seconds=float(spent[stage]),
            image_share=float(images[stage] / total),
            final_share=float(final[stage] / total),
            time_share=float(spent[stage] / spent.sum()),
        )
        for stage in range(stages)
    )
