"""`cascade-train explora`: from images without labels to an adapted backbone.

In: an `ExploraRequest`. Out: OUT (see `output`). The way: build or fetch the backbone to start
from, read the images, train the objective, merge the adapters, save the backbone alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor
from transformers import DINOv3ViTModel

from cascade_calib.labelled import Progress
from cascade_runtime.errors import ConfigError
from cascade_train.adapters import trainable_share
from cascade_train.explora import output
from cascade_train.explora.adapt import adapt, merged
from cascade_train.explora.config import ExploraConfig
from cascade_train.explora.distill import DistillObjective
from cascade_train.explora.health import Health, examine
from cascade_train.explora.images import read_unlabelled
from cascade_train.explora.mae import MaeObjective
from cascade_train.explora.start import (
    ExploraRequest,
    begin,
    check_size,
    claim,
    described,
    kept_out,
    same,
    starting_backbone,
)
from cascade_train.explora.training import Line, Objective, train
from cascade_train.scale import Machine, ScaleConfig

__all__ = ["ExploraRequest", "ExploraResult", "run_explora"]

PROBE = 256  # images on which health is measured

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExploraResult:
    """The log, the backbone's health before and after, and the parameter counts."""

    log: list[Line]
    before: Health
    after: Health
    trainable: int
    parameters: int


def run_explora(
    request: ExploraRequest,
    config: ExploraConfig,
    *,
    progress: Progress | None = None,
    say: Say = print,
) -> ExploraResult:
    """Adapt as requested.

    Args:
        say: gets one line a step for people.

    Raises:
        ConfigError, DataError: what was asked for cannot be done; the message says why.
    """
    torch.set_num_threads(request.threads or len(os.sched_getaffinity(0)))
    machine = _machine(config)
    claim(request)
    backbone, start = starting_backbone(request)
    backbone.to(machine.device)
    check_size(start.preprocess.height, backbone, config)
    images = read_unlabelled(
        request.data, start.preprocess, keep_out=kept_out(request), progress=progress
    )
    say(images.summary)
    pixels = torch.from_numpy(images.pixels)
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(config.seed))
    probe = pixels[chosen[:PROBE]].to(machine.device)
    before = examine(backbone, probe, config.batch_size)
    explored = described(request, config, start, images, before)
    if request.resume:
        explored = same(explored, output.read_explored(request.out), request.out)

    torch.manual_seed(config.seed)
    objective = _objective(backbone, config, probe)
    if not request.resume:
        begin(request, explored, images)
    trainable, parameters = trainable_share(objective.live["trunk"])
    say(
        f"backbone: {start.preset}, {parameters / 1e6:.2f} M parameters; training "
        f"{trainable / 1e6:.2f} M ({100 * trainable / parameters:.1f} %) on {len(images)} images; "
        f"{config.objective}: {objective.about}"
    )
    log = train(
        objective,
        pixels,
        probe,
        config,
        request.out,
        machine,
        resume=request.resume,
        progress=progress,
        report=lambda line: say(_line(line, config)),
    )
    after = log[-1].health
    adapted = merged(objective.best)
    digest = output.save_backbone(request.out, adapted)
    done = msgspec.structs.replace(explored, after=after, backbone_sha256=digest)
    output.write_explored(request.out, done)
    say(_health_line(before, after))
    if after.collapsed(before):
        say(
            "warning: the representation has collapsed; do not use this backbone. Try a lower "
            "--lr, more images, or the other --objective"
        )
    return ExploraResult(log, before, after, trainable, parameters)


def _machine(config: ExploraConfig) -> Machine:
    """This process and its device; it must be the only one."""
    machine = Machine(ScaleConfig(), config.amp)
    if machine.world > 1:
        raise ConfigError(
            f"explora runs in one process and this is one of {machine.world}; leave torchrun out"
        )
    return machine


def _objective(backbone: DINOv3ViTModel, config: ExploraConfig, probe: Tensor) -> Objective:
    wrapped = adapt(backbone, config)
    if config.objective == "mae":
        return MaeObjective(wrapped, config.mae, probe.shape[1], config.checkpointing)
    return DistillObjective(wrapped, config.distill, probe, config.checkpointing)


def _line(line: Line, config: ExploraConfig) -> str:
    parts = "  ".join(f"{name} {value:.3f}" for name, value in line.parts.items())
    return (
        f"epoch {line.epoch + 1:3d}/{config.epochs}  loss {line.loss:.4f}  {parts}  "
        f"spread {line.feature_std:.3f}  rank {line.effective_rank:.1f}  "
        f"{line.images_per_s:.0f} images/s"
    )


def _health_line(before: Health, after: Health) -> str:
    return (
        f"class tokens: spread {before.feature_std:.3f} before, {after.feature_std:.3f} now; "
        f"effective rank {before.effective_rank:.1f} before, {after.effective_rank:.1f} now"
    )
