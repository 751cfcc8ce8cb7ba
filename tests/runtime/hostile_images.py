"""Files that a service is sent and cannot answer, or that are made to bring it down.

In: a folder, a count, a seed. Out: that many paths, of every kind in turn: cut, flipped, misnamed
or empty, giants and bombs, odd modes, and names behind which there is no file. A few can be read
after all (a flipped bit that only changes a pixel): whoever uses them asks the Python runtime,
which reads more formats than libcascade (`only_python_reads`) and has no limit on `endless_scans`.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "RGBA", "P", "1", "LA"),
    "WEBP": ("RGB",),
}
BOMB = 64 << 20  # bytes that a few kilobytes unpack to
GIANT = 60_000


def picture(rng: np.random.Generator, mode: str = "RGB", most: int = 300) -> Image.Image:
    """A flat colour under coarse noise, of any shape."""
    width, height = (int(side) for side in rng.integers(1, most, 2))
    base = rng.integers(0, 256, 3) + rng.integers(-40, 41, (5, 5, 3))
    small = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
    return small.resize((width, height)).convert(mode)


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def good_images(folder: Path, count: int, seed: int, most: int = 300) -> list[Path]:
    """Readable files of every format and of modes that both runtimes read."""
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        format_ = FORMATS[index % 3]
        mode = MODES[format_][int(rng.integers(len(MODES[format_])))]
        paths.append(folder / f"good-{index}.{SUFFIX[format_]}")
        paths[-1].write_bytes(encode(picture(rng, mode, most), format_))
    return paths


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + rest


@cache
def bomb() -> bytes:
    return zlib.compress(bytes(BOMB), 9)


# --- contents


def cut(rng: np.random.Generator, format_: str) -> bytes:
    whole = encode(picture(rng), format_)
    return whole[: int(rng.integers(1, len(whole) - 1))]


def flipped(rng: np.random.Generator, format_: str) -> bytes:
    data = bytearray(encode(picture(rng), format_))
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


def noise_behind_the_signature(rng: np.random.Generator, format_: str) -> bytes:
    whole = encode(picture(rng), format_)
    return whole[:16] + rng.bytes(int(rng.integers(0, 4000)))


def giant(rng: np.random.Generator, format_: str) -> bytes:
    """A small file whose header claims the largest size that its format can say."""
    data = bytearray(encode(picture(rng), format_))
    if format_ == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", GIANT, GIANT)
    elif format_ == "PNG":
        data[16:24] = struct.pack(">II", GIANT, GIANT)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    else:
        data[26:30] = b"\xff\x3f\xff\x3f"
    return bytes(data)


def large_and_cut(rng: np.random.Generator, format_: str) -> bytes:
    """Within the limit of pixels, so that a decoder begins, and finds no data."""
    return png(9000, 9000, zlib.compress(bytes(30_000)))


def pixels_bomb(rng: np.random.Generator, format_: str) -> bytes:
    return png(4, 4, bomb())


def profile_bomb(rng: np.random.Generator, format_: str) -> bytes:
    return png(4, 4, zlib.compress(bytes(52)), chunk(b"iCCP", b"name\0\0" + bomb()))


def text_bomb(rng: np.random.Generator, format_: str) -> bytes:
    return png(4, 4, zlib.compress(bytes(52)), chunk(b"zTXt", b"Comment\0\0" + bomb()))


def many_text_bombs(rng: np.random.Generator, format_: str) -> bytes:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20)))
    return png(4, 4, zlib.compress(bytes(52)), *[text] * 70)


def archive(rng: np.random.Generator, format_: str) -> bytes:
    if rng.integers(2):
        return gzip.compress(bomb())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("frame.png", bomb())
    return stream.getvalue()


def other_words(rng: np.random.Generator, format_: str) -> bytes:
    words = (b"", b"\0", b"\xff\xd8", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n")
    more = (b"<svg/>", b"GIF89a", b"%PDF-1.7", b"#!/bin/sh\nexit 1\n", bytes(4096), b"BM" * 40)
    return (words + more)[int(rng.integers(12))]


def endless_scans(rng: np.random.Generator, format_: str) -> bytes:
    data = encode(picture(rng, most=40), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff\xc4", start)
    return data[:start] + data[start:end] * 600 + data[start:]


def unknown_depth(rng: np.random.Generator, format_: str) -> bytes:
    """A colour type and a depth that PNG does not have together."""
    data = bytearray(png(4, 4, zlib.compress(bytes(52))))
    data[24], data[25] = int(rng.choice([0, 3, 7, 32])), int(rng.choice([1, 5, 7]))
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def another_name(rng: np.random.Generator, format_: str) -> bytes:
    """A format that the file's name does not say; this one is answered."""
    return encode(picture(rng), FORMATS[(FORMATS.index(format_) + 1) % 3])


