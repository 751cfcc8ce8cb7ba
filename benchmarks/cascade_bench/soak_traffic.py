"""Mixed traffic with known answers: files, bytes and arrays, in batches of all sizes, some damaged.

In: an open cascade and image files. Out: requests, and whether their answers are those that the
same cascade gave at the start. Every kind of input has its own: a decoder of the runtime and
Pillow's may differ by a level of 255.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade_calib.labelled import LabelledImages, Progress
from cascade_runtime.cascade import Cascade, Result
from cascade_runtime.errors import ImageError
from cascade_runtime.preprocess import ImageLike, decode_rgb, printable

MOST_IMAGES = 128
SEED = 0
KINDS = ("file", "bytes", "array")
BATCHES = (1, 1, 1, 1, 2, 3, 4, 8, 16, 32)
REFERENCE_BATCHES = (1, 8, 32)

Answer = tuple[int, int, str]
"""label, stage and reason of a `Result`: what a caller acts on."""
_REFUSED: Answer = (-2, -2, "refused")


@dataclass(frozen=True)
class Request:
    """One call: the images, and the answer each must have; None: it must be refused."""

    images: tuple[ImageLike, ...]
    names: tuple[str, ...]
    expected: tuple[Answer | None, ...]

    def wrong(self, results: Sequence[Result]) -> list[str]:
        """A sentence for every answer that is not the expected one."""
        if len(results) != len(self.images):
            return [f"{len(results)} answers to {len(self.images)} images"]
        found = []
        for name, wanted, result in zip(self.names, self.expected, results, strict=True):
            got = answer_of(result)
            if wanted is None and not refused(result):
                found.append(f"{name}: answered {got}, must be refused")
            elif wanted is not None and got != wanted:
                found.append(f"{name}: {got}, was {wanted} in batches of {len(self.images)}")
        return found


class Traffic:
    """Requests without end; `reference` is of every kind and image. Left out are `unreadable`
    images, and `unsteady` ones, which are answered in several ways at different batch sizes."""

    def __init__(
        self, cascade: Cascade, images: LabelledImages, progress: Progress | None = None
    ) -> None:
        """Ask for every answer once."""
        order = np.random.default_rng(SEED).permutation(len(images))[:MOST_IMAGES]
        chosen = images.select(order)
        files = [images.root / name for name in chosen.paths]
        inputs = [_inputs(file, cascade.preprocess.max_pixels) for file in files]
        readable = [found for found in inputs if found is not None]
        answers: dict[str, list[set[Answer]]] = {}
        for step, kind in enumerate(KINDS):
            if progress is not None:
                progress("reference answers", step, len(KINDS))
            each = [found.kinds[kind] for found in readable]
            answers[kind] = [set() for _ in each]
            for size in REFERENCE_BATCHES if each else ():
                for seen, result in zip(answers[kind], cascade.classify(each, size), strict=True):
                    seen.add(answer_of(result) if not refused(result) else _REFUSED)
        each_seen = [[answers[kind][row] for kind in KINDS] for row in range(len(readable))]
        refusals = [{_REFUSED} in sets for sets in each_seen]
        steady = [
            row
            for row, sets in enumerate(each_seen)
            if not refusals[row] and all(len(seen) == 1 for seen in sets)
        ]
        self.unsteady = len(readable) - sum(refusals) - len(steady)
        self.unreadable = len(files) - self.unsteady - len(steady)
        self.data_sha256 = _digest(found.name.encode() + found.data for found in readable)
        self._images = [readable[row] for row in steady]
        self.reference = {k: [next(iter(answers[k][row])) for row in steady] for k in KINDS}

    def __len__(self) -> int:
        return len(self._images)

    def reference_sha256(self) -> str:
        """Of the steady images' answers."""
        return _digest(
            f"{image.name} {[self.reference[k][row] for k in KINDS]}".encode()
            for row, image in enumerate(self._images)
        )

    def request(self, rng: np.random.Generator, corrupt: float) -> Request:
        """The next call; every image of it is damaged with probability `corrupt`."""
        size = int(rng.choice(BATCHES))
        images: list[ImageLike] = []
        names: list[str] = []
        expected: list[Answer | None] = []
        for _ in range(size):
            row, kind = int(rng.integers(len(self))), str(rng.choice(KINDS))
            image = self._images[row]
            if rng.random() < corrupt:
                fault = str(rng.choice(image.faults))
                images.append(FAULTS[fault](image.data))
                names.append(f"{image.name}, {fault}")
                expected.append(None)
            else:
                images.append(image.kinds[kind])
                names.append(f"{image.name} as {kind}")
                expected.append(self.reference[kind][row])
        return Request(tuple(images), tuple(names), tuple(expected))


def answer_of(result: Result) -> Answer:
    return result.label, result.stage, result.reason


def refused(result: Result) -> bool:
    """Whether it is the answer to an image that cannot be read."""
    return result.stage == -1 and result.decision is None and "unreadable" in result.reason


FAULTS: dict[str, Callable[[bytes], ImageLike]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"this is no picture\n" * 50,
    "missing": lambda data: "no such folder/no such image.jpg",
    "floats": lambda data: np.zeros((4, 4, 3), np.float32),
    "no pixels": lambda data: np.zeros((0, 4, 3), np.uint8),
}
"""What is injected: all of it must be refused, and nothing beside it in the batch lost. Half a file
can be a whole picture (a phone's film is behind it): only what `decode_rgb` refuses is injected.
"""


@dataclass(frozen=True)
class _Inputs:
    """One image as every kind of input, and the faults that leave nothing to be read of it."""

    name: str
    data: bytes
    kinds: dict[str, ImageLike]
    faults: list[str]


def _inputs(file: Path, max_pixels: int) -> _Inputs | None:
    try:
        data = file.read_bytes()
        array = np.asarray(decode_rgb(data, max_pixels=max_pixels))
    except (OSError, ImageError):
        return None
    kinds: dict[str, ImageLike] = {"file": str(file), "bytes": data, "array": array}
    faults = [name for name, damage in FAULTS.items() if not _readable(damage(data), max_pixels)]
    return _Inputs(printable(file.name), data, kinds, faults)


def _readable(image: ImageLike, max_pixels: int) -> bool:
    try:
        decode_rgb(image, max_pixels=max_pixels)
    except ImageError:
        return False
    return True


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())  # so that none runs into the next
    return found.hexdigest()
