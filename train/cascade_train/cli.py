"""`cascade-train`: images to a trained cascade."""

from __future__ import annotations

from pathlib import Path

import click

from cascade_runtime.command import run_command
from cascade_train.threads import spin_briefly

DATA_HELP = (
    "A folder with one sub-folder a class, a CSV or Parquet file of path,label[,group], or "
    "roadworks:day or roadworks:night (rendered here; ?n=8000&seed=1 for size and seed)."
)


class Numbers(click.ParamType):
    """Comma-separated numbers."""

    name = "numbers"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: object, param: object, ctx: object) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers")


@click.group()
def cli() -> None:
    """Train a selective vision-transformer cascade on a yes/no question about images."""


@cli.command()
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run folder.")
@click.option("--preset", help="Network size, see `cascade-train presets`.  [default: tiny]")
@click.option("--exits", type=Numbers(int), help="Blocks after which to exit, such as 2,6.")
@click.option("--image-size", type=int, help="Side in pixels.  [default: the preset's]")
@click.option(
    "--weights", default="random", show_default=True, help="random, hub, a hub id, or a folder."
)
@click.option(
    "--init", type=click.Path(path_type=Path), help="Start from an earlier run's weights."
)
@click.option(
    "--adapter", type=click.Choice(["lora"]), help="Train low-rank adapters and heads only."
)
@click.option("--rank", default=16, show_default=True, help="Adapter rank.")
@click.option(
    "--adapter-targets",
    default="all",
    show_default=True,
    type=click.Choice(["qv", "attention", "all"]),
    help="Which linear layers get an adapter.",
)
@click.option("--epochs", default=12, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--ema", default=0.99, show_default=True, help="Decay of the weight average.")
@click.option(
    "--patience",
    default=0,
    show_default=True,
    help="Stop after so many epochs without gain; 0: never.",
)
@click.option(
    "--max-fnr",
    default=0.2,
    show_default=True,
    help="Highest false-negative rate of a selected epoch.",
)
@click.option(
    "--amp", default="auto", show_default=True, type=click.Choice(["auto", "bf16", "none"])
)
@click.option("--no-augment", is_flag=True, help="Train on the images as they are.")
@click.option(
    "--splits",
    type=Numbers(float),
    help="Shares of train, val_select, val_calib, val_test.  [default: .55,.1,.2,.15]",
)
@click.option("--positive", help="The class that is the yes.  [default: the later by name]")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
def fit(
    data: str,
    out: Path,
    adapter: str | None,
    rank: int,
    adapter_targets: str,
    no_augment: bool,
    splits: tuple[float, ...] | None,
    **options: object,
) -> None:
    """Train a cascade and keep the best weights by AUGRC on val_select."""
    from cascade_calib.progress import shown
    from cascade_train.adapters import AdapterConfig
    from cascade_train.fit import FitRequest, run_fit
    from cascade_train.loop import FitConfig

    if splits is not None and len(splits) != 4:
        raise click.BadParameter("give four shares", param_hint="--splits")
    settings = {name: options.pop(name) for name in FitConfig.__struct_fields__ if name in options}
    config = FitConfig(augment=not no_augment, **settings)  # type: ignore[arg-type]
    request = FitRequest(
        data=data,
        out=out,
        adapter=AdapterConfig(kind=adapter, rank=rank, targets=adapter_targets)
        if adapter
        else None,
        fractions=splits,
        **options,  # type: ignore[arg-type]
    )
    with shown() as progress:
        run_fit(request, config, progress=progress, say=lambda line: click.echo(line))
    click.echo(f"run: {out}")


@cli.command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option("--size", default=64, show_default=True, help="Side in pixels.")
@click.option("--positive", help="The class that is the yes.  [default: the later by name]")
@click.option("--seed", default=0, show_default=True)
def data(source: str, out: Path, size: int, positive: str | None, seed: int) -> None:
    """Read SOURCE, split it four ways, and draw a contact sheet, without training."""
    from cascade_calib.progress import shown
    from cascade_runtime.manifest import Preprocess
    from cascade_train.data.contact_sheet import contact_sheet
    from cascade_train.data.sources import prepare
    from cascade_train.data.splits import describe

    out.mkdir(parents=True, exist_ok=True)
    with shown() as progress:
        spec = Preprocess(height=size, width=size)
        made = prepare(source, out, spec, seed=seed, positive=positive, progress=progress)
    train = made.pixels["train"]
    contact_sheet(train.pixels, train.labels, made.splits.classes, out / "contact_sheet.png")
    click.echo(made.summary())
    click.echo(describe(made.splits))
    click.echo(f"wrote {out / 'splits.json'} and {out / 'contact_sheet.png'}")


@cli.command()
def presets() -> None:
    """The network sizes and their dimensions."""
    from cascade_train.presets import PRESETS

    click.echo(
        f"{'preset':12} {'width':>6} {'blocks':>6} {'heads':>6} {'patch':>6} {'pixels':>6}  exits"
    )
    for p in PRESETS.values():
        exits = ",".join(map(str, p.exits))
        sizes = (p.hidden, p.blocks, p.heads, p.patch, p.image_size)
        click.echo(f"{p.name:12} " + " ".join(f"{n:6}" for n in sizes) + f"  {exits}")


def main() -> None:
    """The console script."""
    spin_briefly()
    run_command(cli)
