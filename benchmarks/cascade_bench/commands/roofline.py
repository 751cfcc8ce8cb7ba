"""`cascade-bench roofline`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import check_paths, finish
from cascade_runtime.command import MISSED_STATUS


@click.command("roofline", short_help="Each stage's share of the machine's own ceilings.")
@click.argument("bundle", type=click.Path(path_type=Path))
@options.place()
@options.batches("1,8,16")
@click.option(
    "--seconds",
    type=options.Finite(0, 3600),
    default=30.0,
    show_default=True,
    help="For all timings together; profiles come on top.",
)
@click.option(
    "--min-share",
    type=options.Finite(0, 1),
    help="Exit status 6 where a stage at its best batch stays below this share.",
)
@options.outputs()
def command(
    bundle: Path,
    target: str,
    threads: int | None,
    batches: tuple[int, ...],
    seconds: float,
    min_share: float | None,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """How near BUNDLE's stages come to what this machine does at its best, and what is far from it.

    The ceilings are matrix products in every precision, through the library that runs the bundle,
    and memory bandwidth, measured in the same minute as the stages.

    Exit status: 0 measured, 6 below --min-share, 2 the command line, 3 the bundle, 4 the target
    cannot run here, is a GPU's, or its library has no profiler that is read (openvino and
    onnxruntime have).
    """
    from cascade_bench.roofline import measure, tables
    from cascade_bench.roofline.plot import draw
    from cascade_bench.roofline.record import record_of
    from cascade_calib.progress import shown

    check_paths(plot, report)
    with shown() as progress:
        plan = measure.Plan(bundle, target, threads, batches, seconds)
        found = measure.run(plan, progress)
    finish(
        lambda: record_of(found).to_dict(),
        lambda: tables.render(found),
        lambda: {"stages and layers below the machine's ceilings": draw(found)},
        f"{bundle.name} on {found.target}: how near to the ceilings",
        as_json=as_json,
        plot=plot,
        report=report,
    )
    if min_share is not None and min(map(found.share_of, found.best)) < min_share:
        sys.exit(MISSED_STATUS)
