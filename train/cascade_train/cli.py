"""`cascade-train`: images to a trained cascade."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cascade_runtime.command import run_command
from cascade_train.explora.command import explora
from cascade_train.record_commands import ab_command, list_command, show_command
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


PLACES = {
    "splits": "fractions",
    "adapter": "adapter.kind",
    "adapter_init": "adapter.init",
    "adapter_targets": "adapter.targets",
    "rank": "adapter.rank",
    "unfreeze": "adapter.unfreeze",
    "augment": "fit.augment.policy",
    "objective": "fit.loss.objective",
    "min_coverage": "fit.constraints.coverage",
    "max_error": "fit.constraints.error",
    "max_fnr": "fit.constraints.fnr",
    "accumulate": "fit.scale.accumulate",
    "checkpointing": "fit.scale.checkpointing",
    "sharded": "fit.scale.sharded",
}
"""Where the options of `fit` stand in a config file, of those that are not called like that."""


@cli.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="A YAML file; flags stand above it."
)
@click.option("--data", help=DATA_HELP)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run folder.")
@click.option("--preset", help="Network size, see `cascade-train presets`.  [default: tiny]")
@click.option("--exits", type=Numbers(int), help="Blocks after which to exit, such as 2,6.")
@click.option(
    "--image-size", type=int, help="Side in pixels.  [default: that of --init, or the preset's]"
)
@click.option("--weights", help="random, hub, a hub id, or a folder.  [default: random]")
@click.option(
    "--init", type=click.Path(path_type=Path), help="Start from an earlier run or adaptation."
)
@click.option(
    "--adapter",
    type=click.Choice(["lora", "dora", "rslora"]),
    help="Train low-rank adapters and heads only.",
)
@click.option("--rank", type=int, help="Adapter rank.  [default: 16]")
@click.option(
    "--adapter-init",
    type=click.Choice(["default", "pissa", "olora"]),
    help="What adapters start from.  [default: nothing]",
)
@click.option(
    "--adapter-targets",
    type=click.Choice(["qv", "attention", "all"]),
    help="Which linear layers get an adapter.  [default: all]",
)
@click.option("--unfreeze", type=int, help="Last blocks to train in full beside the adapters.")
@click.option(
    "--freeze",
    type=click.Choice(["none", "backbone"]),
    help="backbone: train the heads alone, on features computed once.",
)
@click.option("--epochs", type=int, help="[default: 12]")
@click.option("--batch-size", type=int, help="Images a step, over all processes.  [default: 128]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: 0.001]")
@click.option("--ema", type=float, help="Decay of the weight average.  [default: 0.99]")
@click.option("--patience", type=int, help="Stop after so many epochs without gain.")
@click.option(
    "--objective", type=click.Choice(["ce", "selective"]), help="Of the heads.  [default: ce]"
)
@click.option("--min-coverage", type=float, help="Asked of a selected epoch.  [default: 0.7]")
@click.option("--max-error", type=float, help="Likewise, of what it acts on.  [default: 1]")
@click.option("--max-fnr", type=float, help="Likewise, of its positives.  [default: 0.2]")
@click.option("--amp", type=click.Choice(["auto", "bf16", "fp16", "none"]), help="[default: auto]")
@click.option(
    "--augment",
    type=click.Choice(["none", "light", "strong", "randaugment"]),
    help="How much images are changed.  [default: light]",
)
@click.option(
    "--decode",
    type=click.Choice(["memory", "cached", "files"]),
    help="Training images: all in memory, decoded once to disk, or anew.  [default: memory]",
)
@click.option("--workers", type=int, help="Processes that augment images.  [default: none]")
@click.option("--accumulate", type=int, help="Parts of a step, to save memory.  [default: 1]")
@click.option("--checkpointing", is_flag=True, help="Compute activations twice, to save memory.")
@click.option("--sharded", is_flag=True, help="Spread the network over the processes (FSDP2).")
@click.option(
    "--splits",
    type=Numbers(float),
    help="Shares of train, val_select, val_calib, val_test.  [default: .55,.1,.2,.15]",
)
@click.option("--split-seed", type=int, help="Of the splits.  [default: --seed]")
@click.option("--positive", help="The class that is the yes.  [default: the later by name]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--set", "sets", multiple=True, help="key=value, such as fit.loss.focal_gamma=2.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.pass_context
def fit(
    context: click.Context,
    file: Path | None,
    out: Path,
    sets: tuple[str, ...],
    resume: bool,
    **_: object,
) -> None:
    """Train a cascade and keep the best weights by AUGRC on val_select.

    On several GPUs: torchrun --nproc-per-node N -m cascade_train.cli fit …
    """
    from cascade_calib.progress import shown
    from cascade_train.config import flag_values, request_of, train_config
    from cascade_train.fit import run_fit

    flags = flag_values(context, PLACES, skip=("file", "out", "sets", "resume"))
    adapter = [path for path in flags if path.startswith("adapter.")]
    asked = file is not None or any(text.startswith("adapter") for text in sets)
    if adapter and "adapter.kind" not in flags and not asked:
        raise click.UsageError(f"{adapter[0]} is a setting of an adapter: give --adapter, too")
    request, config = request_of(train_config(file, flags, sets), out, resume)
    with shown() as progress:
        run_fit(request, config, progress=progress, say=lambda line: click.echo(line))
    if int(os.environ.get("RANK", "0")) == 0:
        click.echo(f"run: {out}")


@cli.command("join")
@click.argument("small", type=click.Path(path_type=Path))
@click.argument("big", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run folder.")
def join_command(small: Path, big: Path, out: Path) -> None:
    """Make one run of two: images that SMALL does not answer go to BIG.

    Both are trained on the same data and splits. Weights are not copied.
    """
    from cascade_train.join import join

    joined = join(small, big, out)
    exits = ", ".join(map(str, joined.exits))
    click.echo(f"networks: {joined.preset}, exits after blocks {exits}")
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


for command in (explora, list_command, show_command, ab_command):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    spin_briefly()
    run_command(cli)


if __name__ == "__main__":
    main()
