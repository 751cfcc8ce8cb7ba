"""`cascade-bench run`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import show
from cascade_runtime.command import MISSED_STATUS

if TYPE_CHECKING:
    from cascade_bench.run import Runtime


@click.command("run", short_help="Every measurement, and PASS or FAIL for each target.")
@click.argument("bundle", type=click.Path(path_type=Path))
@options.data()
@options.place()
@click.option(
    "--runtime",
    type=click.Choice(["python", "native"]),
    default="python",
    show_default=True,
    help="Who decides: cascade_runtime, or libcascade, then compared with both neighbours.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=4.0,
    show_default=True,
    help="For each measurement; there are about ten such shares.",
)
@options.limits()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, no tables.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw FILE.png.")
def command(
    bundle: Path,
    data: str | None,
    split: str | None,
    target: str,
    threads: int | None,
    runtime: Runtime,
    seconds: float,
    max_ms: float,
    min_rate: float,
    min_coverage: float,
    max_error: float,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Latency, throughput, memory and quality of BUNDLE, and PASS or FAIL for each target.

    Without --data the bundle's golden images are timed, and coverage and exit error are those of
    its certificate.

    Exit status: 0 every target met, 6 a target missed, 1 the data is at fault, 2 the command line,
    3 the bundle, 4 the target cannot run here.
    """
    if split and not data:
        raise click.UsageError("--split is about --data, which is not given")
    from cascade_bench import plot as picture
    from cascade_bench.limits import Limits
    from cascade_bench.run import Plan
    from cascade_bench.run import run as measure
    from cascade_bench.tables import render
    from cascade_calib.progress import shown

    picture.check_path(plot)
    plan = Plan(
        bundle=bundle,
        target=target,
        threads=threads,
        data=data,
        split=split,
        seconds=seconds,
        runtime=runtime,
        limits=Limits(max_ms, min_rate, min_coverage, max_error),
    )
    with shown() as progress:
        record = measure(plan, progress)
    if plot is not None:
        picture.write(record, plot)
    show(as_json, record.to_dict, lambda: render(record))
    if not record.passed:
        sys.exit(MISSED_STATUS)
