"""Image files that people really have: damaged ones, odd ones, and ones made to do harm."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# Shared machines stall: no deadline. In CI the same examples each time, elsewhere new ones.
settings.register_profile("steady", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("steady")


def photo(seed: int = 0, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth picture with no symmetry, so that a turn or a flip shows."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format_, **options)
    return buffer.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_refused(folder: Path) -> dict[Path, str]:
    """Files that must be refused, and a word that the reason must hold."""
    jpeg, png = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
    content = {
        "empty.jpg": (b"", "empty"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "is truncated"),
        "cut.png": (png[: len(png) // 2], "is truncated"),
        "text.jpg": (b"this is no picture\n" * 50, "known format"),
        "bomb.png": (bomb_png(60_000, 60_000), "pixels"),
        "big.png": (bomb_png(11_000, 10_000), "11000 x 10000"),
        "floats.tif": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
    }
    expected: dict[Path, str] = {}
    for name, (data, word) in content.items():
        (folder / name).write_bytes(data)
        expected[folder / name] = word
    (folder / "loop.jpg").symlink_to("loop.jpg")
    expected[folder / "loop.jpg"] = "cannot be read"
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    expected[folder / "gone.jpg"] = "No such file"
    os.mkfifo(folder / "pipe.jpg")
    expected[folder / "pipe.jpg"] = "pipe"
    return expected


@pytest.fixture
def refused(tmp_path: Path) -> dict[Path, str]:
    """A folder of files that must be refused; path -> a word of the reason."""
    folder = tmp_path / "refused"
    folder.mkdir()
    return write_refused(folder)


@pytest.fixture
def vehicles(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder `car`, `truck` of different small PNGs; call it with how many of each."""

    def make(n: int = 4, name: str = "vehicles", size: int = 12) -> Path:
        root = tmp_path / name
        for k, label in enumerate(("car", "truck")):
            (root / label).mkdir(parents=True)
            for i in range(n):
                photo(1000 * k + i, size, size).save(root / label / f"{i:03d}.png")
        return root

    return make
