"""libcascade's pixels are this runtime's: same answer for every file, or both refuse it.

Formats that only Pillow reads are refused by the library by name.
"""

from __future__ import annotations

import itertools
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cascade_runtime.errors import ImageError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import load_image, to_rgb

from .native_pixels import (
    MANY,
    SPEC,
    TRANSPOSED,
    Probe,
    assert_same,
    built,
    encoded,
    exif,
    native,
    photo,
    reference,
)

__all__ = ["native"]

# --- the same pixels

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (8, 8), (17, 16), (48, 40), (333, 211)]
SIZES += [(2000, 3), (3, 900), (60, 500)]  # of tall ones the height is filtered first


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_and_mode_of_png(native: Probe, size: tuple[int, int]) -> None:
    for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
        assert_same(native, encoded(photo(*size, mode=mode), "PNG"))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_and_kind_of_jpeg(native: Probe, size: tuple[int, int]) -> None:
    for mode, progressive, subsampling in itertools.product(
        ("L", "RGB", "CMYK"), (False, True), (0, 1, 2)
    ):
        options = {"progressive": progressive, "subsampling": subsampling}
        assert_same(native, encoded(photo(*size, mode=mode), "JPEG", **options))


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 90, 95, 100])
def test_every_quality_of_jpeg_and_webp(native: Probe, quality: int) -> None:
    for format_, seed in itertools.product(("JPEG", "WEBP"), range(3)):
        assert_same(native, encoded(photo(130, 97, seed), format_, quality=quality))


def test_jpeg_tables_restarts_and_plain_rgb(native: Probe) -> None:
    for options in (
        {"optimize": True},
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 1, "progressive": True},
        {"keep_rgb": True},
        {"comment": b"\xff\xd8" * 3000},
    ):
        assert_same(native, encoded(photo(100, 70), "JPEG", **options))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_and_kind_of_webp(native: Probe, size: tuple[int, int]) -> None:
    for mode, lossless, exact in itertools.product(("RGB", "RGBA"), (False, True), (False, True)):
        options = {"lossless": lossless, "exact": exact}
        assert_same(native, encoded(photo(*size, mode=mode), "WEBP", **options))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_animated_webp_gives_its_first_frame(native: Probe, mode: str) -> None:
    frames = [photo(40, 30, seed, mode) for seed in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert_same(native, data)


def test_an_animated_png_gives_its_first_frame(native: Probe) -> None:
    frames = [photo(40, 30, seed) for seed in range(3)]
    for default_image in (False, True):
        options = {"save_all": True, "append_images": frames[1:], "default_image": default_image}
        assert_same(native, encoded(frames[0], "PNG", **options))


@pytest.mark.parametrize("crop", ["none", "center"])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_every_filter_and_crop(native: Probe, resize: Any, crop: Any) -> None:
    targets = [(1, 1), (3, 200), (64, 64), (97, 31), (224, 224), (480, 640)]
    for seed, ((height, width), size) in enumerate(itertools.product(targets, SIZES)):
        spec = Preprocess(height=height, width=width, resize=resize, crop=crop)
        assert_same(native, encoded(photo(*size, seed=seed), "PNG"), spec)


@MANY
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from(["none", "center"]),
    st.integers(0, 9),
)
def test_any_size_to_any_size(
    native: Probe, w: int, h: int, width: int, height: int, resize: Any, crop: Any, seed: int
) -> None:
    spec = Preprocess(height=height, width=width, resize=resize, crop=crop)
    assert_same(native, encoded(photo(w, h, seed), "PNG", compress_level=0), spec)


# --- which way up


@pytest.mark.parametrize("format_", TRANSPOSED)
def test_every_orientation(native: Probe, format_: str) -> None:
    for orientation, size in itertools.product(range(10), [(48, 40), (31, 7), (1, 9)]):
        for spec in (SPEC, Preprocess(height=size[0], width=size[1], crop="center")):
            assert_same(native, encoded(photo(*size), format_, exif=exif(orientation)), spec)


