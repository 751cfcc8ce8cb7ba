"""Files to pixels: what is read, how, and what is refused by name."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cascade_runtime.errors import ImageError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import center_box, decode_rgb, fit, load_image, printable

SPEC = Preprocess(height=20, width=24)
LIMIT = SPEC.max_pixels


def photo(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format_, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_rgb(data, max_pixels=LIMIT))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_refused_files_name_the_file_and_the_reason(refused: dict[Path, str]) -> None:
    for path, word in refused.items():
        with pytest.raises(ImageError) as caught:
            load_image(path, SPEC)
        assert str(path) in str(caught.value)
        assert word in str(caught.value), caught.value


def test_a_folder_called_like_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(ImageError, match=r"x\.jpg: is a folder"):
        load_image(tmp_path / "x.jpg", SPEC)


def test_a_device_is_refused_without_reading_it() -> None:
    with pytest.raises(ImageError, match="device"):
        load_image("/dev/zero", SPEC)


def test_a_file_without_a_size_of_its_own_is_not_read_to_its_end() -> None:
    """Those of /proc say 0 bytes; some have more than memory, some wait for ever."""
    with pytest.raises(ImageError, match="/proc/self/maps: the file is empty"):
        load_image("/proc/self/maps", SPEC)


def test_a_pipe_put_in_place_of_a_file_after_a_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo(), "PNG"))
    seen = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: seen)
    with pytest.raises(ImageError, match="empty"):
        load_image(path, SPEC)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ImageError, match="1099511627776 bytes"):
        load_image(tmp_path / "huge.jpg", SPEC)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        load_image(tmp_path / "a.png", SPEC)


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
    ids=lambda value: str(value),
)
def test_a_file_cut_anywhere_is_refused_or_complete(
    format_: str, options: dict[str, object]
) -> None:
    """Pillow can fill up what is missing with grey; no cut may ever change a pixel."""
    whole = encoded(photo(24, 20), format_, **options)
    expected = pixels(whole)
    refused = 0
    for length in range(0, len(whole), max(1, len(whole) // 150)):
        try:
            found = pixels(whole[:length])
        except ImageError:
            refused += 1
        else:
            assert np.array_equal(found, expected), f"cut at {length} of {len(whole)}"
    assert refused > 75


@settings(max_examples=150)
@given(st.data())
def test_any_damage_gives_pixels_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    damaged = bytearray(encoded(photo(16, 16), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load_image(bytes(damaged), Preprocess(height=8, width=8, max_pixels=10_000))
    except ImageError:
        return
    assert found.shape == (8, 8, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(data), np.asarray(upright))
    stored = np.asarray(photo())
    assert np.array_equal(pixels(data), stored) == (orientation == 1)


def test_a_rotated_jpeg_comes_out_upright() -> None:
    """Orientation 6 is a phone held upright: the stored rows run down the right edge."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    found = pixels(encoded(stored, "JPEG", exif=exif, quality=95))
    assert found.shape == (40, 48, 3)
    assert distance(found, np.asarray(photo())) < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_orientation_leaves_the_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(photo(), "PNG", exif=exif)), np.asarray(photo()))


def test_damaged_exif_leaves_the_picture() -> None:
    good = encoded(photo(), "JPEG")
    junk = b"Exif\x00\x00II*\x00" + b"\xff" * 40
    marker = b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk
    assert np.array_equal(pixels(good[:2] + marker + good[2:]), pixels(good))


def test_cmyk_jpeg_shows_its_colours() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    found = pixels(encoded(cyan, "JPEG", quality=95))
    assert distance(found, np.full((16, 16, 3), (0, 255, 255))) < 4


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    found = pixels(encoded(Image.fromarray(levels), "PNG"))
    assert found[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_sixteen_bit_colour_keeps_its_brightness() -> None:
    rows = b"\x00" + struct.pack(">HHH", 0, 32768, 65535)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    assert pixels(png + chunk(b"IEND", b""))[0, 0].tolist() == [0, 128, 255]


def test_transparency_is_laid_on_black() -> None:
    rgba = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    rgba.putpixel((1, 1), (200, 100, 50, 255))
    rgba.putpixel((2, 2), (200, 100, 50, 128))
    found = pixels(encoded(rgba, "PNG"))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[1, 1].tolist() == [200, 100, 50]
    assert found[2, 2].tolist() == [100, 50, 25]


def test_grey_with_alpha_is_laid_on_black() -> None:
    la = Image.new("LA", (4, 4), (200, 0))
    la.putpixel((1, 1), (200, 255))
    found = pixels(encoded(la, "PNG"))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[1, 1].tolist() == [200, 200, 200]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"], ids=["index", "table"])
def test_palette_with_transparency_is_laid_on_black(transparency: int | bytes) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 210, 220])
    palette.putpixel((1, 1), 1)
    found = pixels(encoded(palette, "PNG", transparency=transparency))
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[1, 1].tolist() == [0, 0, 0]


