"""A split decoded once: a memory map in the cache folder, quick to read at random by any process.

In: one split of a `splits.json`, and the size to decode to. Out: `Decoded`, a reader. The folder
`decoded-<key>` in the cache holds

    pixels.npy    uint8 [N, H, W, 3], in the order of the split
    index.json    key, labels, names, and the CRC-32 of each image's pixels

and is made under a temporary name and renamed when it is whole. The key is a hash of the images'
own hashes, labels and names and of the decoding, so a split that has changed never meets an old
cache, and nobody has to say when to empty it. Every image is checked against its CRC when the
cache is opened; a damaged cache is made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import PIL
import torch
from torch import Tensor

from cascade_calib.labelled import Loaded, Progress, check_unchanged, load_pixels, read_labelled
from cascade_calib.listing import LabelledImages
from cascade_calib.splits_file import SPLITS_NAME, Skipped, read_splits
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import Pixels
from cascade_train.data.readers import Rows
from cascade_train.data.rendered import cache_folder

_PIXELS, _INDEX, _PREFIX = "pixels.npy", "index.json", "decoded-"
_CHUNK = 512  # images decoded at a time: what is held in memory
_STALE_S = 24 * 3600.0  # a temporary folder this old belongs to no living process


class _Index(msgspec.Struct, frozen=True):
    """`index.json`."""

    key: str
    labels: tuple[int, ...]
    names: tuple[str, ...]
    crcs: tuple[int, ...]


class Decoded:
    """A reader of the cached pixels; opened on first use, in whichever process that is."""

    def __init__(self, folder: Path, index: _Index, size: tuple[int, int]) -> None:
        self.folder, self.names, self.size = folder, index.names, size
        self.labels = torch.tensor(index.labels, dtype=torch.int64)
        self._map: Pixels | None = None

    def read(self, rows: Rows) -> Tensor:
        """As `Reader.read`."""
        if self._map is None:
            self._map = _mapped(self.folder)
        return torch.from_numpy(self._map[rows])

    def share(self) -> None:
        """Nothing to do: every process maps the same file."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}  # a map would be pickled with all its bytes


def decoded_split(
    path: str | Path,
    split: str,
    spec: Preprocess,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """A split's pixels from the cache, decoded now unless they are there and whole.

    Several processes may call it at once; each then decodes, and the first one's folder stays.

    Args:
        path: a `splits.json`, or the folder that it lies in.
        spec: what to decode to; see `augment.decode_spec` for the size that crops need.
        cache: default `$CASCADE_EDGE_CACHE`, or `~/.cache/cascade-edge`.
        workers: decoding threads; default one a core.

    Raises:
        DataError: an image is missing, unreadable, or not what it was when the split was made.
        ConfigError: the cache folder cannot be written, or its disk is full.
    """
    path = Path(path)
    path = path / SPLITS_NAME if path.is_dir() else path
    images, cache = read_labelled(path, split=split), cache or cache_folder()
    key = _key(images, [entry.sha256 for entry in read_splits(path).of(split)], spec)
    folder, shape = cache / f"{_PREFIX}{key[:24]}", (len(images), spec.height, spec.width, 3)
    index = _whole(folder, key, shape, progress)
    if index is None:
        with _half(cache, shape) as half:
            loaded, crcs = _decode(images, spec, half / _PIXELS, workers, progress)
            check_unchanged(loaded, path, split)
            labels = tuple(int(label) for label in images.labels)
            index = _Index(key, labels, images.paths, crcs)
            _write(half / _INDEX, msgspec.json.encode(index))
            half.chmod(0o755)
            _put(half, folder, key, shape)
    return Decoded(folder, index, (spec.height, spec.width))


def _key(images: LabelledImages, hashes: list[str], spec: Preprocess) -> str:
    """What the cached pixels depend on. Pillow is in it: its decoders and filters change."""
    digest = hashlib.sha256(msgspec.json.encode((1, PIL.__version__, spec)))
    for name, image, label in zip(images.paths, hashes, images.labels, strict=True):
        digest.update(msgspec.json.encode((name, image, int(label))))
    return digest.hexdigest()


def _mapped(folder: Path) -> Pixels:
    pixels: Pixels = np.load(folder / _PIXELS, mmap_mode="r", allow_pickle=False)
    return pixels


def _whole(
    folder: Path, key: str, shape: tuple[int, ...], progress: Progress | None
) -> _Index | None:
    """The index of a cache that is there and undamaged, else None."""
    try:
        index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=_Index)
        pixels = _mapped(folder)
    except (OSError, ValueError, EOFError, msgspec.DecodeError):
        return None
    if index.key != key or pixels.shape != shape or pixels.dtype != np.uint8:
        return None
    for i, crc in enumerate(index.crcs):
        if zlib.crc32(pixels[i]) != crc:
            return None
        if progress is not None and (i % _CHUNK == 0 or i + 1 == len(pixels)):
            progress("checking the decoded images", i + 1, len(pixels))
    return index if len(index.crcs) == len(index.labels) == len(pixels) else None


