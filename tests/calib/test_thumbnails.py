import base64
import io

import numpy as np
import pytest
from PIL import Image

from cascade_calib.thumbnails import SIDE, thumbnail


def decoded(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (192, 384, (SIDE, SIDE // 2)),
        (384, 192, (SIDE // 2, SIDE)),
        (1, 5000, (SIDE, 1)),
        (SIDE, SIDE, (SIDE, SIDE)),
        (8, 12, (12, 8)),  # never enlarged
    ],
)
def test_size_keeps_the_shape_of_the_image(height, width, expected):
    uri, *size = thumbnail(noise(height, width))
    assert tuple(size) == decoded(uri).size == expected


def test_it_shows_the_image():
    image = np.zeros((200, 200, 3), np.uint8)
    image[:, :100] = (250, 20, 20)
    image[:, 100:] = (20, 20, 250)
    seen = np.asarray(decoded(thumbnail(image)[0]), dtype=np.int16)
    assert np.abs(seen[48, 20] - (250, 20, 20)).max() < 12
    assert np.abs(seen[48, 76] - (20, 20, 250)).max() < 12


def test_same_image_same_bytes_and_another_image_others():
    assert thumbnail(noise(100, 100)) == thumbnail(noise(100, 100))
    assert thumbnail(noise(100, 100)) != thumbnail(noise(100, 100, seed=1))


def test_twelve_of_the_worst_to_compress_stay_small():
    assert 12 * max(len(thumbnail(noise(s, s))[0]) for s in (SIDE, 100, 300)) < 120_000


def test_a_view_with_strides_is_read_as_it_is_seen():
    image = noise(64, 64)
    assert thumbnail(image[::-1, ::2]) == thumbnail(np.ascontiguousarray(image[::-1, ::2]))
