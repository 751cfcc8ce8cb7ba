"""The runtime's sample bundle, labelled images for it, and the console script's entry point."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_bench import cli, footprint, journal, pictures
from cascade_runtime import bundle
from cascade_runtime.cascade import Cascade

from ..runtime.conftest import ONNX, Sample, make_images, sample, template
from ..runtime.native_build import native_folder

__all__ = ["sample", "template"]

LABELLED = 40


@dataclass
class Done:
    """What a run of the command left."""

    status: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def bench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Call `cascade-bench` as the shell would, with one thread and the shortest measurements."""

    def call(*arguments: object, quick: bool = True) -> Done:
        monkeypatch.setattr(footprint, "PROCESSES", 1)
        short = ["--seconds", 0, "--threads", 1, "--target", ONNX] if quick else []
        monkeypatch.setattr(sys, "argv", ["cascade-bench", *map(str, [*arguments, *short])])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture, page or line of a journal can be written any more."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pictures, "write", full)
    monkeypatch.setattr(journal.Journal, "append", full)


def for_a_gpu(folder: Path) -> str:
    """Make the bundle's ONNX Runtime target one of a GPU, as its manifest says; its new name."""
    new = f"{ONNX.removesuffix('cpu')}cuda"
    said = json.loads((folder / bundle.MANIFEST).read_bytes())
    for part in ("targets", "decision", "certificates"):
        said[part][new] = said[part].pop(ONNX)
    said["targets"][new]["device"] = "cuda"
    (folder / bundle.MANIFEST).write_text(json.dumps(said))
    bundle.seal(folder)
    return new


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """libcascade and its commands, built."""
    monkeypatch.setenv("CASCADE_NATIVE_BUILD", str(native_folder()))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Seven photographs, wider than high and larger than the network's input."""
    rng = np.random.default_rng(0)
    names = [tmp_path / f"{index}.png" for index in range(7)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(name)
    return names


@pytest.fixture
def cascade(template: Sample) -> Cascade:
    return Cascade.open(template.path, ONNX, threads=1, warm_up=False)


@pytest.fixture
def labelled(tmp_path: Path, cascade: Cascade) -> Path:
    """Class folders in which every label is what the cascade's last exit says, but for one."""
    pixels = make_images(LABELLED, seed=11)
    logits = cascade.stages.forward_all(pixels)[-1].logits
    labels = (logits[:, 1] > logits[:, 0]).astype(int)
    labels[0] = 1 - labels[0]
    root = tmp_path / "labelled"
    for name in cascade.manifest.model.classes:
        (root / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        name = cascade.manifest.model.classes[label]
        Image.fromarray(image).save(root / name / f"{index:03d}.png")
    return root
