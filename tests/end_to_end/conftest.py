"""A small, easy set of photographs on disk, and the commands of this environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]
TOO_SLOW = re.compile(r"^\d of 4 targets missed: (latency|throughput|latency, throughput)$", re.M)


def draw(label: int, index: int) -> Image.Image:
    """A noisy grey-blue square; the yes has an orange bar across it."""
    rng = np.random.default_rng((label, index))
    pixels = rng.normal((90, 100, 130), 12, (48, 48, 3))
    if label:
        top = int(rng.integers(8, 28))
        pixels[top : top + 12, 6:42] = rng.normal((235, 120, 30), 8, (12, 36, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/no` and `photos/yes`, 200 PNG files each, and one file that is no image."""
    folder = tmp_path_factory.mktemp("work") / "photos"
    for label, name in enumerate(("no", "yes")):
        (folder / name).mkdir(parents=True)
        for index in range(200):
            draw(label, index).save(folder / name / f"{index:03}.png")
    (folder / "no" / "broken.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Run a command line in a folder, as a user would: the console scripts of this environment."""
    scripts = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }

    def run(
        command: str, cwd: Path, status: int = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, shell=True, cwd=cwd, env=env | more, capture_output=True, text=True
        )
        said = f"$ {command}\n{done.stdout}\n{done.stderr}"
        busy = done.returncode == 6 and TOO_SLOW.search(done.stdout)  # the machine, not the command
        assert done.returncode == status or busy, said
        assert "Traceback" not in done.stderr, said
        return done

    yield run
