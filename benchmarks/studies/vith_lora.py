"""Whether a ViT-H+ can be adapted on a machine of 24 GiB that has no GPU.

In: nothing; the weights and the images are random. Out: seconds and peak memory of one LoRA
training step (forward, backward, AdamW, adapter saved) and of one merge (adapter loaded, folded in
float32, merged weights written), and by how much the merged network's answers differ from the
unmerged one's. Each of the two runs in a process of its own, so that its peak is its own.

    python benchmarks/studies/vith_lora.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cascade_bench.fresh_process import peak_memory_mib
from cascade_train.presets import PRESETS, preset

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cascade_train.exits import CascadeModel

LIMIT_GIB = 20.0
SEED = 0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured; `folder` holds what the step leaves for the merge."""

    preset: str
    batch_size: int
    rank: int
    checkpointing: bool
    bf16: bool
    threads: int | None
    folder: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one process took: seconds by part, and the peak of its resident memory."""

    seconds: dict[str, float]
    peak_gib: float
    share: str = ""
    difference: float | None = None


@click.command()
@click.option("--preset", default="vith16plus", show_default=True, type=click.Choice(list(PRESETS)))
@click.option("--batch-size", default=2, show_default=True, type=click.IntRange(1))
@click.option("--rank", default=16, show_default=True, type=click.IntRange(1))
@click.option("--checkpointing", is_flag=True, help="Recompute each block in the backward pass.")
@click.option("--bf16", is_flag=True, help="Autocast the forward pass to bfloat16.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all]")
@click.option("--limit", default=LIMIT_GIB, show_default=True, help="Highest peak, in GiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool, limit: float, **options: Any) -> None:
    """Measure a step and a merge; status 1 where a peak is above the limit."""
    with tempfile.TemporaryDirectory() as folder:
        order = Order(folder=folder, **options)
        step, merge = in_fresh_process("step", order), in_fresh_process("merge", order)
    peak = max(step.peak_gib, merge.peak_gib)
    if as_json:
        found = {"step": msgspec.to_builtins(step), "merge": msgspec.to_builtins(merge)}
        click.echo(json.dumps({**options, **found, "peak_gib": peak, "limit_gib": limit}))
    else:
        precision = "bfloat16 autocast" if order.bf16 else "float32"
        kept = "activations recomputed" if order.checkpointing else "all activations kept"
        click.echo(f"{order.preset}, batch {order.batch_size}, {precision}, {kept}: {step.share}")
        click.echo(line("training step", step))
        click.echo(line("merge", merge))
        click.echo(f"merged and unmerged answers differ by at most {merge.difference:.1e}")
        click.echo(f"highest peak {peak:.2f} GiB (limit {limit:g} GiB)")
    if peak > limit:
        raise click.ClickException(f"the peak of {peak:.2f} GiB is above {limit:g} GiB")


def line(name: str, found: Found) -> str:
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found.seconds.items())
    return f"{name:14} peak {found.peak_gib:5.2f} GiB   {parts}"


def in_fresh_process(phase: str, order: Order) -> Found:
    """Run this file once more for one phase: the order on its stdin, what it found on stdout."""
    done = subprocess.run(
        [sys.executable, __file__, phase],
        input=msgspec.json.encode(order),
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"the {phase} ended with status {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Found)


class Clock:
    """Seconds by part: each call names what has just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self.last = round(now - self.last, 3), now


def new_network(order: Order) -> tuple[CascadeModel, Tensor]:
    """The same random network and images [B, H, W, 3] for the same order."""
    import torch

    from cascade_train.backbone import build_backbone
    from cascade_train.exits import CascadeModel

    torch.set_num_threads(order.threads or torch.get_num_threads())
    torch.manual_seed(SEED)
    size = preset(order.preset)
    model = CascadeModel(build_backbone(size), size.exits)
    shape = (order.batch_size, size.image_size, size.image_size, 3)
    return model, torch.randint(0, 256, shape, dtype=torch.uint8)


def train_step(order: Order) -> Found:
    """One step of AdamW on the cross-entropy of every exit; leaves the adapter in the folder."""
    import torch

    from cascade_train.adapters import AdapterConfig, add_adapter, save_adapter, share_text

    clock = Clock()
    model, pixels = new_network(order)
    if order.checkpointing:
        model.backbone.activation_checkpointing_enable()
    adapted = add_adapter(model, AdapterConfig(rank=order.rank)).train()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    labels = torch.arange(order.batch_size) % 2
    clock("build")
    with torch.autocast("cpu", torch.bfloat16, enabled=order.bf16):
        outputs = adapted(pixels)
    losses = [torch.nn.functional.cross_entropy(out.logits.float(), labels) for out in outputs]
    clock("forward")
    torch.stack(losses).sum().backward()
    clock("backward")
    optimizer.step()
    clock("AdamW")
    save_adapter(adapted, Path(order.folder) / "adapter")
    clock("save")
    return Found(
        seconds=clock.seconds, peak_gib=peak_memory_mib() / 1024, share=share_text(adapted)
    )


def merge_and_write(order: Order) -> Found:
    """Load the step's adapter on the base, merge, write; compare the answers before and after."""
    import torch

    from cascade_train.adapters import load_adapter, save_merged

    def answers(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.stack([out.logits for out in network.eval()(pixels)])

    clock = Clock()
    model, pixels = new_network(order)
    clock("build")
    adapted = load_adapter(model, Path(order.folder) / "adapter")
    clock("load")
    before = answers(adapted)
    clock("answer")
    merged = save_merged(adapted, Path(order.folder) / "model.safetensors")
    clock("merge and write")
    difference = float((answers(merged) - before).abs().max())
    clock("answer again")
    return Found(seconds=clock.seconds, peak_gib=peak_memory_mib() / 1024, difference=difference)


PHASES: dict[str, Callable[[Order], Found]] = {"step": train_step, "merge": merge_and_write}


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in PHASES:
        asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
        sys.stdout.buffer.write(msgspec.json.encode(PHASES[sys.argv[1]](asked)))
    else:
        main()