@pytest.mark.parametrize("format_", TRANSPOSED)
def test_damaged_exif_is_taken_for_the_same(native: Probe, format_: str) -> None:
    good = bytearray(exif(6).tobytes())
    rng = np.random.default_rng(0)
    for _ in range(120):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(0, len(bad))] = rng.choice([0, 1, 2, 3, 4, 5, 6, 8, 12, 73, 255])
        if rng.integers(4) == 0:
            bad = bad[: rng.integers(1, len(bad))]
        assert_same(native, encoded(photo(), format_, exif=bytes(bad)))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_counts_where_exif_has_none(native: Probe, format_: str) -> None:
    for other in (None, exif(3), exif(1)):
        options = {} if other is None else {"exif": other}
        assert_same(native, encoded(photo(), format_, xmp=XMP, **options))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_an_orientation_in_the_text_of_a_png(native: Probe, packed: bool) -> None:
    in_xmp, raw = PngInfo(), PngInfo()
    in_xmp.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=packed)
    raw.add_text("Raw profile type exif", f"\nexif\n  99\n{exif(8).tobytes().hex()}\n", zip=packed)
    for info in (in_xmp, raw):
        found = assert_same(native, encoded(photo(), "PNG", pnginfo=info))
        assert not np.array_equal(found, native.image(encoded(photo(), "PNG")))


# --- PNG as no encoder at hand writes it


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(
    colour: int,
    depth: int,
    size: tuple[int, int] = (13, 11),
    *chunks: bytes,
    interlaced: bool = False,
    seed: int = 0,
    behind: bytes = b"",
) -> bytes:
    """A PNG of random samples, every row with another filter."""
    rng = np.random.default_rng(seed)
    rows = b""
    passes = [*ADAM7, (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    for left, top, across, down in passes:
        width = len(range(left, size[0], across))
        for y in range(len(range(top, size[1], down)) if width else 0):
            row = rng.integers(0, 256, (width * depth * SAMPLES[colour] + 7) // 8, dtype=np.uint8)
            rows += bytes([y % 5]) + row.tobytes()
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks)
    packed = zlib.compress(rows)
    pieces = b"".join(chunk(b"IDAT", packed[i : i + 50]) for i in range(0, len(packed), 50))
    return data + pieces + behind + chunk(b"IEND", b"")


KINDS = [(c, d) for c in (0, 2, 3, 4, 6) for d in (1, 2, 4, 8, 16)]
FLIPS = [(0, 1), (0, 16), (0, 128), (1, 1), (1, 32), (2, 1), (2, 2), (9, 4), (30, 64), (-3, 2)]
PALETTE = chunk(b"PLTE", bytes(range(3, 3 + 3 * 60)))


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_colour_type_depth_and_transparency(
    native: Probe, colour: int, depth: int, interlaced: bool
) -> None:
    chunks = [PALETTE] if colour == 3 else []
    clear = {
        0: [b"\0\0", b"\0\1", b"\0\3", b"\0\x33", b"\1\x11", b"\xff\xff"],
        2: [bytes(6), b"\0\7\0\7\0\7"],
        3: [b"\0", b"\xff\0\x80", b"\0" * 3 + b"\x7f" * 9, b"\xff" * 256, b"\xff\0\xff"],
    }
    for size in ((13, 11), (1, 1), (3, 9), (9, 2)):
        same = [assert_same(native, png(colour, depth, size, *chunks, interlaced=interlaced))]
        for data in clear.get(colour, [bytes(2)]):
            transparent = [*chunks, chunk(b"tRNS", data)]
            same.append(
                assert_same(native, png(colour, depth, size, *transparent, interlaced=interlaced))
            )
        allowed = depth in (8, 16) if colour != 3 else depth != 16
        allowed = allowed or (colour == 0)
        assert all(isinstance(found, str) != allowed for found in same)


def test_streams_that_are_not_what_they_should_be(native: Probe) -> None:
    """One bit, filter or byte more or less: the same pixels, or the same refusal."""
    rows = b"".join(bytes([4 - y % 5]) + bytes(range(7 * y, 7 * y + 39)) for y in range(11))
    good = zlib.compress(rows)
    streams = [good, good + b"more", zlib.compress(rows + b"more"), zlib.compress(rows, 0)]
    streams += [good[:cut] for cut in (0, 1, 2, 20, -5, -4, -1)]
    streams += [zlib.compress(rows[:cut]) for cut in (0, 39, 41, -1)]
    streams += [zlib.compress(rows[:40] + bytes([of]) + rows[41:]) for of in (5, 128, 255)]
    streams += [good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :] for at, bit in FLIPS]
    for window in (9, 15):  # what its header claims
        packer = zlib.compressobj(9, zlib.DEFLATED, window)
        streams.append(packer.compress(rows) + packer.flush())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 11, 8, 2, 0, 0, 0))
    for stream in streams:
        for piece in (1000, 9):
            data = [stream[at : at + piece] for at in range(0, max(len(stream), 1), piece)]
            pieces = b"".join(chunk(b"IDAT", part) for part in data)
            assert_same(native, b"\x89PNG\r\n\x1a\n" + header + pieces + chunk(b"IEND", b""))
    # Pillow calls this a picture whose other rows are black, if it lies in one chunk.
    one_row = header + chunk(b"IDAT", zlib.compress(rows[:40])) + chunk(b"IEND", b"")
    assert "truncated" in str(native.image(b"\x89PNG\r\n\x1a\n" + one_row))


