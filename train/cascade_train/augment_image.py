"""Augmentation of one image in Pillow: RandAugment and JPEG re-compression.

In: uint8 [H, W, 3] and a generator seeded for that image alone. Out: the same form. These run
where the image is read, so that worker processes share the load.

RandAugment: Cubuk et al., 1909.13719: N operations drawn uniformly from a list, all at the same
magnitude M of 0..10. The ranges at M = 10 are those of AutoAugment (1805.09501, table 6), as the
paper uses them.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from cascade_runtime.preprocess import Pixels

MAX_MAGNITUDE = 10.0
_GREY = (128, 128, 128)  # what comes in from beyond the edge
_DEGREES, _SHEAR, _SHIFT, _ENHANCE = 30.0, 0.3, 0.33, 0.9  # at the largest magnitude

Operation = Callable[[Image.Image, float, float], Image.Image]


def rand_augment(
    pixels: Pixels, operations: int, magnitude: float, rng: np.random.Generator
) -> Pixels:
    """Apply `operations` of the list, each at `magnitude` (0..10), its direction drawn."""
    picture = Image.fromarray(pixels)
    strength = magnitude / MAX_MAGNITUDE
    for _ in range(operations):
        operation = OPERATIONS[NAMES[int(rng.integers(len(NAMES)))]]
        sign = 1.0 if rng.random() < 0.5 else -1.0
        picture = operation(picture, strength, sign)
    return np.array(picture, dtype=np.uint8)


def recompress(pixels: Pixels, quality: int) -> Pixels:
    """What a JPEG of this quality (1..95, with the usual halved chroma) leaves of the image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    return np.array(Image.open(buffer), dtype=np.uint8)


def _affine(
    picture: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float
) -> Image.Image:
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        resample=Image.Resampling.BILINEAR,
        fillcolor=_GREY,
    )


def _shear_x(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    shear = sign * strength * _SHEAR
    return _affine(picture, 1, shear, -shear * picture.height / 2, 0, 1, 0)


def _shear_y(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    shear = sign * strength * _SHEAR
    return _affine(picture, 1, 0, 0, shear, 1, -shear * picture.width / 2)


def _move_x(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    return _affine(picture, 1, 0, sign * strength * _SHIFT * picture.width, 0, 1, 0)


def _move_y(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, 0, 1, sign * strength * _SHIFT * picture.height)


def _rotate(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    angle = sign * strength * _DEGREES
    return picture.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=_GREY)


def _solarize(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    return ImageOps.solarize(picture, 256 - round(256 * strength))


def _posterize(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    return ImageOps.posterize(picture, 8 - round(4 * strength))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Less or more of a quality; a factor of 1 changes nothing."""
    return lambda picture, strength, sign: kind(picture).enhance(1 + sign * strength * _ENHANCE)


# The magnitude says nothing to the first three, as in the paper. Inverting is no part of the list.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": lambda picture, strength, sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, sign: ImageOps.equalize(picture),
    "rotate": _rotate,
    "solarize": _solarize,
    "posterize": _posterize,
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear x": _shear_x,
    "shear y": _shear_y,
    "move x": _move_x,
    "move y": _move_y,
}
NAMES = tuple(OPERATIONS)
