"""One process of a training in several, as torchrun starts it; see test_distributed.py."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
import torch

from cascade_calib.labelled import Loaded
from cascade_train.adapters import AdapterConfig, add_adapter
from cascade_train.backbone import build_backbone
from cascade_train.exits import CascadeModel
from cascade_train.loop import Epoch, FitConfig, fit
from cascade_train.presets import preset
from cascade_train.scale import Machine, ended

torch.set_num_threads(1)


def images(count: int, seed: int) -> Loaded:
    """Noise, half of it with a bright square."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int8)
    pixels = rng.integers(0, 120, (count, 32, 32, 3)).astype(np.uint8)
    pixels[labels == 1, 8:20, 8:20] = 230
    return Loaded(pixels, labels, [f"{i}.png" for i in range(count)], None)


def train(run: Path, config: FitConfig, adapter: bool, resume: bool, die: bool) -> list[Epoch]:
    """The same few steps, in however many processes there are."""
    torch.manual_seed(0)
    model = CascadeModel(build_backbone(preset("tiny"), image_size=32), (1, 2))
    network = add_adapter(model, AdapterConfig(rank=2)) if adapter else model

    def progress(_: str, done: int, __: int) -> None:
        if die and done == 3:  # in the second epoch, in the first process
            os.kill(os.getpid(), signal.SIGKILL)

    data = (images(64, 1), images(24, 2))
    with ended(Machine(config.scale, config.amp)) as machine:
        return fit(network, *data, config, run, resume=resume, progress=progress, machine=machine)


if __name__ == "__main__":
    settings = msgspec.json.decode(sys.argv[2].encode(), type=FitConfig)
    train(Path(sys.argv[1]), settings, "lora" in sys.argv, "resume" in sys.argv, "die" in sys.argv)
