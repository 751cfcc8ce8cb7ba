"""The batches of an epoch: the same for a seed and an epoch, whoever makes them.

In: a reader of labelled images (`readers`, `decoded`), an augmentation, the batch size. Out: pairs
(pixels uint8 [B, H, W, 3], labels int64 [B], or float32 [B, 2] where images are mixed).

Everything random in an epoch comes from one generator, seeded by (seed, epoch): first the order of
the images, then each step's augmentation. So a resumed run, another number of worker processes,
and a run in several processes all see the same images in the same form. With `world` processes or
`accumulate` parts to a step, each step's batch is cut into world * accumulate equal parts, of which
part number `micro * world + rank` is this process's: two processes do what one does in two parts.

Workers start from a fork server: a copy of this process would carry torch's threads with it, and
of a direct child's death torch tells by an exception in the midst of the training step.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cascade_runtime.errors import ConfigError, DataError
from cascade_train.augment import Augment, AugmentConfig, Draws
from cascade_train.data.readers import Reader

_AHEAD = 2  # batches that each worker keeps ready


@dataclass(frozen=True)
class Shard:
    """Which share of each step is this process's: one of `world`, in `accumulate` parts."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.world < 1 or self.accumulate < 1 or not 0 <= self.rank < self.world:
            raise ConfigError(
                f"rank {self.rank} of {self.world} processes with {self.accumulate} parts a step "
                "is no share; expected 0 <= rank < world and at least 1 part"
            )

    @property
    def parts(self) -> int:
        """Into how many parts a step's batch is cut in all."""
        return self.world * self.accumulate

    def check(self, batch_size: int) -> None:
        """Refuse a batch that does not divide into equal parts."""
        if batch_size < self.parts or batch_size % self.parts:
            raise ConfigError(
                f"batch_size is {batch_size}, which does not divide into {self.parts} equal parts "
                f"({self.world} processes, {self.accumulate} accumulated); try "
                f"{max(1, round(batch_size / self.parts)) * self.parts}"
            )


