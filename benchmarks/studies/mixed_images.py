"""Images as they come: every format, mode, size and orientation that both runtimes read.

In: a number of images and a seed. Out: for each its kind and either the bytes of a file or an
array, always the same for the same seed. JPEG: quality, subsampling, progressive, grey, CMYK;
PNG: every mode and depth, interlaced, tRNS; WebP: lossy, lossless, alpha; raw RGB, RGBA and grey.
JPEG, PNG and WebP may carry an EXIF orientation and an ICC profile.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

FORMATS = ("jpeg", "png", "png of any depth", "webp", "raw")
EDGES = ((1, 1), (1, 1500), (1500, 1), (2, 3), (3, 1200), (1200, 3), (1500, 1500), (640, 480))
PNG_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@dataclass(frozen=True)
class Mixed:
    """One image: `data` is a file's bytes or a uint8 array."""

    kind: str
    data: bytes | np.ndarray


def mixed_images(count: int, seed: int) -> Iterator[Mixed]:
    """`count` images, each format in turn."""
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        kind = FORMATS[index % len(FORMATS)]
        yield Mixed(kind, _MAKERS[kind](rng))


def size_of(rng: np.random.Generator) -> tuple[int, int]:
    """Mostly up to 400 pixels a side, some of the edges, some of any size and ratio to 1500."""
    sort = rng.integers(20)
    if sort == 0:
        return EDGES[int(rng.integers(len(EDGES)))]
    if sort == 1:
        width, height = np.exp(rng.uniform(0, np.log(1500), 2))
        return max(1, int(width)), max(1, int(height))
    most = 64 if sort < 8 else 400
    width, height = rng.integers(1, most + 1, 2)
    return int(width), int(height)


def picture(rng: np.random.Generator, mode: str = "RGB") -> Image.Image:
    """Colours that run into each other, noise, and in every second one an orange square."""
    width, height = size_of(rng)
    around = rng.integers(0, 256, 4) + rng.integers(-60, 61, (6, 6, 4))
    small = Image.fromarray(np.clip(around, 0, 255).astype(np.uint8))
    values = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = int(rng.integers(0, 40))
    values += rng.integers(-noise, noise + 1, values.shape, dtype=np.int16)
    if rng.integers(2):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        part = values[top : top + height // 3 + 1, left : left + width // 3 + 1, :3]
        part[:] = (part + 3 * np.array([230, 120, 20], np.int16)) // 4
    rgba = np.clip(values, 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(rgba[:, :, 0].astype(np.uint16) * 251 + rgba[:, :, 1])
    image = Image.fromarray(rgba)
    if mode == "CMYK":
        return Image.merge("CMYK", image.split())
    if mode == "LA":
        return Image.merge("LA", [image.convert("L"), image.getchannel(3)])
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def about(rng: np.random.Generator) -> dict[str, Any]:
    """What a file says of itself: in every second one an orientation, in every fourth a profile."""
    found: dict[str, Any] = {}
    if rng.integers(2):
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 10))
        found["exif"] = exif
    if rng.integers(4) == 0:
        found["icc_profile"] = PROFILE
    return found


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def jpeg(rng: np.random.Generator) -> bytes:
    mode = str(rng.choice(["RGB", "RGB", "RGB", "L", "CMYK"]))
    options: dict[str, Any] = {"quality": int(rng.integers(5, 101))}
    options["progressive"] = bool(rng.integers(2))
    if mode == "RGB":
        options["subsampling"] = int(rng.integers(3))
    if rng.integers(6) == 0:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    return encoded(picture(rng, mode), "JPEG", **options, **about(rng))


def png(rng: np.random.Generator) -> bytes:
    mode = PNG_MODES[int(rng.integers(len(PNG_MODES)))]
    options: dict[str, Any] = {"compress_level": int(rng.integers(0, 4))}
    if mode in ("RGB", "L", "P") and rng.integers(3) == 0:
        options["transparency"] = (7, 7, 7) if mode == "RGB" else int(rng.integers(256))
    return encoded(picture(rng, mode), "PNG", **options, **about(rng))


def webp(rng: np.random.Generator) -> bytes:
    options: dict[str, Any] = {"lossless": bool(rng.integers(3) == 0), "method": 0}
    options |= {"quality": int(rng.integers(0, 101)), "exact": bool(rng.integers(2))}
    return encoded(picture(rng, ("RGB", "RGBA")[rng.integers(2)]), "WEBP", **options, **about(rng))


def raw(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(picture(rng, ("RGB", "RGBA", "L")[rng.integers(3)]))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_any_depth(rng: np.random.Generator) -> bytes:
    """One that Pillow cannot write: 1 to 16 bits, interlaced, every filter; random samples."""
    colour = (0, 2, 3, 4, 6)[rng.integers(5)]
    depth = int(rng.choice(DEPTHS[colour]))
    width, height = (min(side, 400) for side in size_of(rng))
    interlaced = bool(rng.integers(2))
    level = int(rng.integers(256))
    rows = b""
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        samples = len(range(left, width, across)) * SAMPLES[colour]
        size = (samples * depth + 7) // 8
        for y in range(len(range(top, height, down)) if samples else 0):
            row = rng.integers(level // 2, level // 2 + 128, size, dtype=np.uint8)
            rows += bytes([y % 5]) + row.tobytes()
    chunks = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    ]
    if colour == 3:
        chunks.append(chunk(b"PLTE", rng.bytes(3 * 2**depth)))
    if rng.integers(2) and colour in (0, 2, 3):
        alphas = rng.bytes(int(rng.integers(1, 2**depth + 1))) if colour == 3 else b""
        clear = {0: b"\0\1", 2: b"\0\7\0\7\0\7", 3: alphas}[colour]
        chunks.append(chunk(b"tRNS", clear))
    chunks += [chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


_MAKERS: dict[str, Callable[[np.random.Generator], bytes | np.ndarray]] = {
    "jpeg": jpeg,
    "png": png,
    "png of any depth": png_of_any_depth,
    "webp": webp,
    "raw": raw,
}