def test_one_bit_is_black_and_white() -> None:
    bits = Image.new("1", (4, 4), 0)
    bits.putpixel((1, 2), 1)
    found = pixels(encoded(bits, "PNG"))
    assert found[2, 1].tolist() == [255, 255, 255]
    assert int(found.sum()) == 3 * 255


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "name", ["with space.png", "Straße 雪.png", "two\nlines.png", "a'b\"c.png"]
)
def test_odd_names_are_read_and_named_in_one_line(tmp_path: Path, name: str) -> None:
    photo().save(tmp_path / name)
    assert load_image(tmp_path / name, SPEC).shape == (20, 24, 3)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / name, SPEC)
    assert "\n" not in str(caught.value)
    assert printable(str(tmp_path / name)) in str(caught.value)


def test_a_name_with_a_nul_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="file name"):
        load_image("a\0b.png", SPEC)


def test_path_bytes_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    from_path = load_image(str(tmp_path / "a.png"), SPEC)
    assert np.array_equal(from_path, load_image((tmp_path / "a.png").read_bytes(), SPEC))
    assert np.array_equal(from_path, load_image(np.asarray(photo()), SPEC))
    assert np.array_equal(from_path, fit(photo(), SPEC))


def test_the_pixels_can_be_written_to() -> None:
    found = load_image(np.asarray(photo(24, 20)), SPEC)
    found[0, 0, 0] = 7
    assert found[0, 0, 0] == 7


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "dtype is float32"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "shape is"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "shape is"),
        (np.zeros((4,), dtype=np.uint8), "shape is"),
    ],
)
def test_arrays_that_are_no_image_are_refused(array: np.ndarray, word: str) -> None:
    with pytest.raises(ImageError, match=word):
        load_image(array, SPEC)


def test_the_pixel_limit_holds_for_files_and_arrays() -> None:
    small = Preprocess(height=4, width=4, max_pixels=99)
    for image in (encoded(photo(10, 10), "PNG"), np.asarray(photo(10, 10))):
        with pytest.raises(ImageError, match="10 x 10 is over the limit of 99 pixels"):
            load_image(image, small)
    assert load_image(encoded(photo(9, 11), "PNG"), small).shape == (4, 4, 3)


def test_center_crop_takes_the_middle() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    spec = Preprocess(height=5, width=5, crop="center")
    squeezed = Preprocess(height=5, width=5)
    for array in (wide, wide.transpose(1, 0, 2)):
        # The filter reaches a pixel past the crop's edge, so the middle is looked at.
        assert load_image(array, spec)[1:4, 1:4].min() == 255
        assert load_image(array, squeezed).min() == 0


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300), st.integers(1, 300))
def test_center_box_is_the_largest_of_its_shape(w: int, h: int, tw: int, th: int) -> None:
    left, top, right, bottom = center_box((w, h), (tw, th))
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h
    assert abs(left - (w - right)) <= 1
    assert abs(top - (h - bottom)) <= 1
    if w * th > h * tw:
        assert (bottom - top, right - left) == (h, max(1, h * tw // th))
    else:
        assert (right - left, bottom - top) == (w, max(1, w * th // tw))


def test_threads_leave_the_warning_filters_alone() -> None:
    data = encoded(photo(), "PNG")
    before = list(warnings.filters)
    gate = threading.Barrier(4)

    def work(_: int) -> np.ndarray:
        gate.wait()
        for _ in range(50):
            found = load_image(data, SPEC)
        return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert all(np.array_equal(f, found[0]) for f in found)
    assert list(warnings.filters) == before


def test_pillow_warnings_neither_show_nor_refuse() -> None:
    """At 90 to 100 million pixels Pillow warns; the limit here is the manifest's alone."""
    big = encoded(Image.new("1", (10_000, 9_500)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(big, Preprocess(height=4, width=4)).shape == (4, 4, 3)