class Batches:
    """The batches of a run, epoch by epoch; `with` it, or `close` it, to end its workers.

    Args:
        batch_size: images a step, over all processes and parts. With fewer images than that, a
            step takes them all; those left over at an epoch's end are left out.
        size: height and width of what is given; default the reader's. Another one needs crops.
        workers: processes that read and augment; 0: this one does it.

    Raises:
        ConfigError: the batch does not divide into equal parts, or a size without crops.
        DataError: too few images for one to each part.
    """

    def __init__(
        self,
        reader: Reader,
        augment: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
        size: tuple[int, int] | None = None,
        shard: Shard | None = None,
        workers: int = 0,
    ) -> None:
        self.shard, images = shard or Shard(), len(reader.labels)
        parts = self.shard.parts
        self.shard.check(batch_size)
        if workers < 0:
            raise ConfigError(f"workers is {workers}, expected 0 or more")
        if images < parts:
            raise DataError(f"{images} images are too few for {parts} parts of a step")
        self._work = _Work(reader, Augment(augment), size or reader.size, seed, self.shard)
        if self._work.size != reader.size and not self._work.augment.crops:
            raise ConfigError(
                f"images of {reader.size[0]} x {reader.size[1]} cannot become {self._work.size[0]} "
                f"x {self._work.size[1]} without crops; decode them to that size"
            )
        self._work.batch = min(batch_size, images // parts * parts)
        self.steps = self._work.steps = max(1, images // batch_size)
        self.images = self.steps * self._work.batch
        self._tasks = _Tasks(self.steps * self.shard.accumulate)
        self._loader: DataLoader[Any] | None = None
        if workers:
            reader.share()
            self._loader = _loader(self._work, self._tasks, workers)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of an epoch in order: `accumulate` of them for each of `steps` steps.

        Raises:
            DataError: an image can no longer be read, or a worker process has ended.
        """
        self._tasks.epoch = epoch
        made = self._made_here() if self._loader is None else self._made_by(self._loader)
        for item in made:
            if isinstance(item, _Failure):
                raise DataError(item.message)
            yield item

    def _made_here(self) -> Iterator[_Item]:
        return (self._work[task] for task in self._tasks)

    def _made_by(self, loader: DataLoader[Any]) -> Iterator[_Item]:
        try:
            yield from loader
        except (RuntimeError, OSError, EOFError) as error:
            # What the work itself meets comes as a `_Failure`, or is a bug with its own traceback;
            # a connection that breaks is a worker that died while it handed something over.
            broken = isinstance(error, (ConnectionError, EOFError))
            if not broken and ("worker" not in str(error) or "Caught" in str(error)):
                raise
            self.close()
            raise DataError(
                f"a worker process of the data loader ended ({_first_line(error)}). Often memory "
                "or shared memory (/dev/shm) ran out: use fewer workers, and resume"
            ) from error

    def close(self) -> None:
        """End the worker processes."""
        iterator = None if self._loader is None else self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None  # type: ignore[union-attr]

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Failure:
    """An error as a worker hands it over: an exception would come with two tracebacks."""

    message: str


_Task = tuple[int, int]  # epoch, and the number of the part among this process's
_Item = tuple[Tensor, Tensor] | _Failure


class _Tasks(Sampler[_Task]):
    """What is to be made in an epoch; the same object serves all epochs."""

    def __init__(self, parts: int) -> None:
        self.epoch, self.parts = 0, parts

    def __iter__(self) -> Iterator[_Task]:
        return ((self.epoch, number) for number in range(self.parts))

    def __len__(self) -> int:
        return self.parts


class _Work(Dataset[Any]):
    """Makes any part of any epoch; each process has one, and asks it in rising order."""

    def __init__(
        self, reader: Reader, augment: Augment, size: tuple[int, int], seed: int, shard: Shard
    ) -> None:
        self.reader, self.augment, self.size = reader, augment, size
        self.seed, self.shard = seed, shard
        self.batch = self.steps = 0
        self._epoch, self._next = -1, 0
        self._plan: Iterator[tuple[Tensor, Draws | None]] = iter(())

    def __getitem__(self, task: _Task) -> _Item:
        epoch, number = task
        if epoch != self._epoch or number < self._next:
            self._epoch, self._next, self._plan = epoch, 0, self._planned(epoch)
        try:
            while True:  # parts that other workers make are drawn and passed over
                rows, draws = next(self._plan)
                self._next += 1
                if self._next > number:
                    return self._made(rows, draws)
        except DataError as error:
            return _Failure(str(error))

    def _planned(self, epoch: int) -> Iterator[tuple[Tensor, Draws | None]]:
        """The images and settings of this process's parts, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.reader.labels), generator=generator)
        length = self.batch // self.shard.parts
        for step in range(self.steps):
            draws = None
            if self.augment.per_batch:
                draws = self.augment.draw(self.batch, self.reader.size, generator)
            for micro in range(self.shard.accumulate):
                first = (micro * self.shard.world + self.shard.rank) * length
                part = slice(first, first + length)
                rows = order[step * self.batch : (step + 1) * self.batch][part]
                yield rows, None if draws is None else draws.part(part)

    def _made(self, rows: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        pixels, labels = self.reader.read(rows.numpy()), self.reader.labels[rows]
        if self.augment.per_image:
            changed = (
                self.augment.image(image, (self.seed, self._epoch, row))
                for image, row in zip(pixels.numpy(), rows.tolist(), strict=True)
            )
            pixels = torch.from_numpy(np.stack(list(changed)))
        if draws is not None:
            pixels = self.augment.apply(pixels, draws, self.size)
            if self.augment.mixes:
                return self.augment.mix(pixels, labels, draws)
        return pixels, labels


def _loader(work: _Work, tasks: _Tasks, workers: int) -> DataLoader[Any]:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload([__name__])  # so that torch is imported once
    return DataLoader(
        work,
        sampler=tasks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        persistent_workers=True,
        generator=torch.Generator(),  # else each epoch draws from the global one, as dropout does
        multiprocessing_context=context,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
