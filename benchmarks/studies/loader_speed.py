"""Does loading keep up with training? Images a second of each reader, beside those of the network.

In: a data source, a network size, augmentation policies. Out: a table, and with `--json` the same
as a file: for every reader (memory, cached decode, files) and number of worker processes the
images/s of the loader alone, of training alone (the same batch again and again), and of training
that is fed by the loader; "kept" is the last over the one before. Worker processes pay where there
are cores to spare beside those that train.

    python benchmarks/studies/loader_speed.py --json loader_speed.json
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_calib.provenance import made_by
from cascade_runtime.manifest import Preprocess
from cascade_train.augment import POLICIES, AugmentConfig, decode_spec
from cascade_train.backbone import build_backbone
from cascade_train.data import load_split_pixels, prepare
from cascade_train.data.decoded import decoded_split
from cascade_train.data.loader import Batches
from cascade_train.data.readers import Memory, Reader, split_files
from cascade_train.exits import CascadeModel
from cascade_train.presets import preset
from cascade_train.scale import Machine, ScaleConfig

Pair = tuple[Tensor, Tensor]


class Row(msgspec.Struct, frozen=True):
    """Images a second of one way to load."""

    policy: str
    reader: str
    workers: int
    loader: float
    training: float
    fed: float

    @property
    def kept(self) -> float:
        """How much of the training speed is left when the loader feeds it."""
        return self.fed / self.training


def readers(
    run: Path, spec: Preprocess, config: AugmentConfig, cache: Path
) -> dict[str, Callable[[], Reader]]:
    """Every way to come by the pixels. What is in memory has the training size already."""
    decode = decode_spec(spec, config)
    return {
        "memory": lambda: Memory(load_split_pixels(run, "train", spec)),
        "cached": lambda: decoded_split(run, "train", decode, cache=cache),
        "files": lambda: split_files(run, "train", decode),
    }


def trainer(name: str, size: int) -> Callable[[Pair], None]:
    """A training step on one batch: cross-entropy at every exit, AdamW, precision as in `fit`."""
    torch.manual_seed(0)
    machine, chosen = Machine(ScaleConfig()), preset(name)
    model = CascadeModel(build_backbone(chosen, image_size=size), chosen.exits).train()
    model.to(machine.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(pair: Pair) -> None:
        pixels, labels = (tensor.to(machine.device) for tensor in pair)
        with machine.autocast():
            outputs = model(pixels)
        loss = torch.stack([F.cross_entropy(out.logits.float(), labels) for out in outputs]).sum()
        optimizer.zero_grad(set_to_none=True)
        machine.backward(loss)
        machine.step(optimizer, model.parameters(), 1.0)
        float(loss.detach())  # waits for the device, as `fit` does to see that it is a number

    return step


def speed(pairs: Iterator[Pair], step: Callable[[Pair], None], limit: int) -> float:
    """Images a second over up to `limit` batches."""
    started, images = time.perf_counter(), 0
    for number, pair in enumerate(pairs, 1):
        step(pair)
        images += len(pair[1])
        if number == limit:
            break
    return images / (time.perf_counter() - started)


def measure(
    batches: Batches, step: Callable[[Pair], None], steps: int
) -> tuple[float, float, float]:
    """The loader alone, training alone, and training that is fed, once the workers are up."""
    first = next(batches.epoch(0))
    loader = speed(batches.epoch(1), lambda pair: None, batches.steps)
    step(first)
    training = speed(iter([first] * steps), step, steps)
    return loader, training, speed(batches.epoch(2), step, steps)


def line(row: Row) -> str:
    """One row of the table under `HEAD`."""
    return (
        f"{row.policy:12}{row.reader:8}{row.workers:>8}{row.loader:>9.0f}{row.training:>10.0f}"
        f"{row.fed:>6.0f}{row.kept:>7.0%}"
    )


HEAD = f"{'policy':12}{'reader':8}{'workers':>8}{'loader':>9}{'training':>10}{'fed':>6}{'kept':>7}"


@click.command()
@click.option("--data", default="roadworks:day?n=1200", show_default=True, help="As for fit.")
@click.option("--preset", "name", default="tiny", show_default=True, help="Network size.")
@click.option("--image-size", type=int, help="Side in pixels.  [default: the preset's]")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option("--steps", default=4, show_default=True, type=click.IntRange(1), help="To time.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    default=["light"],
    show_default=True,
    type=click.Choice(list(POLICIES)),
)
@click.option("--workers", multiple=True, default=[0, 1, 2], show_default=True, type=int)
@click.option("--threads", type=int, help="Of the training.  [default: all cores]")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the numbers here.")
def main(
    data: str,
    name: str,
    image_size: int | None,
    batch_size: int,
    steps: int,
    policies: tuple[str, ...],
    workers: tuple[int, ...],
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure loader and training images a second, and how much of it the loader costs."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads or cores)
    size = image_size or preset(name).image_size
    spec, rows = Preprocess(height=size, width=size), []
    step = trainer(name, size)
    click.echo(f"images/s, {name} at {size} px, {torch.get_num_threads()} of {cores} cores train")
    click.echo(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        run, cache = Path(folder) / "run", Path(folder) / "cache"
        prepare(data, run, spec)
        for policy in policies:
            config = AugmentConfig(policy=policy)  # type: ignore[arg-type]
            for kind, make in readers(run, spec, config, cache).items():
                for count in workers:
                    batches = Batches(
                        make(),
                        config,
                        batch_size=batch_size,
                        seed=0,
                        size=(size, size),
                        workers=count,
                    )
                    with batches:
                        rows.append(Row(policy, kind, count, *measure(batches, step, steps)))
                    click.echo(line(rows[-1]))
    if out is not None:
        made: dict[str, object] = {
            "preset": name,
            "size": size,
            "batch_size": batch_size,
            "data": data,
        }
        made |= {"threads": torch.get_num_threads(), "cores": cores, "made_by": made_by(0)}
        text = msgspec.json.encode(
            {**made, "rows": [{**msgspec.to_builtins(r), "kept": r.kept} for r in rows]}
        )
        out.write_bytes(msgspec.json.format(text, indent=2) + b"\n")


if __name__ == "__main__":
    main()
