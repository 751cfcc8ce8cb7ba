"""`cascade-bench run`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_runtime.command import MISSED_STATUS

if TYPE_CHECKING:
    from cascade_bench.record import Record
    from cascade_bench.run import Runtime


@click.command("run", short_help="Every measurement, and PASS or FAIL for each target.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", help="Labelled images: class folders, a CSV or Parquet, or splits.json.")
@click.option("--split", help="Which split of a splits.json.  [default: val_test]")
@click.option("--target", default="auto", show_default=True, help="A target of the bundle.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: every core]")
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
@click.option("--max-ms", type=float, default=50.0, show_default=True, help="Latency target.")
@click.option(
    "--min-rate", type=float, default=100.0, show_default=True, help="Throughput target, images/s."
)
@click.option(
    "--min-coverage", type=float, default=0.70, show_default=True, help="Coverage target."
)
@click.option("--max-error", type=float, default=0.01, show_default=True, help="Exit error target.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, no tables.")
@click.option("--load", is_flag=True, help="Also closed and open loops of many callers.")
@click.option(
    "--sweep", is_flag=True, help="Also every number of threads, free and pinned to cores."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw FILE.png.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write a page, FILE.html.")
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
    load: bool,
    sweep: bool,
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
    from cascade_bench import pictures
    from cascade_bench.limits import Limits
    from cascade_bench.run import Plan
    from cascade_bench.run import run as measure
    from cascade_bench.show import finish
    from cascade_bench.tables import render
    from cascade_calib.progress import shown

    pictures.check_path(plot)
    pictures.check_path(report, "--report", ".html")
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