def test_palettes_of_any_length(native: Probe) -> None:
    for length in (0, 1, 3, 7, 768, 769, 770, 771, 3000):
        colours = chunk(b"PLTE", bytes(i % 251 for i in range(length)))
        assert_same(native, png(3, 8, (40, 40), colours))
    assert_same(native, png(3, 8, (40, 40)))
    assert_same(native, png(3, 8, (40, 40), PALETTE, chunk(b"tRNS", bytes(257))))


def test_chunks_that_are_too_short_too_long_or_unknown(native: Probe) -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(2**21))
    for extra in (
        chunk(b"gAMA", b"\0\0"),
        chunk(b"gAMA", bytes(4)),
        chunk(b"cHRM", bytes(31)),
        chunk(b"sRGB", b""),
        chunk(b"pHYs", bytes(8)),
        chunk(b"acTL", bytes(7)),
        chunk(b"fcTL", bytes(25)),
        chunk(b"tRNS", b"\0"),
        chunk(b"zTXt", text),
        chunk(b"zTXt", b"Comment\0\1" + text),
        chunk(b"zTXt", b"Comment\0\0no zlib"),
        chunk(b"iTXt", b"Comment\0\1\0\0" + text[8:]),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"name\0\1"),
        chunk(b"tEXt", b"no value"),
        chunk(b"priv", b"ate"),
        chunk(b"PRIV", b"ate"),
        chunk(b"IEND", b""),
        chunk(b"\xffabc", b""),
        chunk(b"eXIf", exif(6).tobytes()[6:]),
        chunk(b"eXIf", exif(6).tobytes()),
        chunk(b"eXIf", b""),
    ):
        assert_same(native, png(2, 8, (13, 11), extra))
        assert_same(native, png(2, 8, (13, 11), behind=extra))


