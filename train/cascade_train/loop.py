"""The training loop: AdamW, warm-up and cosine, EMA, selection by AUGRC under an FNR limit.

In: a network, uint8 pixels and labels of `train` and `val_select`. Out: the selected weights in the
run folder and a log line an epoch. A run that is killed and resumed ends with the same weights as
one that was not: every epoch draws its order and augmentation from (seed, epoch) alone, and the
state is saved whole at the end of each epoch.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cascade_calib.labelled import Loaded, Progress
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError
from cascade_train.augment import Augment
from cascade_train.checkpoint import load_state, save_selected, save_state, trainable, write_atomic
from cascade_train.losses import LossWeights, joint_loss


class FitConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train. `lr` is the peak; `warmup` the share of steps spent rising to it."""

    epochs: int = 12
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    ema: float = 0.99
    patience: int = 0
    max_fnr: float = 0.2
    amp: Literal["auto", "bf16", "none"] = "auto"
    augment: bool = True
    seed: int = 0
    loss: LossWeights = LossWeights()

    def __post_init__(self) -> None:
        limits = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 2,
            "lr": 0 < self.lr < math.inf,
            "warmup": 0 <= self.warmup < 1,
            "ema": 0 <= self.ema < 1,
            "patience": self.patience >= 0,
            "max_fnr": 0 <= self.max_fnr <= 1,
        }
        for field, good in limits.items():
            if not good:
                raise ConfigError(f"{field} is {getattr(self, field)}, which is out of range")


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One line of log.jsonl. `augrc` is the mean over exits, each by its better score."""

    epoch: int
    loss: float
    lr: float
    accuracy: tuple[float, ...]
    augrc: float
    fnr: float
    eligible: bool
    selected: bool
    images_per_s: float
    seconds: float


def fit(
    model: nn.Module,
    train: Loaded,
    select: Loaded,
    config: FitConfig,
    run: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    report: Any = lambda epoch: None,
) -> list[Epoch]:
    """Train, write the best weights into `run`, return the log.

    Args:
        model: a CascadeModel, or one wrapped by PEFT.
        report: called with each finished `Epoch`.

    Raises:
        ConfigError: the loss is no longer a number; the last good weights stay in `run`.
    """
    ema = AveragedModel(model, avg_fn=_warm_average(config.ema))
    for averaged, live in zip(ema.parameters(), model.parameters(), strict=True):
        averaged.requires_grad_(live.requires_grad)
    optimizer = _optimizer(model, config)
    log: list[Epoch] = []
    if resume and (run / "last.safetensors").exists():
        notes = load_state(run, model, ema, optimizer)
        log = msgspec.convert(notes["log"], list[Epoch])
        ema.n_averaged.fill_(notes["averaged"])
    trainer = _Trainer(model, ema, optimizer, train, config)
    for epoch in range(len(log), config.epochs):
        if _out_of_patience(log, config.patience):  # here, so that a resumed run stops as well
            break
        started = time.monotonic()
        loss = trainer.run_epoch(epoch, progress)
        entry = _judge(ema.module, select, config, log, epoch, loss)
        entry = msgspec.structs.replace(
            entry,
            lr=optimizer.param_groups[0]["lr"],
            images_per_s=len(train.labels) / trainer.seconds,
            seconds=time.monotonic() - started,
        )
        if entry.selected:
            save_selected(run, ema.module)
        log.append(entry)
        write_atomic(run / "log.jsonl", b"".join(msgspec.json.encode(e) + b"\n" for e in log))
        notes = {"log": msgspec.to_builtins(log), "averaged": int(ema.n_averaged)}
        save_state(run, model, ema, optimizer, notes)
        report(entry)
    return log


def _out_of_patience(log: list[Epoch], patience: int) -> bool:
    """Whether the last `patience` epochs brought no gain; 0 waits for ever."""
    return patience > 0 and len(log) > patience and not any(e.selected for e in log[-patience:])


class _Trainer:
    """One epoch at a time over data held in memory."""

    def __init__(
        self,
        model: nn.Module,
        ema: AveragedModel,
        optimizer: torch.optim.Optimizer,
        data: Loaded,
        config: FitConfig,
    ) -> None:
        self.model, self.ema, self.optimizer, self.config = model, ema, optimizer, config
        self.pixels = torch.from_numpy(data.pixels)
        self.labels = torch.from_numpy(data.labels.astype(np.int64))
        self.steps = max(1, len(self.labels) // config.batch_size)
        self.amp = use_bf16(config.amp)
        self.augment = Augment()
        self.seconds = 0.0

    def run_epoch(self, epoch: int, progress: Progress | None) -> float:
        """Returns the mean loss."""
        config, started = self.config, time.monotonic()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # RoPE jitter and dropout draw from here
        order = torch.randperm(len(self.labels), generator=generator)
        self.model.train()
        total, all_steps = 0.0, config.epochs * self.steps
        for step in range(self.steps):
            batch = order[step * config.batch_size : (step + 1) * config.batch_size]
            done = epoch * self.steps + step
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * _schedule(done, all_steps, config.warmup)
            total += self._step(self.pixels[batch], self.labels[batch], generator)
            if progress is not None:
                progress("training", done + 1, all_steps)
        self.seconds = time.monotonic() - started
        return total / self.steps

    def _step(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> float:
        if self.config.augment:
            pixels = self.augment(pixels, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
            outputs = self.model(pixels)
        loss = joint_loss(outputs, labels, self.config.loss)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged("the loss", self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable(self.model).values(), self.config.clip)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        return value


def _judge(
    model: nn.Module, select: Loaded, config: FitConfig, log: list[Epoch], epoch: int, loss: float
) -> Epoch:
    """Measure on `val_select` and decide whether these weights are the best so far."""
    logits, gates = predict(model, select.pixels, use_bf16(config.amp))
    if not (np.isfinite(logits).all() and np.isfinite(gates).all()):
        raise _diverged("an output on val_select", config)
    wrong = logits.argmax(axis=2) != select.labels
    margins = np.abs(logits[:, :, 1] - logits[:, :, 0])
    area = float(
        np.mean(
            [min(augrc(m, w), augrc(g, w)) for m, g, w in zip(margins, gates, wrong, strict=True)]
        )
    )
    positives = select.labels == 1
    fnr = float(wrong[-1][positives].mean()) if positives.any() else 0.0
    accuracy = tuple(round(float(1 - w.mean()), 6) for w in wrong)
    entry = Epoch(
        epoch=epoch,
        loss=loss,
        lr=0.0,
        accuracy=accuracy,
        augrc=area,
        fnr=fnr,
        eligible=fnr <= config.max_fnr,
        selected=False,
        images_per_s=0.0,
        seconds=0.0,
    )
    best = [e for e in log if e.selected]
    return msgspec.structs.replace(entry, selected=not best or improves(entry, best[-1]))


def improves(new: Epoch, best: Epoch) -> bool:
    """Whether `new` is to be kept instead of the `best` so far.

    Among epochs within the FNR limit the lowest AUGRC wins; while none is, the lowest FNR does.
    """
    if new.eligible != best.eligible:
        return new.eligible
    return new.augrc < best.augrc if new.eligible else new.fnr < best.fnr


def _diverged(what: str, config: FitConfig) -> ConfigError:
    return ConfigError(
        f"{what} is no longer a number; the best weights so far are kept. "
        f"Try a lower --lr than {config.lr:g} or --amp none"
    )


@torch.no_grad()
def predict(
    model: nn.Module, pixels: np.ndarray, bf16: bool, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Every exit's logits float32 [S, N, 2] and gates float32 [S, N], in eval mode."""
    model.eval()
    logits, gates = [], []
    for start in range(0, len(pixels), batch_size):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(torch.from_numpy(pixels[start : start + batch_size]))
        logits.append(torch.stack([o.logits.float() for o in outputs]))
        gates.append(torch.stack([o.gate.float() for o in outputs]))
    return torch.cat(logits, dim=1).numpy(), torch.cat(gates, dim=1).numpy()


def use_bf16(amp: str) -> bool:
    """Whether to autocast to bfloat16: when asked, or on `auto` where the CPU multiplies it."""
    if amp == "auto":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return amp == "bf16"


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms, scales, tokens) do not."""
    parameters = trainable(model).values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then cosine to zero; a factor of the peak learning rate."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _warm_average(decay: float) -> Any:
    """EMA whose decay grows from 0 to `decay`, so that early noise is forgotten."""

    def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        n = float(count)
        return torch.lerp(old, new, 1 - min(decay, (1 + n) / (10 + n)))

    return average
