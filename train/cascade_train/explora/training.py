"""The loop of adaptation: an epoch at a time, the same bits whether or not it was interrupted.

In: an objective and uint8 pixels. Out: its weights moved, and a line a finished epoch. Order, crops
and masks of an epoch come from (seed, epoch) alone, and the state is saved whole at its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from peft import PeftModel
from torch import Tensor, nn

from cascade_calib.labelled import Progress
from cascade_runtime.errors import ConfigError
from cascade_train.checkpoint import load_state, save_state, trainable, write_atomic
from cascade_train.explora.adapt import inner
from cascade_train.explora.config import ExploraConfig
from cascade_train.explora.health import Health, examine
from cascade_train.scale import Machine, schedule


class Objective(Protocol):
    """What the loop needs: `live` trains, `shadow` follows it, `best` holds what is kept.

    `about` says in a few words what it computes.
    """

    live: nn.ModuleDict
    shadow: nn.Module
    best: PeftModel
    about: str

    def loss(
        self, pixels: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and its parts of uint8 [B, H, W, 3], `progress` (0 to 1) into the run."""

    def after_step(self, progress: float) -> None:
        """What follows an optimiser step."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of log.jsonl; see `health` for the last two."""

    epoch: int
    loss: float
    parts: dict[str, float]
    lr: float
    images_per_s: float
    seconds: float
    feature_std: float
    effective_rank: float

    @property
    def health(self) -> Health:
        return Health(self.feature_std, self.effective_rank)


def train(
    objective: Objective,
    pixels: Tensor,
    probe: Tensor,
    config: ExploraConfig,
    out: Path,
    machine: Machine,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    report: Callable[[Line], None] = lambda line: None,
) -> list[Line]:
    """Train to the last epoch, writing OUT/log.jsonl and OUT/last.safetensors at each one's end.

    Args:
        pixels: uint8 [N, H, W, 3], N at least 2.
        probe: a few of them, on the machine's device, to measure the representation's health on.

    Raises:
        ConfigError: a number is none any more; OUT stays as the last whole epoch left it.
    """
    objective.live.to(machine.device)
    objective.shadow.to(machine.device)
    optimizer = _optimizer(objective.live, config)
    followers: dict[str, Tensor] = {**trainable(objective.shadow)}
    log: list[Line] = []
    if resume and (out / "last.safetensors").exists():
        notes = load_state(out, objective.live, followers, optimizer)
        log = msgspec.convert(notes["log"], list[Line])
    for epoch in range(len(log), config.epochs):
        started = time.monotonic()
        loss, parts = _epoch(objective, optimizer, machine, pixels, config, epoch, progress)
        trained = time.monotonic() - started
        health = examine(inner(objective.best), probe, config.batch_size)
        if not math.isfinite(health.feature_std):
            raise _diverged("a feature", epoch, config)
        line = Line(
            epoch=epoch,
            loss=loss,
            parts=parts,
            lr=optimizer.param_groups[0]["lr"],
            images_per_s=steps_of(pixels, config) * min(config.batch_size, len(pixels)) / trained,
            seconds=time.monotonic() - started,
            feature_std=health.feature_std,
            effective_rank=health.effective_rank,
        )
        log.append(line)
        write_atomic(out / "log.jsonl", b"".join(msgspec.json.encode(e) + b"\n" for e in log))
        notes = {"log": msgspec.to_builtins(log)}
        save_state(out, objective.live, followers, optimizer, notes)
        report(line)
    return log


def _epoch(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    machine: Machine,
    pixels: Tensor,
    config: ExploraConfig,
    epoch: int,
    progress: Progress | None,
) -> tuple[float, dict[str, float]]:
    """One pass over the images; the mean loss and its mean parts."""
    seed = config.seed * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the jitter of RoPE positions draws from here
    order = torch.randperm(len(pixels), generator=generator)
    steps = steps_of(pixels, config)
    all_steps = config.epochs * steps
    objective.live.train()
    sums: dict[str, float] = {}
    for step in range(steps):
        done = epoch * steps + step
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate(done, all_steps, config, group["part"])
        batch = pixels[order[step * config.batch_size : (step + 1) * config.batch_size]]
        with machine.autocast():
            loss, parts = objective.loss(batch.to(machine.device), generator, done / all_steps)
        parts = {"loss": loss.detach(), **parts}
        for name, value in parts.items():
            if not torch.isfinite(value):
                raise _diverged(f"the {name}", epoch, config)
            sums[name] = sums.get(name, 0.0) + float(value)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for part in objective.live.values():  # apart: a new head's steep slopes must not
            norm = nn.utils.clip_grad_norm_(trainable(part).values(), config.clip)  # brake the rest
            if not torch.isfinite(norm):
                raise _diverged("a gradient", epoch, config)
        optimizer.step()
        objective.after_step((done + 1) / all_steps)
        if progress is not None:
            progress("adapting", done + 1, all_steps)
    means = {name: value / steps for name, value in sums.items()}
    return means.pop("loss"), means


def rate(step: int, steps: int, config: ExploraConfig, part: str) -> float:
    """Factor of the peak learning rate: linear warm-up, cosine to zero.

    The "trunk" begins when the head has had its first steps, and then warms up in its turn.
    """
    wait = round(steps * config.head_first) if part == "trunk" else 0
    if step < wait:
        return 0.0
    return schedule(step - wait, steps - wait, config.warmup)


def steps_of(pixels: Tensor, config: ExploraConfig) -> int:
    """Steps an epoch: whole batches, but one step where not even one is full."""
    return max(1, len(pixels) // config.batch_size)


def _optimizer(live: nn.ModuleDict, config: ExploraConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms, scales, tokens) do not."""
    groups: list[dict[str, Any]] = []
    for part, module in live.items():
        parameters = list(trainable(module).values())
        for decay, members in (
            (config.weight_decay, [p for p in parameters if p.ndim == 2]),
            (0.0, [p for p in parameters if p.ndim != 2]),
        ):
            groups.append({"params": members, "weight_decay": decay, "part": part})
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def _diverged(what: str, epoch: int, config: ExploraConfig) -> ConfigError:
    kept = f"the state after epoch {epoch} is kept" if epoch else "nothing was kept yet"
    return ConfigError(
        f"{what} is no longer a number in epoch {epoch + 1}; {kept}. Start again into another "
        f"--out with a lower --lr than {config.lr:g} or with --amp none"
    )