# --- what is refused


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 2}),
        ("PNG", {}),
        ("PNG", {"exif": exif(6)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_a_file_cut_anywhere_is_judged_alike(
    native: Probe, format_: str, options: dict[str, object]
) -> None:
    mode = "RGBA" if format_ == "WEBP" else "RGB"
    whole = encoded(photo(40, 36, mode=mode), format_, **options)
    refused = [
        isinstance(assert_same(native, whole[:length]), str)
        for length in range(0, len(whole), max(1, len(whole) // 250))
    ]
    assert sum(refused) > 0.7 * len(refused)


def test_a_png_of_many_chunks_cut_anywhere_is_judged_alike(native: Probe) -> None:
    whole = png(2, 8, (13, 11), behind=chunk(b"tEXt", b"Comment\0behind"))
    for length in range(len(whole)):
        assert_same(native, whole[:length])


@pytest.mark.parametrize("format_", TRANSPOSED)
def test_damaged_files_give_pixels_or_a_reason(native: Probe, format_: str) -> None:
    """Both nearly always agree; of data whose bits are wrong, library versions differ."""
    rng = np.random.default_rng(7)
    differ = 0
    for seed in range(300):
        data = bytearray(encoded(photo(40, 30, seed % 5), format_))
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        expected, found = reference(bytes(data)), native.image(bytes(data))
        if isinstance(expected, str) or isinstance(found, str):
            differ += isinstance(expected, str) != isinstance(found, str)
        else:
            differ += not np.array_equal(expected, found)
    assert differ <= 6, f"{differ} of 300"


def test_reasons_are_worded_as_in_python(native: Probe, tmp_path: Path) -> None:
    small = Preprocess(height=4, width=4, max_pixels=99)
    for format_ in TRANSPOSED:
        data = encoded(photo(10, 10), format_)
        assert native.image(data, small) == reference(data, small)
        assert isinstance(native.image(encoded(photo(9, 11), format_), small), np.ndarray)
        assert native.image(data[: len(data) // 2]) == (
            "is truncated, its end is missing; copy it again"
        )
    assert native.image(b"") == reference(b"")
    known = "not an image of a known format (JPEG, PNG, WEBP)"
    for data in (b"text", b"GIF89a", encoded(photo(), "BMP"), b"\xff\xd8", bytes(1000)):
        assert native.image(data) == known
    for path in (tmp_path, tmp_path / "none.jpg", Path("/dev/zero")):
        with pytest.raises(ImageError) as caught:
            load_image(path, SPEC)
        assert str(caught.value) == f"{path}: {native.image(path)}"
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(2**40)
    assert "1099511627776 bytes is more than a picture of" in str(native.image(huge))


@pytest.mark.parametrize("format_", TRANSPOSED)
def test_a_header_that_claims_a_giant_is_refused_unread(native: Probe, format_: str) -> None:
    data = bytearray(encoded(photo(), format_))
    if format_ == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = b"\xff\xdc\xff\xdc"  # the most that libjpeg knows
    elif format_ == "PNG":
        data[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    else:
        data[26:30] = b"\xff\x3f\xff\x3f"
    assert "is over the limit of 100000000 pixels" in str(native.image(bytes(data)))


def test_a_jpeg_of_endless_scans_is_refused(native: Probe) -> None:
    """Each scan costs a pass over the picture; Pillow has no limit."""
    data = encoded(photo(), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff\xc4", start)
    scan = data[start:end]
    assert native.image(data[:start] + scan * 600 + data[start:]) == (
        "cannot be decoded (more than 500 scans)"
    )


# --- raw frames


def fitted(picture: Image.Image) -> np.ndarray:
    return load_image(np.asarray(to_rgb(picture)), SPEC)


def padded(pixels: np.ndarray, stride: int) -> bytes:
    rows = pixels.reshape(len(pixels), -1)
    return np.pad(rows, ((0, 0), (0, stride - rows.shape[1]))).tobytes()


@pytest.mark.parametrize("size", [(48, 40), (1, 1), (31, 17), (640, 480)], ids=str)
def test_packed_frames_are_what_the_file_of_the_picture_is(
    native: Probe, size: tuple[int, int]
) -> None:
    rgba, grey = np.asarray(photo(*size, mode="RGBA")), np.asarray(photo(*size, mode="L"))
    frames = {
        "rgb": (rgba[:, :, :3], fitted(Image.fromarray(rgba[:, :, :3]))),
        "bgr": (rgba[:, :, 2::-1], fitted(Image.fromarray(rgba[:, :, :3]))),
        "rgba": (rgba, fitted(Image.fromarray(rgba))),
        "bgra": (rgba[:, :, [2, 1, 0, 3]], fitted(Image.fromarray(rgba))),
        "grey": (grey, fitted(Image.fromarray(grey))),
    }
    for kind, (pixels, expected) in frames.items():
        row = pixels[0].size
        for stride in (row, row + 1, row + 64):
            found = native.frame(padded(pixels, stride), kind, size, (stride, 0))
            assert np.array_equal(found, expected), (kind, stride)


def test_nv12_is_bt601_of_limited_range(native: Probe) -> None:
    width, height = 31, 17
    luma = np.asarray(photo(width, height, 1, "L"))
    chroma = np.asarray(photo(16, 9, 2, "RGBA"))[:, :, :2]
    data = padded(luma, 40) + padded(chroma, 36)
    y = 298 * (luma.astype(int) - 16) + 128
    cb, cr = (
        c.repeat(2, 0).repeat(2, 1)[:height, :width].astype(int) - 128
        for c in (chroma[:, :, 0], chroma[:, :, 1])
    )
    rgb = np.stack([y + 409 * cr, y - 100 * cb - 208 * cr, y + 516 * cb], axis=2) >> 8
    expected = load_image(np.clip(rgb, 0, 255).astype(np.uint8), SPEC)
    found = native.frame(data, "nv12", (width, height), (40, 36))
    assert np.array_equal(found, expected)


def test_frames_that_are_too_short_are_refused(native: Probe) -> None:
    data = padded(np.asarray(photo()), 144)
    assert isinstance(native.frame(data, "rgb", (48, 40), (144, 0)), np.ndarray)
    assert "plane 0" in str(native.frame(data[:-1], "rgb", (48, 40), (144, 0)))
    assert "stride is 143" in str(native.frame(data, "rgb", (48, 40), (143, 0)))
    assert "plane 1" in str(native.frame(data, "nv12", (48, 120), (48, 48)))


def test_the_units_hold() -> None:
    program = built("pixels_test")
    subprocess.run([program, "--gtest_brief=1"], check=True)