@contextlib.contextmanager
def _half(cache: Path, shape: tuple[int, ...]) -> Iterator[Path]:
    """A temporary folder to fill; it is gone at the end. A failing disk gives one error."""
    half: Path | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        half = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=cache))
        yield half
    except OSError as error:
        need = int(np.prod(shape)) / 2**30
        try:
            free = f"{shutil.disk_usage(cache).free / 2**30:.2f} GiB are free"
        except OSError:
            free = "it is not there"
        raise ConfigError(
            f"{cache}: the decoded images cannot be written ({error.strerror}); they need "
            f"{need:.2f} GiB and {free}. Set CASCADE_EDGE_CACHE to a folder with room, or train "
            "without the cached decode"
        ) from error
    finally:
        if half is not None:
            shutil.rmtree(half, ignore_errors=True)


def _decode(
    images: LabelledImages,
    spec: Preprocess,
    target: Path,
    workers: int | None,
    progress: Progress | None,
) -> tuple[Loaded, tuple[int, ...]]:
    """Write every image's pixels to `target`.

    Returns:
        what was read, with hashes and without the pixels, and the CRC-32 of each image.
    """
    shape = (len(images), spec.height, spec.width, 3)
    names: list[str] = []
    hashes: list[str] = []
    crcs: list[int] = []
    skipped: list[Skipped] = []
    with target.open("wb") as file:
        _header(file, shape)
        for start in range(0, len(images), _CHUNK):
            chunk = images.select(range(start, min(start + _CHUNK, len(images))))
            loaded = load_pixels(chunk, spec, workers=workers, hashes=True)
            file.write(loaded.pixels.data)
            names += loaded.names
            hashes += loaded.hashes or ()
            crcs += [zlib.crc32(image) for image in loaded.pixels]
            skipped += loaded.skipped
            if progress is not None:
                progress("decoding", start + len(chunk), len(images))
        file.flush()
        os.fsync(file.fileno())
    read = Loaded(
        pixels=np.empty((0, *shape[1:]), dtype=np.uint8),
        labels=images.labels[:0],
        names=tuple(names),
        groups=None,
        skipped=tuple(skipped),
        hashes=tuple(hashes),
    )
    return read, tuple(crcs)


def _header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """The head of a .npy; the room for the rest is taken now, before hours of decoding."""
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    file.flush()
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, file.tell() + int(np.prod(shape)))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
            raise


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put(half: Path, folder: Path, key: str, shape: tuple[int, ...]) -> None:
    """Move the finished cache to its place, unless another process was quicker."""
    if folder.exists() and _whole(folder, key, shape, None) is None:
        damaged = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=folder.parent))
        folder.rename(damaged / "damaged")
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        half.rename(folder)
    except OSError:
        if _whole(folder, key, shape, None) is None:
            raise


def _sweep(cache: Path) -> None:
    """Remove what killed runs left behind."""
    for folder in cache.glob(f".{_PREFIX}*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
