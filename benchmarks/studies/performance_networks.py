"""The networks of docs/performance.md: how each is made, and at which batch sizes it is measured.

In: a folder to work in. Out: a run and its bundle, made by the commands where they are not there.
`tiny` and ViT-S are trained as by `make demo`: a base on day scenes, adapted to night scenes.
`tiny` gets an exit after every block, of which `cascade-compile exits` keeps some; its peers are
the network as it was trained. ViT-S sees small images first and is adapted at 224 px. ViT-B is
that of `peers.py`: a random backbone with trained heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROMISE = ("--alpha", "0.01", "--coverage", "0.7")
DAY = ("--data", "roadworks:day?n=12000", "--splits", ".8,.1,.05,.05")
LORA = ("--adapter", "lora", "--rank", "16")


@dataclass(frozen=True)
class Trained:
    """Options of `cascade-train fit`, for a base and for what adapts it."""

    base: tuple[str, ...]
    adapted: tuple[str, ...]
    exits_chosen: bool = False


@dataclass(frozen=True)
class HeadsAlone:
    """A random backbone with heads trained on so many images, and the risk that may be promised."""

    images: int
    alpha: str


@dataclass(frozen=True)
class Network:
    """compare, roofline: batch sizes of these verbs."""

    name: str
    compare: str
    roofline: str
    recipe: Trained | HeadsAlone


TINY = Trained(
    base=(*DAY, "--exits", "1,2,3,4,5,6", "--epochs", "7", "--lr", "1.5e-3"),
    adapted=(
        *("--data", "roadworks:night?n=14000", "--splits", ".45,.13,.28,.14"),
        *(*LORA, "--lr", "2e-3", "--epochs", "5"),
    ),
    exits_chosen=True,
)
VITS = Trained(
    base=(
        *(*DAY, "--preset", "vits16", "--image-size", "128"),
        *("--epochs", "5", "--lr", "5e-4", "--batch-size", "64"),
    ),
    adapted=(
        *("--data", "roadworks:night?n=9000", "--splits", ".33,.145,.4,.125"),
        *(*LORA, "--lr", "1e-3", "--image-size", "224", "--epochs", "3", "--batch-size", "64"),
    ),
)
NETWORKS = (
    Network("tiny", "1,8,32,128", "1,8,32", TINY),
    Network("vits16", "1,8,32", "1,8,16,32", VITS),
    Network("vitb16", "1,8,32", "1,8", HeadsAlone(400, "0.45")),
)
DEFAULT = "tiny,vits16"


def made(network: Network, work: Path) -> tuple[Path, Path]:
    """Its run, as it was trained, and its bundle.

    Raises:
        click.ClickException: a command failed.
    """
    from peers import command, trained
    from peers import made as made_of_heads

    name, recipe = network.name, network.recipe
    if isinstance(recipe, HeadsAlone):
        return made_of_heads(name, recipe.images, recipe.alpha, work, "--keep-all")
    base, run, bundle = work / f"{name}-day", work / name, work / f"{name}.cascade"
    if not trained(run):
        if not trained(base):
            command(["cascade-train", "fit", *recipe.base, "--out", str(base)])
        command(["cascade-train", "fit", *recipe.adapted, "--init", str(base), "--out", str(run)])
    if not bundle.exists():
        shipped = run
        if recipe.exits_chosen:
            shipped = work / f"{name}-kept"
            if not shipped.exists():
                command(["cascade-compile", "exits", str(run), "--out", str(shipped), *PROMISE])
        words = ["cascade-compile", "bundle", str(shipped), "--out", str(bundle)]
        command([*words, "--precision", "auto", "--keep-all", *PROMISE])
    return run, bundle
