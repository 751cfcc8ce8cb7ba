"""What caching the features of a frozen backbone saves when only heads are trained.

In: a network size and how many images and epochs. Out: seconds of an epoch that runs the backbone
each time, of one on cached features, and of the caching itself, from interleaved pairs; and how
many times faster the whole training is.

    python benchmarks/studies/heads_only.py --preset vits16 --images 32 --epochs 30
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_calib.labelled import Loaded
from cascade_train.backbone import build_backbone
from cascade_train.data.readers import Memory
from cascade_train.exits import CascadeModel
from cascade_train.features import HeadsOnly, cache_features
from cascade_train.presets import preset
from cascade_train.scale import Machine, ScaleConfig


def epoch(
    network: nn.Module, inputs: Tensor, labels: Tensor, machine: Machine, batch_size: int
) -> None:
    """Cross-entropy at every exit, one step a batch; only the heads want a gradient."""
    heads = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(heads, lr=1e-4)
    for start in range(0, len(labels), batch_size):
        part = inputs[start : start + batch_size].to(machine.device)
        wanted = labels[start : start + batch_size].to(machine.device)
        with machine.autocast():
            outputs = network(part)
        loss = torch.stack([F.cross_entropy(out.logits.float(), wanted) for out in outputs]).sum()
        optimizer.zero_grad(set_to_none=True)
        machine.backward(loss)
        machine.step(optimizer, heads, 1.0)
        float(loss.detach())


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@click.command()
@click.option("--preset", "name", default="vits16", show_default=True, help="Network size.")
@click.option("--images", default=32, show_default=True, type=click.IntRange(2))
@click.option("--epochs", default=30, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1))
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
def main(name: str, images: int, epochs: int, batch_size: int, pairs: int, threads: int) -> None:
    """Measure both ways of training heads on a frozen backbone."""
    torch.set_num_threads(threads)
    chosen, machine = preset(name), Machine(ScaleConfig())
    size = chosen.image_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    labels = (np.arange(images) % 2).astype(np.int8)
    data = Memory(Loaded(pixels, labels, [str(i) for i in range(images)], None))
    model = CascadeModel(build_backbone(chosen, image_size=size), chosen.exits)
    model.to(machine.device)
    heads = HeadsOnly(model)
    targets = torch.from_numpy(labels).long()
    plain, caching, cached = [], [], []
    for _ in range(pairs):
        started = time.perf_counter()
        held = cache_features(model, data, pixels[:1], machine)[0].read(np.arange(images))
        caching.append(time.perf_counter() - started)
        plain.append(
            timed(lambda: epoch(model, torch.from_numpy(pixels), targets, machine, batch_size))
        )
        cached.append(timed(lambda held=held: epoch(heads, held, targets, machine, batch_size)))
    each = sorted(
        epochs * p / (c + epochs * h) for p, c, h in zip(plain, caching, cached, strict=True)
    )
    click.echo(
        f"{name} at {size} px, {images} images, {pairs} interleaved rounds, medians:\n"
        f"  an epoch through the backbone {statistics.median(plain):.3f} s\n"
        f"  caching, once                 {statistics.median(caching):.3f} s\n"
        f"  an epoch of heads             {statistics.median(cached):.4f} s\n"
        f"{epochs} epochs are {statistics.median(each):.1f} times as fast "
        f"({each[0]:.1f} to {each[-1]:.1f})"
    )


if __name__ == "__main__":
    main()
