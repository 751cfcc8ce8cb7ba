"""The training loop: AdamW, warm-up and cosine, weight average, selection under constraints.

In: a network, batches of labelled images, and the inputs and labels of `val_select`. Out: the
selected weights in the run folder and a log line an epoch. A run that is killed and resumed ends
with the same weights as one that was not: every epoch draws its order and augmentation from
(seed, epoch) alone, and the state is saved whole at the end of each epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cascade_calib.labelled import Loaded, Progress
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError
from cascade_train.augment_config import AugmentConfig
from cascade_train.average import Average
from cascade_train.checkpoint import load_state, save_selected, save_state, trainable, write_atomic
from cascade_train.constraints import Constraints, OperatingPoint, Standing, better, standing
from cascade_train.data.loader import Batches
from cascade_train.data.readers import Memory, Reader
from cascade_train.exits import CascadeModel, ExitLogits
from cascade_train.features import HeadsOnly, cache_features
from cascade_train.losses import LossConfig, loss_parts, with_class_weights
from cascade_train.scale import (
    Amp,
    Machine,
    ScaleConfig,
    autocast,
    parameter_groups,
    precision,
    schedule,
    unwrapped,
)
from cascade_train.score_choice import ScoreConfig


class FitConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train.

    lr: at its peak. warmup: share of steps spent rising to it. batch_size: images a step, over all
    processes. clip: largest norm of the gradient. ema: decay of the weight average. patience: stop
    after so many epochs without gain; 0: never. freeze: "backbone" trains the heads alone, on
    features that are computed once. workers: processes that read and augment images. tensorboard:
    also write RUN/tensorboard.
    """

    epochs: int = 12
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    ema: float = 0.99
    patience: int = 0
    amp: Amp = "auto"
    freeze: Literal["none", "backbone"] = "none"
    workers: int = 0
    tensorboard: bool = False
    seed: int = 0
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    constraints: Constraints = Constraints()
    scores: ScoreConfig = ScoreConfig()
    scale: ScaleConfig = ScaleConfig()

    def __post_init__(self) -> None:
        limits = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 2,
            "lr": 0 < self.lr < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup < 1,
            "clip": self.clip > 0,
            "ema": 0 <= self.ema < 1,
            "patience": self.patience >= 0,
            "workers": self.workers >= 0,
        }
        for field, good in limits.items():
            if not good:
                raise ConfigError(f"{field} is {getattr(self, field)}, which is out of range")


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One line of log.jsonl.

    loss and its parts: means over the epoch. augrc: mean over exits, each by its better score of
    softmax and gate. point: the last exit's nearest threshold to the constraints; eligible: it
    meets them. images_per_s: of training, data included; seconds: of the whole epoch.
    """

    epoch: int
    loss: float
    parts: dict[str, float] = {}
    lr: float
    accuracy: tuple[float, ...]
    augrc: float
    fnr: float
    point: OperatingPoint | None = None
    eligible: bool
    selected: bool
    images_per_s: float
    seconds: float

    @property
    def standing(self) -> Standing:
        """What this epoch is compared by."""
        assert self.point is not None
        return Standing(point=self.point, augrc=self.augrc)


Report = Callable[[Epoch], None]


def fit(
    model: nn.Module,
    train: Loaded | Reader,
    select: Loaded,
    config: FitConfig,
    run: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    report: Report = lambda epoch: None,
    machine: Machine | None = None,
) -> list[Epoch]:
    """Train, write the best weights into `run`, return the log.

    Args:
        model: a CascadeModel, or one wrapped by PEFT.
        train: images in memory, or a reader of them.
        report: called with each finished `Epoch`, in the first process.

    Raises:
        ConfigError: the loss is no longer a number; the last good weights stay in `run`.
        DataError: an image can no longer be read, or a class is empty where weights need both.
    """
    machine = machine or Machine(config.scale, config.amp)
    reader = Memory(train) if isinstance(train, Loaded) else train
    config = _with_numbers(config, reader)
    trained, inputs, augment = model, select.pixels, config.augment
    if config.freeze == "backbone":
        if not isinstance(model, CascadeModel):
            raise ConfigError("freeze is backbone, which leaves an adapter nothing to adapt")
        trained, augment = HeadsOnly(model), AugmentConfig(policy="none")
        reader, inputs = cache_features(model.to(machine.device), reader, inputs, machine, progress)
    batches = Batches(
        reader,
        augment,
        batch_size=config.batch_size,
        seed=config.seed,
        size=reader.size if config.freeze == "backbone" else select.pixels.shape[1:3],
        shard=machine.shard,
        workers=config.workers,
    )
    with batches:
        trainer = _Trainer(trained, batches, config, machine)
        judge = _Judge(inputs, select.labels, config, machine)
        return _epochs(trainer, judge, model, run, resume, progress, report)


def _epochs(
    trainer: _Trainer,
    judge: _Judge,
    whole: nn.Module,
    run: Path,
    resume: bool,
    progress: Progress | None,
    report: Report,
) -> list[Epoch]:
    config, machine = trainer.config, trainer.machine
    log: list[Epoch] = []
    if resume and (run / "last.safetensors").exists():
        notes = load_state(run, trainer.bare, trainer.average.weights, trainer.optimizer)
        log = msgspec.convert(notes["log"], list[Epoch])
        trainer.average.count = notes["averaged"]
        machine.restore_scaler(notes.get("scaler", {}))
    for epoch in range(len(log), config.epochs):
        if _out_of_patience(log, config.patience):  # here, so that a resumed run stops as well
            break
        started = time.monotonic()
        parts = trainer.run_epoch(epoch, progress)
        with trainer.average.applied(trainer.bare):
            entry = judge(trainer.model, log)
            entry = msgspec.structs.replace(
                entry,
                epoch=epoch,
                loss=sum(parts.values()),
                parts=parts,
                lr=trainer.lr,
                images_per_s=trainer.images_per_s,
                seconds=time.monotonic() - started,
            )
            if entry.selected:
                save_selected(run, whole, write=machine.is_first)
        log.append(entry)
        if machine.is_first:
            lines = b"".join(msgspec.json.encode(e) + b"\n" for e in log)
            write_atomic(run / "log.jsonl", lines)
        notes = {"log": msgspec.to_builtins(log), "averaged": trainer.average.count}
        notes["scaler"] = machine.scaler_state()
        state = (trainer.average.weights, trainer.optimizer, notes)
        save_state(run, trainer.bare, *state, write=machine.is_first)
        machine.wait()
        if machine.is_first:
            report(entry)
    return log


def _out_of_patience(log: list[Epoch], patience: int) -> bool:
    """Whether the last `patience` epochs brought no gain; 0 waits for ever."""
    return patience > 0 and len(log) > patience and not any(e.selected for e in log[-patience:])


def _with_numbers(config: FitConfig, reader: Reader) -> FitConfig:
    """The config with the class weights of these training images."""
    loss = with_class_weights(config.loss, reader.labels.numpy())
    return msgspec.structs.replace(config, loss=loss)


class _Trainer:
    """One epoch at a time."""

    def __init__(
        self, model: nn.Module, batches: Batches, config: FitConfig, machine: Machine
    ) -> None:
        self.batches, self.config, self.machine = batches, config, machine
        self.model = machine.place(model)
        self.bare = unwrapped(self.model)
        groups = parameter_groups(
            trainable(self.bare), _depth(model), config.weight_decay, config.scale.layer_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
        self.average = Average(self.bare, config.ema)
        self.lr = self.images_per_s = 0.0

    def run_epoch(self, epoch: int, progress: Progress | None) -> dict[str, float]:
        """Returns the mean of each part of the loss."""
        config, steps = self.config, self.batches.steps
        started, total = time.monotonic(), config.epochs * steps
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # RoPE jitter and dropout draw from here
        self.model.train()
        sums: dict[str, float] = {}
        parts = self.batches.epoch(epoch)
        for done in range(epoch * steps, (epoch + 1) * steps):
            self.lr = config.lr * schedule(done, total, config.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * group["scale"]
            for name, value in self._step(parts, done).items():
                sums[name] = sums.get(name, 0.0) + value
            if progress is not None and self.machine.is_first:
                progress("training", done + 1, total)
        self.images_per_s = self.batches.images / (time.monotonic() - started)
        return {name: self.machine.mean(value / steps) for name, value in sums.items()}

    def _step(self, parts: Iterator[tuple[Tensor, Tensor]], done: int) -> dict[str, float]:
        """One step of the optimiser, over `accumulate` parts."""
        config, machine, shard = self.config, self.machine, self.machine.shard
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for micro in range(shard.accumulate):
            inputs, labels = next(parts)
            if shard.parts > 1:  # as many streams as parts, whoever computes them
                part = micro * shard.world + shard.rank
                torch.manual_seed((config.seed * 1_000_003 + done) * shard.parts + part)
            with machine.part(self.model, last=micro == shard.accumulate - 1):
                with machine.autocast():
                    outputs = self.model(inputs.to(machine.device))
                losses = loss_parts(outputs, labels.to(machine.device), config.loss)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / shard.accumulate
                if not math.isfinite(sum(sums.values())):
                    raise _diverged("the loss", config)
                machine.backward(torch.stack(list(losses.values())).sum())
        machine.step(self.optimizer, trainable(self.bare).values(), config.clip)
        self.average.update(self.bare)
        return sums


def _depth(model: nn.Module) -> int:
    """How many blocks the network has."""
    for module in model.modules():
        if isinstance(module, CascadeModel):
            return int(module.backbone.config.num_hidden_layers)
    return 0


class _Judge:
    """Measures on `val_select` and decides whether these weights are the best so far."""

    def __init__(
        self,
        inputs: npt.NDArray[Any],
        labels: npt.NDArray[np.int8],
        config: FitConfig,
        machine: Machine,
    ) -> None:
        self.inputs, self.labels, self.config, self.machine = inputs, labels, config, machine

    def __call__(self, model: nn.Module, log: list[Epoch]) -> Epoch:
        logits, gates = predict(model, self.inputs, self.machine)
        if not (np.isfinite(logits).all() and np.isfinite(gates).all()):
            raise _diverged("an output on val_select", self.config)
        wrong = logits.argmax(axis=2) != self.labels
        margins = np.abs(logits[:, :, 1] - logits[:, :, 0])
        pairs = zip(margins, gates, wrong, strict=True)
        scores = [min((m, g), key=lambda s: augrc(s, w)) for m, g, w in pairs]
        last = standing(scores[-1], wrong[-1], self.labels, self.config.constraints)
        area = float(np.mean([augrc(s, w) for s, w in zip(scores, wrong, strict=True)]))
        positives = self.labels == 1
        entry = Epoch(
            epoch=len(log),
            loss=0.0,
            lr=0.0,
            accuracy=tuple(round(float(1 - w.mean()), 6) for w in wrong),
            augrc=area,
            fnr=float(wrong[-1][positives].mean()) if positives.any() else 0.0,
            point=last.point,
            eligible=last.satisfied,
            selected=False,
            images_per_s=0.0,
            seconds=0.0,
        )
        best = [e.standing for e in log if e.selected]
        selected = better(entry.standing, best[-1] if best else None)
        return msgspec.structs.replace(entry, selected=selected)


def _diverged(what: str, config: FitConfig) -> ConfigError:
    return ConfigError(
        f"{what} is no longer a number; the best weights so far are kept. "
        f"Try a lower --lr than {config.lr:g} or --amp none"
    )


@torch.no_grad()
def predict(
    model: nn.Module,
    inputs: npt.NDArray[Any],
    machine: Machine | None = None,
    *,
    amp: Amp = "none",
    batch_size: int = 256,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Every exit's logits float32 [S, N, 2] and gates float32 [S, N], in eval mode.

    Args:
        inputs: uint8 [N, H, W, 3], or what `model` takes instead.
        machine: the processes that share the work, and their precision; None: this one, with `amp`.
    """
    model.eval()
    device = next(model.parameters()).device
    dtype = precision(amp, device) if machine is None else machine.dtype
    rank, world = (0, 1) if machine is None else (machine.rank, machine.world)
    share = -(-len(inputs) // world)
    rows = np.resize(np.arange(rank, len(inputs), world), share)  # all run equally many
    logits, gates = [], []
    for start in range(0, share, batch_size):
        batch = torch.from_numpy(inputs[rows[start : start + batch_size]]).to(device)
        with autocast(device, dtype):
            outputs: list[ExitLogits] = model(batch)
        logits.append(torch.stack([o.logits.float() for o in outputs], dim=1))
        gates.append(torch.stack([o.gate.float() for o in outputs], dim=1))
    found = [torch.cat(logits), torch.cat(gates)]
    if machine is not None:
        found = [machine.gather(part) for part in found]
        machine.reshard(model)
    first, second = (_in_order(part.cpu(), world, len(inputs)) for part in found)
    return first, second


def _in_order(gathered: Tensor, world: int, count: int) -> npt.NDArray[np.float32]:
    """[S, N, ...] from the processes' shares one after another, [W * n, S, ...]."""
    shares = gathered.unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)[:count]
    return np.ascontiguousarray(shares.transpose(0, 1).numpy())
