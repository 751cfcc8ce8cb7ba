"""`cascade-bench run`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import check_paths, finish
from cascade_runtime.command import MISSED_STATUS

if TYPE_CHECKING:
    from cascade_bench.record import Record
    from cascade_bench.workload import Runtime


@click.command("run", short_help="Every measurement, and PASS or FAIL for each target.")
@click.argument("bundle", type=click.Path(path_type=Path))
@options.data()
@options.place()
@options.runtime("Who decides: cascade_runtime, or libcascade, then compared with both neighbours.")
@click.option(
    "--seconds",
    type=options.Finite(0, 3600),
    default=4.0,
    show_default=True,
    help="For each measurement; there are about ten such shares.",
)
@options.limits()
@click.option("--load", is_flag=True, help="Also closed and open loops of many callers.")
@click.option(
    "--sweep", is_flag=True, help="Also every number of threads, free and pinned to cores."
)
@options.outputs()
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
    load: bool,
    sweep: bool,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """Latency, throughput, memory and quality of BUNDLE, and PASS or FAIL for each target.

    Without --data the bundle's golden images are timed, and coverage and exit error are those of
    its certificate.

    Exit status: 0 every target met, 6 a target missed, 1 the data is at fault, 2 the command line,
    3 the bundle, 4 the target cannot run here.
    """
    if split and not data:
        raise click.UsageError("--split is about --data, which is not given")
    from cascade_bench.limits import Limits
    from cascade_bench.run import Plan
    from cascade_bench.run import run as measure
    from cascade_bench.tables import render
    from cascade_calib.progress import shown

    check_paths(plot, report)
    plan = Plan(
        bundle=bundle,
        target=target,
        threads=threads,
        data=data,
        split=split,
        seconds=seconds,
        runtime=runtime,
        load=load,
        thread_sweep=sweep,
        limits=Limits(max_ms, min_rate, min_coverage, max_error),
    )
    with shown() as progress:
        record = measure(plan, progress)
    finish(
        record.to_dict,
        lambda: render(record),
        lambda: _pictures(record),
        f"{bundle.name} on {record.target}: what was measured",
        as_json=as_json,
        plot=plot,
        report=report,
    )
    if not record.passed:
        sys.exit(MISSED_STATUS)


def _pictures(record: Record) -> dict[str, bytes]:
    from cascade_bench.plot import draw, draw_load

    found = {"throughput over batch size; where images stop and time goes": draw(record)}
    if record.load is not None:
        found["latency over load; rate over clients"] = draw_load(record.load)
    return found
