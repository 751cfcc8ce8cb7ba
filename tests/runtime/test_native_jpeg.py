"""JPEGs decoded at a fraction of their size, where a bundle says so: both runtimes alike."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import decode_for, load_image

from .native_pixels import MANY, Probe, assert_same, encoded, exif, native, photo

__all__ = ["native"]


def spec(width: int, height: int, **more: Any) -> Preprocess:
    return Preprocess(width=width, height=height, jpeg="reduced", **more)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((640, 480), (160, 120)),  # 640 / 64 and 480 / 64 have 4 in common, not 8
        ((512, 512), (64, 64)),
        ((513, 515), (65, 65)),
        ((127, 200), (127, 200)),
        ((128, 128), (64, 64)),
        ((2000, 100), (2000, 100)),
    ],
)
def test_smallest_fraction_that_the_target_fits_into(size: Any, decoded: Any) -> None:
    data = encoded(photo(*size), "JPEG")
    assert decode_for(data, spec(64, 64)).size == decoded
    assert decode_for(data, Preprocess(width=64, height=64)).size == size


def test_sides_are_those_of_the_upright_picture() -> None:
    lying = encoded(photo(400, 100), "JPEG", exif=exif(6))  # 100 x 400 upright
    assert decode_for(lying, spec(50, 200)).size == (50, 200)
    assert decode_for(lying, spec(200, 50)).size == (100, 400)


def test_size_limit_is_that_of_the_whole_picture() -> None:
    with pytest.raises(Exception, match="200 x 200 is over the limit of 39999 pixels"):
        load_image(encoded(photo(200, 200), "JPEG"), spec(8, 8, max_pixels=39_999))


def test_other_formats_are_decoded_whole() -> None:
    for format_ in ("PNG", "WEBP"):
        data = encoded(photo(200, 200), format_)
        assert decode_for(data, spec(8, 8)).size == (200, 200)


def test_reduced_picture_is_about_the_whole_one() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((640, 480))
    data = encoded(smooth, "JPEG", quality=92)
    whole = load_image(data, Preprocess(width=64, height=64)).astype(int)
    assert np.abs(load_image(data, spec(64, 64)) - whole).mean() < 1.0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg(native: Probe, mode: str) -> None:
    for (size, subsampling), progressive in itertools.product(
        itertools.product([(333, 211), (64, 64), (65, 130), (9, 250)], [0, 1, 2]), [False, True]
    ):
        options = (
            {"progressive": progressive}
            if mode == "CMYK"
            else {
                "progressive": progressive,
                "subsampling": subsampling,
            }
        )
        data = encoded(photo(*size, mode=mode), "JPEG", **options)
        for target in ((8, 8), (16, 30), (40, 20)):
            assert_same(native, data, spec(*target))
            assert_same(native, data, spec(*target, crop="center", resize="bicubic"))


def test_every_orientation(native: Probe) -> None:
    for orientation in range(1, 9):
        data = encoded(photo(300, 170), "JPEG", exif=exif(orientation))
        assert_same(native, data, spec(30, 12))
        assert_same(native, data, spec(12, 30))


@MANY
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2),
    st.integers(1, 8),
    st.integers(0, 9),
)
def test_any_size_to_any_size(
    native: Probe, w: int, h: int, width: int, height: int, sub: int, turn: int, seed: int
) -> None:
    data = encoded(photo(w, h, seed), "JPEG", subsampling=sub, exif=exif(turn))
    assert_same(native, data, spec(width, height))


def test_cut_off_files_are_refused_by_both(native: Probe) -> None:
    data = encoded(photo(200, 160), "JPEG")
    for end in range(20, len(data) - 2, 97):
        answer = assert_same(native, data[:end], spec(20, 20))
        assert isinstance(answer, str)
