"""A contact sheet: a PNG that shows images with their labels, for a person to look at.

In: uint8 pixels and labels. Out: a grid, each image enlarged without smoothing, framed in the
colour of its class, its label and perhaps a caption below.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cascade_runtime.errors import DataError
from cascade_runtime.preprocess import Pixels

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

COLUMNS = ROWS = 8

_PAPER, _INK, _FAINT = (250, 250, 248), (30, 30, 30), (110, 110, 110)
_CLASS_COLOURS = ((0, 114, 178), (230, 120, 0))  # told apart with any colour vision
_CELL, _FRAME, _GAP, _LINE, _HEAD = 128, 5, 10, 18, 44
_LABEL_SIZE, _CAPTION_SIZE, _TITLE_SIZE = 15, 12, 20


def contact_sheet(
    pixels: Pixels,
    labels: npt.NDArray[np.integer],
    classes: tuple[str, str],
    path: Path,
    captions: Sequence[str] | None = None,
) -> Path:
    """Write the first 64 images as a sheet of 8 x 8; fewer leave the end empty.

    Args:
        pixels: uint8 [N, H, W, 3].
        labels: [N], 0 or 1.
        path: the PNG to write; its folder is made.
        captions: a second line below each image, such as why it is hard.

    Raises:
        DataError: no image, or captions of another number.
    """
    if len(pixels) == 0:
        raise DataError(f"{path}: no image to show")
    if len(labels) != len(pixels) or (captions is not None and len(captions) != len(pixels)):
        raise DataError(
            f"{path}: {len(pixels)} images, {len(labels)} labels and "
            f"{'no' if captions is None else len(captions)} captions do not belong together"
        )
    lines = 1 if captions is None else 2
    step_x = _CELL + 2 * _FRAME + _GAP
    step_y = step_x + lines * _LINE
    sheet = Image.new("RGB", (COLUMNS * step_x + _GAP, ROWS * step_y + _GAP + _HEAD), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(draw, labels[: COLUMNS * ROWS], classes)
    for i in range(min(len(pixels), COLUMNS * ROWS)):
        x = _GAP + (i % COLUMNS) * step_x
        y = _GAP + _HEAD + (i // COLUMNS) * step_y
        caption = None if captions is None else captions[i]
        _cell(sheet, draw, (x, y), pixels[i], int(labels[i]), classes, caption)
    _save(sheet, path)
    return path


def _head(
    draw: ImageDraw.ImageDraw, labels: npt.NDArray[np.integer], classes: tuple[str, str]
) -> None:
    """The legend: each class's colour, and how many of it the sheet shows."""
    x = float(_GAP)
    font = _font(_TITLE_SIZE)
    room = COLUMNS * _CELL // 2
    for y, (name, colour) in enumerate(zip(classes, _CLASS_COLOURS, strict=True)):
        draw.rectangle((x, 14, x + 22, 36), fill=colour)
        text = _shorten(draw, name, font, room) + f": {int(np.sum(labels == y))}"
        draw.text((x + 32, 12), text, font=font, fill=_INK)
        x += 32 + draw.textlength(text, font=font) + 40


def _cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    pixels: Pixels,
    label: int,
    classes: tuple[str, str],
    caption: str | None,
) -> None:
    """One framed image with its label; an image that is not square keeps its shape."""
    x, y = corner
    side = _CELL + 2 * _FRAME
    colour = _CLASS_COLOURS[label]
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=colour)
    picture = Image.fromarray(pixels)
    scale = _CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    smooth = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    shown = picture.resize(size, smooth)
    sheet.paste(shown, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))
    rows = [(classes[label], _LABEL_SIZE, colour)]
    rows += [] if caption is None else [(caption, _CAPTION_SIZE, _FAINT)]
    for row, (text, points, ink) in enumerate(rows):
        font = _font(points)
        draw.text((x, y + side + 1 + row * _LINE), _shorten(draw, text, font, side), ink, font)


@cache
def _font(points: int) -> Font:
    return ImageFont.load_default(points)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """The text, or as much of it as fits."""
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    text = text[: width // 2]  # no letter is narrower than two pixels
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def _save(sheet: Image.Image, path: Path) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            sheet.save(file, format="PNG")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
