"""libcascade's pixels behind a pipe, and pictures to ask it about.

One `pixels_probe` process answers for the whole session; see tests/native/pixels.
"""

from __future__ import annotations

import io
import itertools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from cascade_runtime.errors import ImageError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import load_image

from .native_build import native_folder

SPEC = Preprocess(height=20, width=24)
TRANSPOSED = ["JPEG", "PNG", "WEBP"]
MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Answer = np.ndarray | str
Ask = Callable[..., Answer]


@dataclass
class Probe:
    """The library behind a pipe: a file and a specification in, pixels or the reason out."""

    process: subprocess.Popen[bytes]
    folder: Path
    count: Iterator[int] = field(default_factory=itertools.count)

    def send(self, *fields: object) -> list[str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\t".join(map(str, fields)).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().decode().rstrip("\n").split(" ", 2)
        assert answer != [""], f"the library ended on {fields}"
        return answer

    def pixels(self, answer: list[str], spec: Preprocess) -> Answer:
        if answer[0] == "error":
            assert answer[1] == "5", answer
            return answer[2]
        assert self.process.stdout is not None
        data = self.process.stdout.read(int(answer[1]))
        return np.frombuffer(data, np.uint8).reshape(spec.height, spec.width, 3)

    def file(self, data: bytes) -> Path:
        path = self.folder / str(next(self.count) % 8)
        path.write_bytes(data)
        return path

    def image(self, data: bytes | Path, spec: Preprocess = SPEC) -> Answer:
        path = data if isinstance(data, Path) else self.file(data)
        return self.pixels(self.send("image", path, *_fields(spec)), spec)

    def frame(
        self, data: bytes, kind: str, size: tuple[int, int], strides: tuple[int, int]
    ) -> Answer:
        answer = self.send("frame", self.file(data), kind, *size, *strides, *_fields(SPEC))
        return self.pixels(answer, SPEC)


def _fields(spec: Preprocess) -> tuple[object, ...]:
    return spec.height, spec.width, spec.resize, spec.crop, spec.max_pixels, spec.jpeg


def built(name: str) -> Path:
    """A program of tests/native/pixels."""
    found = sorted(native_folder().rglob(name))
    if not found:
        pytest.skip(f"{name} is not built: needs GoogleTest's development files")
    return found[0]


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    program = built("pixels_probe")
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=pipe, stdout=pipe) as process:
        yield Probe(process, tmp_path_factory.mktemp("images"))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def reference(data: bytes, spec: Preprocess = SPEC) -> Answer:
    try:
        return load_image(data, spec, name="it")
    except ImageError as error:
        return str(error).removeprefix("it: ")


def assert_same(native: Probe, data: bytes, spec: Preprocess = SPEC) -> Answer:
    """Both refuse, or both give the same pixels."""
    expected, found = reference(data, spec), native.image(data, spec)
    if isinstance(expected, str) or isinstance(found, str):
        both = isinstance(expected, str) and isinstance(found, str)
        assert both, f"reference: {expected!r:.200}; native: {found!r:.200}"
    else:
        difference = int(np.abs(expected.astype(int) - found).max())
        assert difference == 0, f"differs by {difference}"
    return found


def photo(width: int = 48, height: int = 40, seed: int = 0, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8))
    smooth = smooth.resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-9, 10, (height, width, 4))
    rgba = np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8)
    picture = Image.fromarray(rgba)
    if mode == "I;16":
        return Image.fromarray(rgba[:, :, 0].astype(np.uint16) * 251 + rgba[:, :, 1])
    if mode == "LA":
        return Image.merge("LA", [picture.getchannel(0), picture.getchannel(3)])
    if mode == "CMYK":
        return Image.merge("CMYK", picture.split())
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def encoded(picture: Image.Image, format_: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format_, **options)
    return buffer.getvalue()


def exif(orientation: object) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block