def only_python_reads(rng: np.random.Generator, format_: str) -> bytes:
    return encode(picture(rng), ("GIF", "BMP", "TIFF", "PPM")[int(rng.integers(4))])


def animated(rng: np.random.Generator, format_: str) -> bytes:
    """Cut within its first frame or a later one."""
    format_ = "WEBP" if format_ == "JPEG" else format_
    frames = [picture(rng).resize((40, 30)) for _ in range(3)]
    whole = encode(frames[0], format_, save_all=True, append_images=frames[1:])
    return whole[: int(rng.integers(len(whole) // 4, len(whole)))]


# --- names


def missing(path: Path) -> Path:
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_loop(path: Path) -> Path:
    other = path.with_suffix(".other")
    other.symlink_to(path)
    path.symlink_to(other)
    return path


def link_to_nothing(path: Path) -> Path:
    path.symlink_to(path.with_suffix(".none"))
    return path


def long_name(path: Path) -> Path:
    return path.with_name(path.name * 40)


def strange_name(path: Path) -> Path:
    named = path.with_name(f"\udcff\udcfe \x1b[31m \u202e {path.name}")
    named.write_bytes(b"no image")
    return named


def unix_socket(path: Path) -> Path:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)
    return path


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(1 << 40)
    return path


def inside_a_file(path: Path) -> Path:
    path.write_bytes(b"no folder")
    return path / "frame.jpg"


def device(path: Path) -> Path:
    return Path("/dev/zero")


def of_the_kernel(path: Path) -> Path:
    return Path("/proc/self/maps")


Content = Callable[[np.random.Generator, str], bytes]
CONTENTS: tuple[Content, ...] = (
    cut,
    flipped,
    noise_behind_the_signature,
    giant,
    large_and_cut,
    pixels_bomb,
    profile_bomb,
    text_bomb,
    many_text_bombs,
    archive,
    other_words,
    endless_scans,
    unknown_depth,
    another_name,
    only_python_reads,
    animated,
)
NAMES: tuple[Callable[[Path], Path], ...] = (
    missing,
    folder,
    pipe,
    link_loop,
    link_to_nothing,
    long_name,
    strange_name,
    unix_socket,
    sparse,
    inside_a_file,
    device,
    of_the_kernel,
)
HEAVY = {large_and_cut, pixels_bomb, profile_bomb, text_bomb, many_text_bombs}


def bad_images(place: Path, count: int, seed: int) -> list[Path]:
    """`count` paths, each kind in turn; what costs Python much is in every eighth round."""
    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    for number in range(count):
        turn, kind = divmod(number, len(CONTENTS) + len(NAMES))
        if kind >= len(CONTENTS):
            name = NAMES[kind - len(CONTENTS)]
            paths.append(name(place / f"{name.__name__}-{number}.jpg"))
            continue
        content = cut if turn % 8 and CONTENTS[kind] in HEAVY else CONTENTS[kind]
        format_ = FORMATS[int(rng.integers(3))]
        paths.append(place / f"{content.__name__}-{number}.{SUFFIX[format_]}")
        paths[-1].write_bytes(content(rng, format_))
    return paths
