"""`cascade-calibrate`: what a bundle does on labelled images, and how many of those to collect."""

from __future__ import annotations

import click

from cascade_runtime.command import run_command


@click.group()
def cli() -> None:
    """Measure a certified bundle on labelled images, and plan a calibration."""


@cli.command()
@click.argument("bundle", type=click.Path())
@click.option("--data", required=True, help="Class folders, a CSV or Parquet file, or splits.json.")
@click.option("--split", help="Which split of a splits.json, val_test for one.")
@click.option(
    "--target", default="auto", show_default=True, help="Target to run, as in the bundle."
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(
    bundle: str, data: str, split: str | None, target: str, batch_size: int, as_json: bool
) -> None:
    """Coverage, risk, FNR and FPR of BUNDLE on labelled images, against its promise."""
    from cascade_calib import evaluate as verb
    from cascade_calib.labelled import read_labelled
    from cascade_calib.progress import shown
    from cascade_runtime.cascade import Cascade

    cascade = Cascade.open(bundle, target)
    images = read_labelled(data, split=split)
    with shown() as progress:
        result = verb.evaluate(cascade, images, batch_size=batch_size, progress=progress)
    if as_json:
        _print_json(result.to_dict())
        return
    from rich.console import Console

    console = Console(highlight=False)
    for table in verb.tables(result):
        console.print(table)
    click.echo(verb.conclusion(result))


@cli.command()
@click.option("--alpha", required=True, help="The risk to promise, such as 0.01.")
@click.option("--delta", default="0.05", show_default=True, help="How often it may fail.")
@click.option("--coverage", required=True, help="Expected share of images acted on.")
@click.option("--error", required=True, help="Expected error rate among those.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def plan(alpha: str, delta: str, coverage: str, error: str, as_json: bool) -> None:
    """How many labelled calibration images a certificate takes, with 90 % probability."""
    from cascade_calib.bounds import as_fraction
    from cascade_calib.plan import images_needed

    result = images_needed(
        as_fraction(alpha, "--alpha"),
        as_fraction(delta, "--delta"),
        as_fraction(coverage, "--coverage", closed=True),
        as_fraction(error, "--error", closed=True),
    )
    if as_json:
        _print_json(result.to_dict())
        return
    click.echo(
        f"{result.images:,} labelled calibration images: about {result.accepted:,} of them are "
        f"acted on, and up to {result.allowed_errors:,} of those may be wrong. The certificate "
        f"then comes out with {100 * result.probability:.1f} % probability. (With no error at "
        f"all, {result.least_accepted:,} acted on are enough.)"
    )


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, allow_nan=False))


def main() -> None:
    """The console script."""
    run_command(cli)


if __name__ == "__main__":
    main()
