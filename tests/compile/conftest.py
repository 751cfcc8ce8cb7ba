"""One trained run, its exported stages and one bundle, made once for all tests here."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums are split by thread

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from cascade_calib.labelled import Loaded
from cascade_calib.path import Request
from cascade_compile import build_target, targets
from cascade_compile import bundle as bundles
from cascade_compile.bundle import BundleRequest
from cascade_compile.export import export_stages
from cascade_runtime.engines import backend
from cascade_runtime.manifest import Manifest
from cascade_train.augment_config import AugmentConfig
from cascade_train.checkpoint import load_network
from cascade_train.data import load_split_pixels
from cascade_train.exits import CascadeModel
from cascade_train.fit import FitRequest, run_fit
from cascade_train.loop import FitConfig

torch.set_num_threads(1)
SIDE = 32
ONNX = "onnxruntime/fp32/cpu"
NO_BF16 = backend("openvino").unavailable("bf16", "cpu")
OPENVINO = "openvino/fp32/cpu" if NO_BF16 else "openvino/bf16/cpu"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Also after a command that took all of them."""
    torch.set_num_threads(1)


def draw_square(seed: int, square: bool) -> np.ndarray:
    """uint8 [32, 32, 3]: grey noise, with or without an orange square, some of them faint."""
    rng = np.random.default_rng(seed)
    image = rng.integers(40, 120, (SIDE, SIDE, 3)).astype(np.float64)
    if square:
        size, strength = int(rng.integers(8, 16)), rng.uniform(0.3, 1.0)
        y, x = rng.integers(0, SIDE - size, 2)
        part = image[y : y + size, x : x + size]
        part += strength * (np.array([230, 120, 20]) - part)
    return image.astype(np.uint8)


@dataclass(frozen=True)
class Trained:
    """A finished run, its network, and its splits' pixels."""

    run: Path
    model: CascadeModel
    select: Loaded
    calib: Loaded


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network of two blocks with an exit after each; its folders have spaces in their names."""
    root = tmp_path_factory.mktemp("first run")
    data = root / "my images"
    for label, name in enumerate(("no square", "square")):
        (data / name).mkdir(parents=True)
        for i in range(250):
            image = Image.fromarray(draw_square(100_000 * label + i, bool(label)))
            image.save(data / name / f"{i:04d}.png", compress_level=0)
    config = FitConfig(
        epochs=4, batch_size=32, lr=2e-3, ema=0.8, amp="none", augment=AugmentConfig(policy="none")
    )
    request = FitRequest(
        data=str(data), out=root / "my run", exits=(1, 2), image_size=SIDE, threads=1
    )
    run_fit(request, config, say=lambda line: None)
    model, described = load_network(request.out)
    select, calib = (
        load_split_pixels(request.out, split, described.preprocess)
        for split in ("val_select", "val_calib")
    )
    return Trained(request.out, model, select, calib)


@pytest.fixture
def model(trained: Trained) -> CascadeModel:
    """The trained network, a fresh copy."""
    return load_network(trained.run)[0]


@pytest.fixture(scope="session")
def exported(made: Made) -> list[Path]:
    """The trained network's stages as ONNX files, those that `made` was built from."""
    return made.onnx


@pytest.fixture
def no_export(exported: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Building takes the files of `exported` instead of making them again, which takes seconds.

    The list returned may be changed to build from other files.
    """
    files = list(exported)

    def copy(_model: object, _size: int, folder: Path) -> list[Path]:
        return [Path(shutil.copy(file, folder / f"stage{i}.onnx")) for i, file in enumerate(files)]

    monkeypatch.setattr(build_target, "export_stages", copy)
    return files


@pytest.fixture
def changed(exported: list[Path], tmp_path: Path) -> Callable[[float], Path]:
    """The last stage with its classifier's bias set to a number: `changed(value)`."""

    def change(value: float) -> Path:
        model = onnx.load(exported[-1])
        [bias] = [w for w in model.graph.initializer if w.name.endswith("classifier.bias")]
        bias.CopyFrom(numpy_helper.from_array(np.array([value, 0], np.float32), bias.name))
        onnx.save(model, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    return change


def promise(alpha: str, claims: int = 1) -> Request:
    return Request(Fraction(alpha), Fraction("0.05"), Fraction("0.5"), claims=claims)


@pytest.fixture
def request_for(trained: Trained) -> Callable[..., BundleRequest]:
    """A `BundleRequest` for the trained run: `request_for(out, *targets, alpha=..., **fields)`."""

    def make(out: Path, *names: str, alpha: str = "0.2", **fields: object) -> BundleRequest:
        chosen = tuple(targets.parse(name) for name in names or (ONNX,))
        fields = {"run": trained.run, "threads": 1} | fields
        asked = promise(alpha, claims=len(chosen))
        return BundleRequest(out=out, targets=chosen, promise=asked, **fields)  # type: ignore[arg-type]

    return make


@dataclass(frozen=True)
class Made:
    """A finished bundle, its manifest, what was said meanwhile, and the exported stages."""

    path: Path
    manifest: Manifest
    said: list[str]
    onnx: list[Path]


@pytest.fixture(scope="session")
def made(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A certified bundle for OpenVINO and ONNX Runtime, exported and built as people do it."""
    said: list[str] = []
    onnx_files: list[Path] = []
    kept = tmp_path_factory.mktemp("onnx")

    def export_and_keep(model: CascadeModel, size: int, folder: Path) -> list[Path]:
        files = export_stages(model, size, folder)
        onnx_files.extend(Path(shutil.copy(file, kept)) for file in files)
        return files

    request = BundleRequest(
        run=trained.run,
        out=tmp_path_factory.mktemp("bundles") / "squares.v2.cascade",
        targets=(targets.parse(OPENVINO), targets.parse(ONNX)),
        promise=promise("0.2", claims=2),
        threads=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_target, "export_stages", export_and_keep)
        manifest = bundles.build(request, say=said.append)
    return Made(request.out, manifest, said, onnx_files)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`cascade-compile ARGS` in this process: exit status, stdout, stderr."""
    from cascade_compile.cli import main

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cascade-compile", *map(str, args)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
