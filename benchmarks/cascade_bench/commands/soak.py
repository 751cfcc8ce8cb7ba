"""`cascade-bench soak`: its options, what it prints, its exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import check_paths, finish
from cascade_runtime.command import MISSED_STATUS

if TYPE_CHECKING:
    from cascade_bench.workload import Runtime


@click.command("soak", short_help="Hours of mixed traffic with faults; resumable.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Images: class folders, a CSV, or splits.json.")
@click.option(
    "--hours",
    type=options.Finite(0, 8784, min_open=True),
    required=True,
    help="How long, a year at most.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    required=True,
    help="FILE.jsonl, a line a minute; one that is there is gone on with.",
)
@click.option("--split", help="Which split of a splits.json.  [default: val_test]")
@options.place()
@options.runtime("Who decides: cascade_runtime or libcascade.")
@click.option(
    "--clients", type=click.IntRange(1, 64), default=2, show_default=True, help="At once."
)
@click.option(
    "--corrupt",
    type=options.Finite(0, 1),
    default=0.02,
    show_default=True,
    help="Share of images that are damaged.",
)
@click.option(
    "--row-seconds",
    type=options.Finite(0, 86400, min_open=True),
    default=60.0,
    show_default=True,
    help="Of traffic, for each line of the state.",
)
@click.option(
    "--max-wait",
    type=options.Finite(0, 86400, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds without an answer to a call that are a hang, which ends the soak.",
)
@click.option(
    "--max-memory",
    type=options.Finite(),
    default=10.0,
    show_default=True,
    help="Allowed growth, MiB an hour.",
)
@click.option(
    "--max-slowdown",
    type=options.Finite(),
    default=10.0,
    show_default=True,
    help="Allowed growth of the median latency, percent an hour.",
)
@options.outputs()
def command(
    bundle: Path,
    data: str,
    hours: float,
    state: Path,
    split: str | None,
    target: str,
    runtime: Runtime,
    threads: int | None,
    clients: int,
    corrupt: float,
    row_seconds: float,
    max_wait: float,
    max_memory: float,
    max_slowdown: float,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """Ask BUNDLE for hours: files, bytes and arrays, batches of all sizes, damaged images between.

    Every answer is compared with the one given at the start. The same command goes on with a run
    that was stopped or killed, and counts the processes that ended without a word.

    Exit status: 0 passed, 6 a wrong answer, a call that failed or hangs, or memory or latency that
    grows beyond its limit; 1 the data or the state is at fault, 2 the command line, 3 the bundle, 4
    the target cannot run here or answers otherwise than when the soak began.
    """
    from cascade_bench.soak import Plan, soak
    from cascade_bench.soak_record import HUNG, Limits, read_file
    from cascade_bench.soak_report import draw, render
    from cascade_calib.progress import shown

    check_paths(plot, report)
    plan = Plan(
        bundle=bundle,
        data=data,
        hours=hours,
        state=state,
        split=split,
        target=target,
        runtime=runtime,
        threads=threads,
        clients=clients,
        corrupt=corrupt,
        row_seconds=row_seconds,
        max_wait=max_wait,
        limits=Limits(max_memory, max_slowdown),
    )
    with shown() as progress, _terminated_as_by_a_key():
        found = soak(plan, progress)
    finish(
        found.to_dict,
        lambda: render(found),
        lambda: {"latency and memory over the hours": draw(found, read_file(state).rows)},
        f"{bundle.name}: soaked for {found.hours:.3g} hours",
        as_json=as_json,
        plot=plot,
        report=report,
    )
    if found.ends[-1] == HUNG:
        sys.stdout.flush()
        os._exit(MISSED_STATUS)  # an orderly exit would wait for the thread that hangs
    if not found.passed:
        sys.exit(MISSED_STATUS)


@contextmanager
def _terminated_as_by_a_key() -> Iterator[None]:
    """SIGTERM is KeyboardInterrupt, as SIGINT is, so that the state says that it was stopped."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
