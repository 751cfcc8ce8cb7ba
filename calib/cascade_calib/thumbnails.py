"""Images small enough to be part of a page.

In: one image as the engines see it. Out: a `data:` URI of a JPEG; the same bytes for the same
image and the same Pillow.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from cascade_runtime.preprocess import Pixels

SIDE = 96
_QUALITY = 70  # the worst image, pure noise, is then 6 kB


def thumbnail(pixels: Pixels) -> tuple[str, int, int]:
    """The image, uint8 [H, W, 3], within SIDE x SIDE pixels and never enlarged.

    Returns:
        The URI, the width and the height.
    """
    height, width = pixels.shape[:2]
    shrink = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, optimize=False, progressive=False)
    coded = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/jpeg;base64,{coded}", *size
