"""`cascade-bench roofline`: its options, what it prints, its exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import show
from cascade_runtime.command import MISSED_STATUS


@click.command("roofline", short_help="Each stage's share of the machine's own ceilings.")
@click.argument("bundle", type=click.Path(path_type=Path))
@options.place()
@options.batches("1,8,16")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="For all timings together; profiles come on top.",
)
@click.option(
    "--min-share",
    type=click.FloatRange(0, 1),
    help="Exit status 6 where a stage at its best batch stays below this share.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, no tables.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw FILE.png.")
def command(
    bundle: Path,
    target: str,
    threads: int | None,
    batches: tuple[int, ...],
    seconds: float,
    min_share: float | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """How near BUNDLE's stages come to what this machine does at its best, and what is far from it.

    The ceilings are matrix products in every precision, through the library that runs the bundle,
    and memory bandwidth, measured in the same minute as the stages.

    Exit status: 0 measured, 6 below --min-share, 2 the command line, 3 the bundle, 4 the target
    cannot run here or its library has no profiler that is read (openvino and onnxruntime have).
    """
    from cascade_bench import plot as pictures
    from cascade_bench.roofline import measure, tables
    from cascade_bench.roofline import plot as picture
    from cascade_calib.progress import shown

    if plot is not None:
        pictures.check_path(plot)
    with shown() as progress:
        plan = measure.Plan(bundle, target, threads, batches, seconds)
        found = measure.run(plan, progress)
    if plot is not None:
        picture.write(found, plot)
    show(as_json, found.to_dict, lambda: tables.render(found))
    if min_share is not None and min(map(found.share_of, found.best)) < min_share:
        sys.exit(MISSED_STATUS)
