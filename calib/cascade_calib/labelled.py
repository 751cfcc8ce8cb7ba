"""Labelled images as arrays: the pixels that every engine and every measurement sees.

In: `LabelledImages` (see `listing`). Out: `Loaded`, uint8 pixels in the order of the list, and
the images that could not be read, each with its reason. Pixels go through
`cascade_runtime.preprocess`, the same as at run time.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascade_calib.listing import Int8, LabelledImages, read_labelled
from cascade_calib.progress import Progress
from cascade_calib.splits_file import SPLITS_NAME, Skipped, content_hash, read_splits
from cascade_runtime.errors import DataError, ImageError
from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import Pixels, decode_for, decode_rgb, fit, printable

__all__ = [
    "LabelledImages",
    "Loaded",
    "Progress",
    "Skipped",
    "check_unchanged",
    "content_sha256",
    "load_pixels",
    "load_split_pixels",
    "pixels_sha256",
    "read_labelled",
]

_CHUNK = 32  # images a task: large enough to hide the pool's own cost, small enough to report


@dataclass(frozen=True)
class Loaded:
    """N images in memory: pixels uint8 [N, H, W, 3], labels int8 [N], and what was left out.

    `hashes` are the `pixels_sha256` of the images at their own size, where they were asked for.
    """

    pixels: Pixels
    labels: Int8
    names: tuple[str, ...]
    groups: tuple[str, ...] | None
    skipped: tuple[Skipped, ...] = ()
    hashes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, index: Sequence[int] | npt.NDArray[np.integer]) -> Loaded:
        """The images at `index`, in that order; `skipped` stays with the whole."""
        rows = [int(i) for i in index]

        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in rows)

        return Loaded(
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            names=pick(self.names),
            groups=None if self.groups is None else pick(self.groups),
            hashes=None if self.hashes is None else pick(self.hashes),
        )

    def summary(self) -> str:
        """How many images were read, and the others by reason, a line each."""
        return summarise(len(self), self.skipped)


def summarise(read: int, skipped: Sequence[Skipped], shown: int = 3) -> str:
    """A short text: how many images were read, and the skipped ones by reason."""
    if not skipped:
        return f"{read} images read, none skipped"
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in skipped:
        reasons[item.reason].append(printable(item.path))
    lines = [f"{read} images read, {len(skipped)} skipped:"]
    for reason, paths in sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        more = f", and {len(paths) - shown} more" if len(paths) > shown else ""
        lines.append(f"  {len(paths)} x {reason}: {', '.join(paths[:shown])}{more}")
    return "\n".join(lines)


def load_pixels(
    images: LabelledImages,
    spec: Preprocess,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    hashes: bool = False,
) -> Loaded:
    """Decode every image once, in a pool of threads; a bad one is skipped and listed.

    Args:
        workers: threads; default one a core. Pillow decodes outside the interpreter's lock.
        progress: told after every few images.
        hashes: also hash each image's full-size pixels (`Loaded.hashes`).

    Raises:
        DataError: not one of the images could be read.
    """
    n = len(images)
    pixels = np.empty((n, spec.height, spec.width, 3), dtype=np.uint8)
    digests = [""] * n
    reasons: dict[int, str] = {}

    def read(chunk: range) -> int:
        for i in chunk:
            try:
                pixels[i], digests[i] = _read(images, i, spec, hashes)
            except ImageError as error:
                reasons[i] = str(error)
        return len(chunk)

    done = 0
    for count in _in_threads(read, _chunks(n), workers or os.cpu_count() or 1):
        done += count
        if progress is not None:
            progress("reading images", done, n)

    skipped = tuple(Skipped(_utf8(images.paths[i]), reasons[i]) for i in sorted(reasons))
    kept = [i for i in range(n) if i not in reasons]
    if not kept:
        raise DataError(
            f"{printable(str(images.root))}: none of the {n} images can be read; the first is "
            + (f"{printable(skipped[0].path)}: {skipped[0].reason}" if skipped else "missing")
        )
    images = images if not reasons else images.select(kept)
    return Loaded(
        pixels=pixels if not reasons else pixels[kept],
        labels=images.labels,
        names=images.paths,
        groups=images.groups,
        skipped=skipped,
        hashes=tuple(digests[i] for i in kept) if hashes else None,
    )


def load_split_pixels(
    path: str | Path,
    split: str,
    spec: Preprocess,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """The pixels of one split of a `splits.json` (or of the one in a folder), whole and unchanged.

    Raises:
        DataError: see `check_unchanged`.
    """
    path = Path(path)
    path = path / SPLITS_NAME if path.is_dir() else path
    images = read_labelled(path, split=split)
    loaded = load_pixels(images, spec, workers=workers, progress=progress, hashes=True)
    check_unchanged(loaded, path, split)
    return loaded


def check_unchanged(loaded: Loaded, path: Path, split: str) -> None:
    """That the images of a split, loaded with `hashes`, are all there and what they were.

    A split is what it was when it was drawn: leaving out an image afterwards would be a choice,
    and a certificate is only worth something without one.

    Raises:
        DataError: an image is missing, unreadable, or its pixels are others than then.
    """
    expected = {entry.path: entry.sha256 for entry in read_splits(path).entries}
    changed = [
        f"{printable(name)} (other pixels)"
        for name, digest in zip(loaded.names, loaded.hashes or (), strict=True)
        if digest != expected[name]
    ]
    lost = [f"{printable(item.path)} ({item.reason})" for item in loaded.skipped]
    if changed or lost:
        first, count = ", ".join([*lost, *changed][:3]), len(changed) + len(lost)
        raise DataError(
            f"{printable(str(path))}: {count} of {len(loaded) + len(lost)} images of {split} "
            f"are not what they were when it was made: {first}; bring them back, or split again"
        )


def _read(images: LabelledImages, i: int, spec: Preprocess, hashed: bool) -> tuple[Pixels, str]:
    """One image's pixels at the size of `spec`, and the hash of those at its own size."""
    name = images.paths[i]
    if _utf8(name) != name:
        raise ImageError("its name is not valid UTF-8; rename it")
    label = "image"
    path = os.fspath(images.file(i))
    try:
        picture = decode_for(path, spec, label)
        if not hashed:
            return fit(picture, spec), ""
        whole = picture
        if spec.jpeg != "full":
            whole = decode_rgb(path, max_pixels=spec.max_pixels, name=label)
    except ImageError as error:  # the list names the image, the reason need not
        raise ImageError(str(error).removeprefix(f"{label}: ")) from error
    return fit(picture, spec), pixels_sha256(np.asarray(whole))


def _utf8(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _chunks(n: int) -> Iterator[range]:
    return (range(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK))


def _in_threads(
    work: Callable[[range], int], chunks: Iterable[range], workers: int
) -> Iterator[int]:
    """Results as they come, with only a few tasks queued: an interrupt or a bug ends it at once."""
    todo = iter(chunks)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        running: set[Future[int]] = {pool.submit(work, c) for c in islice(todo, 2 * workers)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, chunk) for chunk in islice(todo, len(finished))}
            yield from (future.result() for future in finished)


def pixels_sha256(pixels: Pixels) -> str:
    """SHA-256 of one image, uint8 [H, W, 3]: of the line `RGB <W>x<H>`, then its bytes row by row.

    The size is part of it, so that 2x8 grey pixels are not the same image as 4x4.
    """
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"RGB {width}x{height}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def content_sha256(pixels: Pixels, labels: npt.NDArray[np.integer]) -> str:
    """The hash of a labelled set: uint8 [N, H, W, 3] and labels [N], in any order.

    SHA-256 over the sorted lines `<sha256 of the image's pixels> <label>`.
    """
    return content_hash((pixels_sha256(image) for image in pixels), (int(y) for y in labels))
