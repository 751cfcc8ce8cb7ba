"""How long the metrics take, and how much memory the bootstrap holds.

In: nothing; scores are drawn. Out: the seconds of AUGRC on 1,000,000 scores (limit: 1) and of
2,000 bootstrap resamples of 10,000 images per metric (limits: 10 s and 1 GB at the peak).

    python benchmarks/studies/metrics_speed.py
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import get_args

import click
import numpy as np

from cascade_calib.bootstrap import Metric
from cascade_calib.metrics import augrc, bootstrap_ci

SECONDS_AUGRC, SECONDS_BOOTSTRAP, BYTES = 1.0, 10.0, 1e9


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_bytes() -> float:
    """The largest resident size this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@click.command()
@click.option("--scores", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--images", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--resamples", default=2000, show_default=True, type=click.IntRange(1))
def main(scores: int, images: int, resamples: int) -> None:
    """Measure and compare with the limits; status 1 where one is exceeded."""
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 1, scores)
    wrong = rng.random(scores) > c
    seconds = min(timed(lambda: augrc(c, wrong)) for _ in range(3))
    late = seconds > SECONDS_AUGRC
    click.echo(f"AUGRC of {scores:,} scores: {seconds:.2f} s (limit {SECONDS_AUGRC:g} s)")
    c, wrong = c[:images], wrong[:images]
    for metric in get_args(Metric):
        at = 0.5 if "_at_" in metric else None
        seconds = timed(lambda m=metric, x=at: bootstrap_ci(c, wrong, m, at=x, resamples=resamples))
        late |= seconds > SECONDS_BOOTSTRAP
        click.echo(
            f"{resamples:,} resamples of {images:,} images, {metric}: {seconds:.1f} s "
            f"(limit {SECONDS_BOOTSTRAP:g} s)"
        )
    peak = peak_bytes()
    click.echo(f"peak memory of the whole run: {peak / 1e6:.0f} MB (limit {BYTES / 1e6:.0f} MB)")
    if late or peak > BYTES:
        raise click.ClickException("a limit is exceeded")


if __name__ == "__main__":
    main()
