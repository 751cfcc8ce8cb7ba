"""Every target of a bundle beside the float32 network it was made of, on images it never saw.

In: a run, a bundle of it with any number of targets, and a folder or a rendered set. Out: for each
target the images whose decision differs from float32's at that target's own thresholds, at any of
the batch sizes 1, 3 and 8, and the largest difference beside its limit; status 1 where one is
beyond.

    python benchmarks/studies/target_parity.py RUN BUNDLE --data 'roadworks:night?n=2000&seed=1'
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from cascade_calib.labelled import load_pixels
from cascade_calib.unlabelled import read_unlabelled
from cascade_compile import parity
from cascade_runtime.cascade import Cascade
from cascade_train.checkpoint import load_network
from cascade_train.data.sources import source_folder


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="A folder of images, or a rendered set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(run: Path, bundle: Path, data: str, as_json: bool) -> None:
    """Compare, target by target."""
    model, config = load_network(run)
    loaded = load_pixels(read_unlabelled(source_folder(data)), config.preprocess)
    reference, tokens = parity.run_network(model, loaded.pixels)
    first = Cascade.open(bundle)
    rows, beyond = {}, []
    for name, target in first.manifest.targets.items():
        cascade = Cascade(first.bundle, name, "asked for")
        found = parity.against(reference, cascade.stages, loaded.pixels, target.precision, tokens)
        rows[name] = found.figures(cascade.decision)
        beyond += [] if found.ok else [name]
        if not as_json:
            click.echo(
                f"{name:24}{found.flips(cascade.decision):5} of {found.images} decisions differ; "
                f"at most {found.max_difference:.4f} of {found.scale:.2f} "
                f"({found.max_difference / found.scale:.3%}, limit {found.limit:.3%})"
            )
    if as_json:
        click.echo(json.dumps(rows))
    if beyond:
        raise click.ClickException(f"beyond the limit: {', '.join(beyond)}")


if __name__ == "__main__":
    main()
