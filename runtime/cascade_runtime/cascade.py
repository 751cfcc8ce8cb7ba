"""Open a certified bundle and classify images: the runtime in one class.

In: a bundle, and images as paths, file bytes or arrays. Out: one `Result` an image, deferred ones
included, in the order given. One bad image fails alone.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cascade_runtime import engines
from cascade_runtime.bundle import GOLDEN, Bundle
from cascade_runtime.decision import Reason, Verdict
from cascade_runtime.engines.processor import usable_cores
from cascade_runtime.errors import ConfigError, ImageError, TargetError
from cascade_runtime.golden import load_golden
from cascade_runtime.golden import self_test as run_golden
from cascade_runtime.manifest import Certificate, Decision, Manifest, Preprocess
from cascade_runtime.preprocess import ImageLike, Pixels, load_image, printable
from cascade_runtime.signature import KeyFile
from cascade_runtime.stages import Stages, load_stages

# Images that are decoded before they are run, at least and at most, and the bytes of pixels that
# decide between: an exit leaves few of a small batch, and engines are slow at few.
GATHERED, MOST_GATHERED, GATHERED_BYTES = 32, 128, 2 << 20
REASONS = {
    Reason.ACTED: "acted",
    Reason.BELOW_THRESHOLD: "below threshold",
    Reason.AMBIGUOUS: "ambiguous",
    Reason.EMPTY: "empty set",
    Reason.NOT_FINITE: "not finite",
    Reason.NOT_ACCEPTED: "not accepted",
}


@dataclass(frozen=True)
class Result:
    """What the cascade says of one image; `decision` is None where it defers."""

    name: str  # the path, or "image 3" for bytes and arrays
    decision: str | None  # the class acted on
    label: int  # its index, -1 when deferred
    set: tuple[str, ...]  # the prediction set of the exit that was final
    p: float  # probability of the second class there
    score: float  # the exit score there, 0..1, higher is more trusted
    stage: int  # the exit that was final; -1 when the image could not be read
    reason: str  # "acted", or why it was deferred

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; a float that JSON has no word for becomes None."""
        values = asdict(self)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }


