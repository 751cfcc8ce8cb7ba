"""From a file, bytes or an array to the uint8 pixels that stage 0 takes.

In: a path, the bytes of an image file, or an array. Out: uint8 [height, width, 3] RGB, as
`manifest.Preprocess` states it; training, certification and every runtime use this one function.
Out of bounds: an `ImageError` naming the image and the reason. A cut-off file is refused, never
filled up. Spec: docs/bundle-format.md, "Preprocessing".
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cascade_runtime.errors import ImageError
from cascade_runtime.manifest import Preprocess

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageLike: TypeAlias = str | os.PathLike[str] | bytes | npt.NDArray[np.generic]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# 16-bit RGBA, uncompressed, is the largest honest file of a picture; metadata comes on top.
_BYTES_PER_PIXEL = 8
_METADATA_BYTES = 64 * 2**20

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF 2.32, tag 0x0112: what has to be done to the stored picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # width and height change places


def load_image(image: ImageLike, spec: Preprocess, name: str | None = None) -> Pixels:
    """Decode one image and bring it to the size of `spec`: uint8 [height, width, 3].

    Args:
        image: a path, the bytes of a file, or uint8 [H, W] or [H, W, C], C = 1, 3 (RGB), 4 (RGBA).
        name: what to call it in an error; default the path, "image" or "array".

    Raises:
        ImageError: missing, empty, truncated, too large, of an unknown format or dtype.
    """
    return fit(decode_for(image, spec, name), spec)


def decode_for(image: ImageLike, spec: Preprocess, name: str | None = None) -> Image.Image:
    """The picture that `fit` takes: at its own size or, of a JPEG, smaller where `spec` allows it.

    Raises:
        ImageError: as for `load_image`.
    """
    least = (spec.width, spec.height) if spec.jpeg == "reduced" else None
    return decode_rgb(image, max_pixels=spec.max_pixels, name=name, least=least)


def decode_rgb(
    image: ImageLike,
    *,
    max_pixels: int,
    name: str | None = None,
    least: tuple[int, int] | None = None,
) -> Image.Image:
    """Decode one image at its own size: an upright 8-bit RGB picture (the first frame, if several).

    Safe to call from several threads.

    Args:
        image: as for `load_image`.
        max_pixels: a larger width x height is refused before any pixel is decoded.
        name: what to call it in an error; default the path, "image" or "array".
        least: width and height; a JPEG at least twice as large is decoded at 1/2, 1/4 or 1/8.

    Raises:
        ImageError: missing, empty, truncated, too large, of an unknown format or dtype.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels, name or "array")
    label = name or ("image" if isinstance(image, bytes) else printable(os.fspath(image)))
    data = image if isinstance(image, bytes) else _read(image, max_pixels, label)
    if not data:
        raise ImageError(f"{label}: the file is empty (0 bytes)")
    return _decode(data, max_pixels, label, least)


def printable(name: str) -> str:
    """A file name as one line that any terminal can show: escaped only where it has to be."""
    return name if name.isprintable() else ascii(name)


def _read(path: str | os.PathLike[str], max_pixels: int, label: str) -> bytes:
    """A regular file's bytes; its kind is looked at first, since opening a device may do anything.

    No more than the size it was seen to have: files of /proc say 0 and never end.
    """
    limit = max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{label}: is a folder, expected an image file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{label}: is a pipe, socket or device, expected an image file")
        if status.st_size > limit:
            raise ImageError(
                f"{label}: {status.st_size} bytes is more than a picture of {max_pixels} pixels "
                "can have; is it an image?"
            )
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read(status.st_size) or b""
    except OSError as error:
        raise ImageError(f"{label}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{label}: is no usable file name ({error})") from error


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for a writer, should the file have become a pipe since it was looked at."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(data: bytes, max_pixels: int, label: str, least: tuple[int, int] | None) -> Image.Image:
    try:
        with _quiet:
            picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(picture.size, max_pixels, label)
            if least is not None and picture.format in ("JPEG", "MPO"):
                _reduce(picture, least)
            picture.load()
            return to_rgb(upright(picture), label)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{label}: not an image of a known format ({', '.join(FORMATS)})"
        ) from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, met inside Image.open
        pillow = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"{label}: its header claims more than {min(max_pixels, pillow)} pixels, the limit; "
            "scale it down first"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{label}: not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise many kinds on hostile bytes
        if "truncated" in str(error).lower():
            raise ImageError(f"{label}: is truncated, its end is missing; copy it again") from error
        raise ImageError(f"{label}: cannot be decoded ({printable(str(error))})") from error


def _reduce(picture: Image.Image, least: tuple[int, int]) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, the smallest that `least` fits into, upright."""
    if _orientation(picture) in _ON_ITS_SIDE:
        least = least[::-1]
    picture.draft(None, least)


def _check_size(size: tuple[int, int], max_pixels: int, label: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{label}: {width} x {height} is over the limit of {max_pixels} pixels; "
            "scale it down first"
        )


class _Quiet:
    """Hush Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` restores what it saw on entry, so two threads that overlap would
    leave their filters behind; here the first in sets them and the last out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_quiet = _Quiet()


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; damaged EXIF counts as none."""
    method = _UPRIGHT.get(_orientation(picture))
    return picture if method is None else picture.transpose(method)


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(_ORIENTATION_TAG, 1)
        return found if found in _UPRIGHT else 1
    except Exception:  # hostile metadata raises anything; the pixels are still good
        return 1


def to_rgb(picture: Image.Image, label: str = "image") -> Image.Image:
    """Any Pillow mode to RGB: 16 bit is scaled to 8, transparency is laid on black."""
    if picture.mode == "F":
        raise ImageError(f"{label}: floating-point images are not supported; save as 8 or 16 bit")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture, dtype=np.float64)
        grey = np.clip(values / 257.0 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _from_array(array: npt.NDArray[np.generic], max_pixels: int, label: str) -> Image.Image:
    array = check_array(array, max_pixels, label)
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)), label)


def check_array(
    array: npt.NDArray[np.generic], max_pixels: int, label: str
) -> npt.NDArray[np.generic]:
    """The array as [H, W], [H, W, 3] or [H, W, 4].

    Raises:
        ImageError: of another type or shape, or too large.
    """
    if array.dtype != np.uint8:
        raise ImageError(f"{label}: dtype is {array.dtype}, expected uint8 in 0..255")
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (3, 4)) or array.size == 0:
        raise ImageError(f"{label}: shape is {shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    _check_size((shape[1], shape[0]), max_pixels, label)
    return array


def fit(picture: Image.Image, spec: Preprocess) -> Pixels:
    """Crop (when the spec says so) and resize an RGB picture to uint8 [height, width, 3]."""
    size = (spec.width, spec.height)
    if picture.size != size:
        box = center_box(picture.size, size) if spec.crop == "center" else None
        picture = picture.resize(size, _FILTERS[spec.resize], box=box)
    return np.array(picture, dtype=np.uint8)


def center_box(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest centred box of `source` with the shape of `target`, in whole pixels."""
    width, height = source
    if width * target[1] > height * target[0]:
        inner = max(1, height * target[0] // target[1])
        left = (width - inner) // 2
        return left, 0, left + inner, height
    inner = max(1, width * target[1] // target[0])
    top = (height - inner) // 2
    return 0, top, width, top + inner
