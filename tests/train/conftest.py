"""An easy question in coloured squares, a network of two small blocks, and one trained run."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums are split by thread

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cascade_calib.labelled import Loaded
from cascade_train.augment_config import AugmentConfig
from cascade_train.backbone import build_backbone
from cascade_train.exits import CascadeModel
from cascade_train.fit import FitRequest, run_fit
from cascade_train.loop import FitConfig
from cascade_train.presets import preset

torch.set_num_threads(1)
SIDE = 32
EXITS = (1, 2)  # of the six blocks of "tiny": blocks after the last exit are never run
STILL = AugmentConfig(policy="none")
QUICK = FitConfig(epochs=3, batch_size=32, lr=2e-3, ema=0.8, amp="none", augment=STILL)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Also after a command that took all of them."""
    torch.set_num_threads(1)


def draw_square(seed: int, square: bool, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3]: grey noise, with or without a bright orange square somewhere."""
    rng = np.random.default_rng(seed)
    image = rng.integers(40, 120, (side, side, 3))
    if square:
        size = int(rng.integers(side // 3, side // 2))
        y, x = rng.integers(0, side - size, 2)
        image[y : y + size, x : x + size] = (230, 120, 20)
    return image.astype(np.uint8)


def write_squares(root: Path, n: int, side: int = SIDE) -> Path:
    """`root/plain` and `root/square` with `n` PNGs each."""
    for label, name in enumerate(("plain", "square")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            image = draw_square(100_000 * label + i, bool(label), side)
            Image.fromarray(image).save(root / name / f"{i:04d}.png", compress_level=0)
    return root


def load_squares(n: int, first: int = 0) -> Loaded:
    """`n` images in memory, classes alternating."""
    labels = np.arange(n, dtype=np.int8) % 2
    pixels = np.stack([draw_square(first + i, bool(labels[i])) for i in range(n)])
    return Loaded(pixels, labels, tuple(f"{first + i}" for i in range(n)), None)


def new_model(seed: int = 0) -> CascadeModel:
    torch.manual_seed(seed)
    return CascadeModel(build_backbone(preset("tiny"), image_size=SIDE), EXITS)


@pytest.fixture
def model() -> CascadeModel:
    """A network with random weights, the same every time, in eval mode."""
    return new_model().eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[[int], CascadeModel]:
    """Call it with a seed for a network with the weights of that seed."""
    return new_model


@pytest.fixture(scope="session")
def squares() -> Callable[..., Loaded]:
    """Labelled images in memory: call it with how many, and the first one's number."""
    return load_squares


@pytest.fixture
def pixels() -> torch.Tensor:
    """uint8 [4, 32, 32, 3]."""
    return torch.from_numpy(load_squares(4).pixels)


@pytest.fixture(scope="session")
def quick() -> FitConfig:
    """Training settings for seconds."""
    return QUICK


@pytest.fixture(scope="session")
def square_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with 120 images each."""
    return write_squares(tmp_path_factory.mktemp("data") / "squares", 120)


def quick_fit(data: Path, out: Path, **changes: object) -> list[str]:
    """`run_fit` with the settings of these tests; returns what it said."""
    said: list[str] = []
    asked: dict[str, object] = {"exits": EXITS, "image_size": SIDE} if "init" not in changes else {}
    asked |= changes
    config = asked.pop("config", QUICK)
    request = FitRequest(data=str(data), out=out, threads=1, **asked)  # type: ignore[arg-type]
    run_fit(request, config, say=said.append)  # type: ignore[arg-type]
    return said


@pytest.fixture(scope="session")
def fit_squares(square_folder: Path) -> Callable[..., list[str]]:
    """Train on the squares: `fit_squares(out, **FitRequest fields)` returns what was said."""
    return lambda out, **changes: quick_fit(square_folder, out, **changes)


@pytest.fixture(scope="session")
def base_run(tmp_path_factory: pytest.TempPathFactory, fit_squares: Callable[..., object]) -> Path:
    """A finished run, full training. Tests that change it work on a copy."""
    run = tmp_path_factory.mktemp("runs") / "base"
    fit_squares(run)
    return run


@pytest.fixture(scope="session")
def adapted_run(base_run: Path, fit_squares: Callable[..., object]) -> Path:
    """A finished run beside `base_run` that adapted it with LoRA of rank 4."""
    from cascade_train.adapters import AdapterConfig

    run = base_run.with_name("adapted")
    fit_squares(run, init=base_run, adapter=AdapterConfig(rank=4))
    return run


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`cascade-train ARGS` in this process: exit status, stdout, stderr."""
    from cascade_train.cli import main

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cascade-train", *map(str, args)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