class Cascade:
    """A bundle on one of its targets, ready to answer; threads may share it.

    Attributes:
        target, why: the target in use, and a sentence on why it is that one.
        manifest, certificate, decision, preprocess: what the bundle says, of this target.
        stages: the engines, for whoever measures or certifies them.
    """

    def __init__(self, bundle: Bundle, target: str, why: str, threads: int | None = None) -> None:
        self.bundle = bundle
        self.target = target
        self.why = why
        self.threads = threads
        self.stages: Stages = load_stages(bundle.manifest, target, bundle.read, threads)
        self._lock = threading.Lock()
        self._calls = 0

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        target: str = "auto",
        *,
        public_key: KeyFile | None = None,
        threads: int | None = None,
        self_test: bool = False,
        warm_up: bool = True,
        engine: Literal["python", "native"] = "python",
    ) -> Cascade:
        """Verify a bundle, choose a target, load its engines.

        Args:
            target: a name of the manifest, or "auto": the fastest certified one that can run here.
            public_key: a file with the public key of who must have signed the bundle; see
                `Bundle.open`.
            threads: CPU threads of an engine and of image decoding; None takes every core.
            self_test: also run the golden vectors, and refuse a machine that answers otherwise.
            warm_up: run every batch size once, so that first answers are as quick as later ones.
            engine: "native": libcascade answers (`cascade_runtime.native`), which must be built.

        Raises:
            BundleError: damaged, foreign, or not what was certified.
            TargetError: the target, or every target, cannot run here.
        """
        if engine == "native":
            from cascade_runtime.native import NativeCascade

            return NativeCascade(
                path,
                target,
                public_key=public_key,
                threads=threads,
                self_test=self_test,
                warm_up=warm_up,
            )
        if engine != "python":
            raise ConfigError(f"engine is {engine!r}, must be 'python' or 'native'")
        bundle = Bundle.open(path, public_key=public_key)
        name, why = choose_target(bundle.manifest, target)
        cascade = cls(bundle, name, why, threads)
        if self_test:
            golden = load_golden(bundle.read(GOLDEN), bundle.manifest.preprocess)
            run_golden(cascade.stages, cascade.decision, golden, name)
        if warm_up:
            cascade.stages.warm_up(cascade.preprocess.height, cascade.preprocess.width)
        return cascade

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def decision(self) -> Decision:
        return self.manifest.decision[self.target]

    @property
    def certificate(self) -> Certificate:
        return self.manifest.certificates[self.target]

    @property
    def preprocess(self) -> Preprocess:
        return self.manifest.preprocess

    @property
    def workers(self) -> int:
        """How many threads that is: `threads`, or one a core."""
        return self.threads or len(usable_cores())

    @property
    def gathered(self) -> int:
        """How many images are decoded before they are run: more where they are small."""
        size = self.preprocess.height * self.preprocess.width * 3
        return max(GATHERED, min(MOST_GATHERED, GATHERED_BYTES // size))

    def classify(self, images: Iterable[ImageLike], batch_size: int = 32) -> list[Result]:
        """Decide a list of images.

        Args:
            images: paths, file bytes, or uint8 [H, W], [H, W, 3] or [H, W, 4] arrays, mixed freely.
            batch_size: how many go through an engine together, 32 at most; `gathered` of them are
                decoded ahead, by each thread.

        Where there is an image for every thread, from one call or from several at once, each takes
        batches of its own from files to results (docs/decisions/0017); answers are the same.

        Raises:
            TypeError: one image was passed instead of a list.
        """
        everything = as_list(images, batch_size)
        threads = self.workers
        with self._call() as calls:
            stages: Stages | None = self.stages
            if threads > 1:
                enough = max(len(everything), calls) >= threads
                stages = self.stages.side_by_side() if enough else None
            if stages is None:
                return self._in_turn(everything, self.stages.up_to(batch_size))
            size = self.gathered
            if threads > 1:
                size = share_of(len(everything), threads, size)
            return self._side_by_side(everything, size, stages.up_to(batch_size))

    def _in_turn(self, images: Sequence[ImageLike], stages: Stages) -> list[Result]:
        """One batch after the other, decoded by all threads and then run by all."""
        results: list[Result] = []
        with ThreadPoolExecutor(self.workers) as pool:
            for names, batch in _batches(images, self.gathered):
                loaded = self._load_all(batch, names, pool)
                results += self._decide(names, loaded, stages)
        return results

    def _side_by_side(self, images: Sequence[ImageLike], size: int, stages: Stages) -> list[Result]:
        """Each thread takes `size` images at a time from files to results."""

        def decide(named: tuple[list[str], Sequence[ImageLike]]) -> list[Result]:
            names, batch = named
            return self._decide(names, list(map(self._load, batch, names)), stages)

        batches = list(_batches(images, size))
        if len(batches) == 1:
            return decide(batches[0])
        with ThreadPoolExecutor(self.workers) as pool:
            return [result for results in pool.map(decide, batches) for result in results]

    @contextmanager
    def _call(self) -> Iterator[int]:
        """A call of `classify`: how many there are now, with this one."""
        with self._lock:
            self._calls += 1
            calls = self._calls
        try:
            yield calls
        finally:
            with self._lock:
                self._calls -= 1

    def _load_all(
        self, images: Sequence[ImageLike], names: Sequence[str], pool: ThreadPoolExecutor
    ) -> list[Pixels | ImageError]:
        """Decode a batch: Pillow does so outside the interpreter lock, so threads share it.

        Each takes every n-th image at one go: handing the lock around costs as much as decoding
        a small one (docs/decisions/0014).
        """
        threads = min(self.workers, len(images))
        if threads == 1:
            return list(map(self._load, images, names))

        def part(start: int) -> list[Pixels | ImageError]:
            return list(map(self._load, images[start::threads], names[start::threads]))

        loaded: list[Pixels | ImageError] = [ImageError("")] * len(images)
        for start, done in enumerate(pool.map(part, range(threads))):
            loaded[start::threads] = done
        return loaded

    def _load(self, image: ImageLike, name: str) -> Pixels | ImageError:
        try:
            return load_image(image, self.preprocess, printable(name))
        except ImageError as error:
            return error

    def _decide(
        self, names: Sequence[str], loaded: Sequence[Pixels | ImageError], stages: Stages
    ) -> list[Result]:
        readable = [row for row, x in enumerate(loaded) if isinstance(x, np.ndarray)]
        decided: Iterator[Result] = iter(())
        if readable:
            pixels = np.stack([x for x in loaded if isinstance(x, np.ndarray)])
            verdict = stages.forward(pixels, self.decision)
            decided = self._results([names[row] for row in readable], verdict)
        return [
            unreadable(name, x) if isinstance(x, ImageError) else next(decided)
            for name, x in zip(names, loaded, strict=True)
        ]

    def _results(self, names: Sequence[str], verdict: Verdict) -> Iterator[Result]:
        classes = self.manifest.model.classes
        sets = {(False, False): (), (True, False): classes[:1], (False, True): classes[1:]}
        # SCRC promises something of the sets of accepted images; another image has none.
        promised = verdict.in_set
        if self.decision.accept is not None:
            promised = promised & verdict.accepted[:, None]
        columns = (verdict.label, promised, verdict.margin, verdict.score_logit)
        plain = (x.tolist() for x in (*columns, verdict.stage, verdict.reason))
        for name, label, members, margin, score, stage, reason in zip(names, *plain, strict=True):
            yield Result(
                name=name,
                decision=classes[label] if label >= 0 else None,
                label=label,
                set=sets.get(tuple(members), classes),
                p=sigmoid(margin),
                score=sigmoid(score),
                stage=stage,
                reason=REASONS[reason],
            )


def as_list(images: Iterable[ImageLike], batch_size: int) -> list[ImageLike]:
    """What `classify` was given, as a list.

    Raises:
        TypeError: one image was passed instead of a list.
    """
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError(f"images is one {type(images).__name__}; pass a list, [image]")
    if isinstance(images, np.ndarray) and images.ndim < 4:
        raise TypeError(f"images is one array {images.shape}; pass a list, [image]")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1")
    return list(images)


def _batches(
    images: Sequence[ImageLike], size: int
) -> Iterator[tuple[list[str], Sequence[ImageLike]]]:
    """Names and images, at most `size` at a time."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield [name_of(image, start + index) for index, image in enumerate(batch)], batch


def share_of(images: int, threads: int, most: int) -> int:
    """How many a thread takes at a time, `most` at most, so that all take equally many."""
    turns = -(-images // (threads * most))
    return max(1, -(-images // (threads * max(1, turns))))


def choose_target(manifest: Manifest, wanted: str = "auto") -> tuple[str, str]:
    """The target to run and a sentence on why, naming the ones passed over.

    Raises:
        TargetError: `wanted` is not in the bundle, or it, or every target, cannot run here.
    """
    if wanted != "auto":
        if wanted not in manifest.targets:
            known = ", ".join(manifest.targets)
            raise TargetError(f"target {wanted!r} is not in this bundle, which has: {known}")
        reason = engines.unavailable(manifest.targets[wanted])
        if reason is not None:
            raise TargetError(f"target {wanted!r} cannot run here: {reason}")
        return wanted, f"{wanted} was asked for"
    by_speed = sorted(manifest.targets, key=lambda name: -manifest.targets[name].images_per_s)
    reasons = {name: engines.unavailable(manifest.targets[name]) for name in by_speed}
    skipped = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    runnable = [name for name in by_speed if reasons[name] is None]
    if not runnable:
        raise TargetError(f"no target of this bundle can run here: {skipped}")
    certified = [n for n in runnable if manifest.certificates[n].status == "CERTIFIED"]
    best = (certified or runnable)[0]  # the others defer every image
    kind = "certified one " if 0 < len(certified) < len(runnable) else ""
    speed = manifest.targets[best].images_per_s
    why = f"{best} is the fastest {kind}that can run here ({rate(speed)} when built)"
    return best, f"{why}; skipped {skipped}" if skipped else why


def rate(per_second: float) -> str:
    """Images a second, for people: a large network answers less than one."""
    return f"{per_second:.{0 if per_second >= 10 else 2}f} images/s"


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x) without overflow; NaN stays NaN."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    power = math.exp(x)
    return power / (1.0 + power)


def name_of(image: ImageLike, index: int) -> str:
    """What a result calls its image."""
    if isinstance(image, bytes | np.ndarray):
        return f"image {index}"
    return os.fspath(image)


def unreadable(name: str, error: ImageError) -> Result:
    """The result of an image that could not be read."""
    reason = "unreadable: " + str(error).removeprefix(f"{printable(name)}: ")
    return Result(name, None, -1, (), math.nan, math.nan, -1, reason)
