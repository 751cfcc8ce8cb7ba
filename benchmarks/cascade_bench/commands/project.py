"""`cascade-bench project`: its options, what it prints, its exit status."""

from __future__ import annotations

from pathlib import Path

import click

from cascade_bench.commands import options
from cascade_bench.commands.output import check_paths, finish


@click.command("project", short_help="Predict a network's speed on devices that are not here.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    help="A device of the table, repeated for more.  [default: all]",
)
@click.option("--here", is_flag=True, help="Measure this machine with --bundle, and predict it.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="For --here: what to time, repeated for more; two or more say more of the error.",
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    default=("vits16",),
    show_default=True,
    help="A network, repeated for more: vits16 to vith16plus.",
)
@click.option("--image-size", type=click.IntRange(1), help="Pixels.  [default: the preset's]")
@options.batches("1,8")
@click.option(
    "--exits",
    callback=options.numbers(int),
    help="Early exits, in blocks, with commas.  [default: the preset's]",
)
@click.option(
    "--exit-rate",
    "exit_rates",
    callback=options.numbers(float),
    default="0.7",
    show_default=True,
    help="Share of the images reaching an exit that leave there; one for all, or one for each.",
)
@click.option("--precision", help="[default: fp16; here: the bundle's]")
@click.option(
    "--min-rate",
    type=options.Finite(),
    default=100.0,
    show_default=True,
    help="Images/s to be reached.",
)
@options.place()
@click.option(
    "--seconds",
    type=options.Finite(0, 3600),
    default=20.0,
    show_default=True,
    help="For --here: for each bundle.",
)
@options.outputs()
def command(
    devices: tuple[str, ...],
    here: bool,
    bundles: tuple[Path, ...],
    presets: tuple[str, ...],
    image_size: int | None,
    batches: tuple[int, ...],
    exits: tuple[int, ...] | None,
    exit_rates: tuple[float, ...],
    precision: str | None,
    min_rate: float,
    target: str,
    threads: int | None,
    seconds: float,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """Latency and throughput of a network with and without early exits, from a device's figures.

    Devices that were not measured are predicted from published peaks and an assumed efficiency;
    --here fits the efficiency to this machine and states how wrong its predictions were.

    Exit status: 0 predicted, 1 a setting is at fault, 2 the command line, 3 a bundle, 4 a bundle
    cannot run here.
    """
    if here != bool(bundles):
        raise click.UsageError("--here and --bundle go together: what is timed here is a bundle")
    if not all(0 <= rate <= 1 for rate in exit_rates):
        raise click.UsageError("--exit-rate must be from 0 to 1")
    from cascade_bench.project import tables
    from cascade_bench.project.plot import draw
    from cascade_bench.project.record import record_of
    from cascade_bench.project.report import Asked, run
    from cascade_calib.progress import shown

    check_paths(plot, report)
    asked = Asked(
        devices=devices,
        presets=presets,
        image_size=image_size,
        batches=batches,
        exits=exits,
        exit_rates=exit_rates,
        precision=precision,
        min_rate=min_rate,
        bundles=bundles,
        target=target,
        threads=threads,
        seconds=seconds,
    )
    with shown() as progress:
        found = run(asked, progress)
    finish(
        lambda: record_of(found).to_dict(),
        lambda: tables.render(found),
        lambda: {"throughput over the share of images that leave early": draw(found)},
        f"{', '.join(presets)}: predicted",
        as_json=as_json,
        plot=plot,
        report=report,
    )
