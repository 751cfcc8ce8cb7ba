"""The verb `cascade-train explora`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cascade_train.explora.config import DistillConfig, ExploraConfig, MaeConfig

START, MAE, DISTILL = ExploraConfig(), MaeConfig(), DistillConfig()
FOLDER = click.Path(path_type=Path)


@click.command()
@click.option(
    "--data",
    required=True,
    help="Images without labels: a folder, a CSV or Parquet file with a column path, a splits.json "
    "or a run folder (its train images alone), or roadworks:night.",
)
@click.option("--out", required=True, type=FOLDER, help="The folder to write.")
@click.option(
    "--objective", default=START.objective, show_default=True, type=click.Choice(["mae", "distill"])
)
@click.option("--init", type=FOLDER, help="Start from an earlier run or adaptation.")
@click.option("--preset", help="Network size, with --weights.  [default: tiny]")
@click.option("--image-size", type=int, help="Side in pixels.  [default: the preset's]")
@click.option("--weights", default="random", help="hub, a hub id, or a folder, without --init.")
@click.option(
    "--keep-out",
    multiple=True,
    type=FOLDER,
    help="A splits.json whose val images must not take part; may be given several times.",
)
@click.option("--epochs", default=START.epochs, show_default=True)
@click.option("--batch-size", default=START.batch_size, show_default=True)
@click.option("--lr", default=START.lr, show_default=True, help="Peak learning rate.")
@click.option("--unfreeze", default=START.unfreeze, show_default=True, help="Last blocks, in full.")
@click.option(
    "--adapter",
    "kind",
    default=START.kind,
    show_default=True,
    type=click.Choice(["lora", "dora", "rslora"]),
    help="What the other blocks train through.",
)
@click.option("--rank", default=START.rank, show_default=True, help="Adapter rank.")
@click.option(
    "--targets",
    default=START.targets,
    show_default=True,
    type=click.Choice(["qv", "attention", "all"]),
    help="Which linear layers get an adapter.",
)
@click.option("--norms/--no-norms", default=START.norms, show_default=True, help="Train all norms.")
@click.option("--mask", default=MAE.mask, show_default=True, help="Share of patches hidden by mae.")
@click.option("--prototypes", default=DISTILL.prototypes, show_default=True, help="For distill.")
@click.option("--local-crops", default=DISTILL.local_crops, show_default=True, help="For distill.")
@click.option(
    "--centering",
    default=DISTILL.centering,
    show_default=True,
    type=click.Choice(["sinkhorn", "mean"]),
    help="For distill.",
)
@click.option("--checkpointing", is_flag=True, help="Less memory, more time.")
@click.option(
    "--amp", default=START.amp, show_default=True, type=click.Choice(["auto", "bf16", "none"])
)
@click.option("--seed", default=START.seed, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all]")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
def explora(
    out: Path,
    keep_out: tuple[Path, ...],
    mask: float,
    prototypes: int,
    local_crops: int,
    centering: Any,
    **options: Any,
) -> None:
    """Adapt a trained backbone to a new domain, from images without labels.

    Writes OUT/backbone, which `fit --weights OUT/backbone` takes.
    """
    from cascade_calib.progress import shown
    from cascade_train.explora.run import ExploraRequest, run_explora

    settings = {k: options.pop(k) for k in ExploraConfig.__struct_fields__ if k in options}
    distill = DistillConfig(prototypes=prototypes, local_crops=local_crops, centering=centering)
    config = ExploraConfig(mae=MaeConfig(mask=mask), distill=distill, **settings)
    request = ExploraRequest(out=out, keep_out=keep_out, **options)
    with shown() as progress:
        run_explora(request, config, progress=progress, say=lambda line: click.echo(line))
    click.echo(f"backbone: {out / 'backbone'}")
