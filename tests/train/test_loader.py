"""Batches are the same for a seed and an epoch, whoever makes them; a failure is said once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade_calib import labelled
from cascade_calib.labelled import Loaded
from cascade_runtime.errors import ConfigError, DataError
from cascade_runtime.manifest import Preprocess
from cascade_train.augment import Augment, AugmentConfig, decode_spec
from cascade_train.data import load_split_pixels, prepare
from cascade_train.data.decoded import Decoded, decoded_split
from cascade_train.data.loader import Batches, Shard
from cascade_train.data.readers import Files, Memory, Reader, split_files

Pair = tuple[Tensor, Tensor]
STRONG = AugmentConfig(policy="strong")
NONE = AugmentConfig(policy="none")
SPEC = Preprocess(height=24, width=24)


def numbered(n: int, side: int = 16) -> Loaded:
    """`n` images that are told apart by any pixel: image i is all i, of class i % 2."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, side, side, 3))
    labels = (np.arange(n) % 2).astype(np.int8)
    return Loaded(np.ascontiguousarray(pixels), labels, tuple(map(str, range(n))), None)


def taken(
    reader: Reader, config: AugmentConfig = NONE, epoch: int = 0, **more: object
) -> list[Pair]:
    """One epoch, whole."""
    settings: dict[str, object] = {"batch_size": 16, "seed": 3} | more
    with Batches(reader, config, **settings) as batches:  # type: ignore[arg-type]
        return list(batches.epoch(epoch))


def same(first: list[Pair], second: list[Pair]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) and torch.equal(x, y)
        for (a, x), (b, y) in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, square_folder: Path) -> Path:
    """A run folder with the splits.json of 240 images of 32 x 32; 132 train."""
    out = tmp_path_factory.mktemp("split") / "run"
    prepare(str(square_folder), out, SPEC)
    return out


@pytest.fixture
def own_split(tmp_path: Path) -> Path:
    """As `split`, of 24 images that a test may damage."""
    rng = np.random.default_rng(0)
    for name in ("no", "yes"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            image = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / name / f"{i}.png")
    prepare(str(tmp_path / "data"), tmp_path / "run", SPEC)
    return tmp_path / "run"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are decoded into memory or a cache from now on."""
    seen: list[str] = []
    real = labelled.decode_for

    def counted(image: str, spec: Preprocess, name: str | None = None) -> Image.Image:
        seen.append(image)
        return real(image, spec, name)

    monkeypatch.setattr(labelled, "decode_for", counted)
    return seen


def train_file(run: Path) -> Path:
    """The first training image's file."""
    images = labelled.read_labelled(run / "splits.json", split="train")
    return images.file(0)


# Order and augmentation


@pytest.mark.parametrize("augmented", [True, False])
def test_memory_and_light_are_the_loop_written_out(
    augmented: bool, squares: Callable[..., Loaded]
) -> None:
    data, size, seed = squares(50), 16, 7
    batches = Batches(
        Memory(data), AugmentConfig(policy="light" if augmented else "none"), batch_size=16, seed=7
    )
    pixels, labels = torch.from_numpy(data.pixels), torch.from_numpy(data.labels.astype(np.int64))
    for epoch in (0, 4):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(labels), generator=generator)
        steps = max(1, len(labels) // size)
        expected = []
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            batch = pixels[rows]
            expected.append((Augment()(batch, generator) if augmented else batch, labels[rows]))
        assert same(list(batches.epoch(epoch)), expected)


def test_every_image_comes_once_an_epoch_in_another_order_each_time() -> None:
    batches = Batches(Memory(numbered(48)), NONE, batch_size=16, seed=0)
    epochs = [[p[:, 0, 0, 0] for p, _ in batches.epoch(epoch)] for epoch in range(2)]
    for rows in epochs:
        assert sorted(torch.cat(rows).tolist()) == list(range(48))
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    for pixels, labels in batches.epoch(2):
        assert torch.equal(pixels[:, 0, 0, 0].long() % 2, labels)


def test_an_epoch_does_not_depend_on_the_ones_before_it() -> None:
    batches = Batches(Memory(numbered(40)), STRONG, batch_size=16, seed=3)
    list(batches.epoch(0))
    next(batches.epoch(2))  # given up halfway
    assert same(list(batches.epoch(2)), taken(Memory(numbered(40)), STRONG, 2))


def test_fewer_images_than_a_batch_make_one_step_of_all() -> None:
    batches = Batches(Memory(numbered(10)), NONE, batch_size=16, seed=0)
    assert (batches.steps, batches.images) == (1, 10)
    assert [len(p) for p, _ in batches.epoch(0)] == [10]


def test_mixed_images_come_with_soft_labels() -> None:
    config = AugmentConfig(policy="none", mixup=0.4)
    for pixels, labels in taken(Memory(numbered(32)), config):
        assert pixels.dtype == torch.uint8
        assert (labels.dtype, tuple(labels.shape)) == (torch.float32, (16, 2))
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(16))


# Several processes and parts


@pytest.mark.parametrize("config", [STRONG, AugmentConfig(policy="randaugment", mixup=0.3)])
def test_two_processes_do_what_one_does_in_two_parts(config: AugmentConfig) -> None:
    reader = Memory(numbered(53))
    parts = taken(reader, config, shard=Shard(accumulate=2))
    ranks = [taken(reader, config, shard=Shard(rank=r, world=2)) for r in range(2)]
    assert [len(parts), *map(len, ranks)] == [6, 3, 3]
    assert same(parts, [pair for pairs in zip(*ranks, strict=True) for pair in pairs])


def test_the_parts_of_a_step_are_the_batch_of_one_process() -> None:
    reader = Memory(numbered(53))
    whole = taken(reader, STRONG)
    ranks = [taken(reader, STRONG, shard=Shard(rank=r, world=2, accumulate=2)) for r in range(2)]
    for step, (pixels, labels) in enumerate(whole):
        parts = [ranks[r][2 * step + micro] for micro in range(2) for r in range(2)]
        assert torch.equal(torch.cat([p for p, _ in parts]), pixels)
        assert torch.equal(torch.cat([y for _, y in parts]), labels)


def test_every_process_has_the_same_number_of_equal_steps() -> None:
    for n in (3, 9, 16, 17, 41):
        sizes = {
            tuple(len(p) for p, _ in taken(Memory(numbered(n)), shard=Shard(rank=r, world=2)))
            for r in range(2)
        }
        assert len(sizes) == 1 and len(set(*sizes)) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": Shard(world=3)}, "batch_size is 16, which does not divide into 3 equal parts"),
        ({"batch_size": 2, "shard": Shard(world=2, accumulate=2)}, "try 4"),
        ({"workers": -1}, "workers is -1"),
        ({"size": (8, 8)}, "16 x 16 cannot become 8 x 8 without crops"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        taken(Memory(numbered(20)), **settings)


def test_a_share_that_is_none_and_too_few_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="rank 2 of 2 processes"):
        Shard(rank=2, world=2)
    with pytest.raises(DataError, match="1 images are too few for 2 parts"):
        taken(Memory(numbered(1)), shard=Shard(world=2))


# Worker processes


@pytest.fixture(scope="module")
def worked(split: Path) -> Iterator[Batches]:
    """Batches of files, made by two workers with everything that augmentation can do."""
    config = AugmentConfig(policy="strong", randaugment=2, mixup=0.3)
    reader = split_files(split, "train", decode_spec(SPEC, config))
    with Batches(reader, config, batch_size=16, seed=3, size=(24, 24), workers=2) as batches:
        yield batches


def test_workers_make_the_same_batches_as_none(worked: Batches, split: Path) -> None:
    config = AugmentConfig(policy="strong", randaugment=2, mixup=0.3)
    reader = split_files(split, "train", decode_spec(SPEC, config))
    alone = Batches(reader, config, batch_size=16, seed=3, size=(24, 24))
    before = torch.random.get_rng_state()
    assert worked.steps == 132 // 16
    for epoch in (0, 1):
        assert same(list(worked.epoch(epoch)), list(alone.epoch(epoch)))
    next(worked.epoch(1))  # given up halfway
    assert same(list(worked.epoch(1)), list(alone.epoch(1)))
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout draws from there


def test_workers_take_from_memory_and_from_the_cache(split: Path, tmp_path: Path) -> None:
    loaded = load_split_pixels(split, "train", SPEC)
    cached = decoded_split(split, "train", SPEC, cache=tmp_path)
    expected = taken(Memory(loaded), AugmentConfig())
    assert same(taken(Memory(loaded), AugmentConfig(), workers=1), expected)
    assert same(taken(cached, AugmentConfig(), workers=1), expected)


def test_a_worker_that_is_killed_ends_in_one_clear_message(worked: Batches) -> None:
    batches = worked.epoch(0)
    next(batches)
    pids = {child.pid for child in multiprocessing.active_children()}
    for worker in worked._loader._iterator._workers:  # type: ignore[union-attr]
        assert worker.pid in pids
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match="a worker process of the data loader ended") as caught:
        list(batches)
    assert "\n" not in str(caught.value) and "fewer workers" in str(caught.value)
    assert len(list(worked.epoch(0))) == worked.steps  # new ones take their place


# Files that changed since the split


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_any_more_is_named(own_split: Path, workers: int) -> None:
    reader = split_files(own_split, "train", SPEC)
    file = train_file(own_split)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        taken(reader, batch_size=4, workers=workers)
    assert str(file) in str(caught.value) and "bring it back" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_other_pixels_is_named(own_split: Path) -> None:
    reader = split_files(own_split, "train", SPEC)
    file = train_file(own_split)
    Image.new("RGB", (32, 32)).save(file)
    with pytest.raises(DataError, match=f"{file.name}: has other pixels than when it was split"):
        taken(reader, batch_size=4)


def test_many_bad_files_are_counted_and_the_first_are_named(own_split: Path) -> None:
    reader = split_files(own_split, "train", SPEC)
    for file in (own_split.parent / "data").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"\(and 5 more\)") as caught:
        taken(reader, batch_size=8)
    assert str(caught.value).count(".png") == 3


def test_files_give_the_pixels_that_every_other_reader_gives(split: Path, tmp_path: Path) -> None:
    loaded = load_split_pixels(split, "train", SPEC)
    rows = np.array([5, 0, 131])
    cached = decoded_split(split, "train", SPEC, cache=tmp_path)
    for reader in (Memory(loaded), split_files(split, "train", SPEC), cached):
        assert reader.size == (24, 24)
        assert reader.labels.tolist() == loaded.labels.tolist()
        assert np.array_equal(reader.read(rows).numpy(), loaded.pixels[rows])


# The cached decode


def whole(reader: Decoded) -> bytes:
    return reader.read(np.arange(len(reader.labels))).numpy().tobytes()


def test_the_cache_is_decoded_once(own_split: Path, tmp_path: Path, decodes: list[str]) -> None:
    first = decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    once = len(decodes)
    second = decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    assert once == len(decodes) == len(first.labels)
    assert whole(first) == whole(second)
    assert first.names == second.names
    assert [p.name for p in (tmp_path / "c").iterdir()] == [first.folder.name]


def test_another_size_split_or_labelling_is_another_cache(own_split: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"  # the same images and seed, the classes the other way round
    prepare(str(tmp_path / "data"), other, SPEC, positive="no")
    caches = [
        decoded_split(own_split, "train", SPEC, cache=tmp_path / "c"),
        decoded_split(own_split, "train", Preprocess(height=30, width=30), cache=tmp_path / "c"),
        decoded_split(own_split, "val_test", SPEC, cache=tmp_path / "c"),
        decoded_split(other, "train", SPEC, cache=tmp_path / "c"),
    ]
    assert len({cache.folder for cache in caches}) == 4
    for cache, run in zip(caches, (own_split, own_split, own_split, other), strict=True):
        assert cache.labels.tolist() == [
            int((run == own_split) == ("yes/" in name)) for name in cache.names
        ]


@pytest.mark.parametrize(
    "damage", ["a bit", "cut off", "no index", "index", "empty", "other shape"]
)
def test_a_damaged_cache_is_made_again(
    damage: str, own_split: Path, tmp_path: Path, decodes: list[str]
) -> None:
    before = decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    expected, count = whole(before), len(decodes)
    pixels, index = before.folder / "pixels.npy", before.folder / "index.json"
    if damage == "a bit":
        data = bytearray(pixels.read_bytes())
        data[-100] ^= 1
        pixels.write_bytes(data)
    elif damage == "cut off":
        pixels.write_bytes(pixels.read_bytes()[:-100])
    elif damage == "no index":
        index.unlink()
    elif damage == "index":
        index.write_bytes(index.read_bytes()[:-100])
    elif damage == "empty":
        pixels.write_bytes(b"")
    else:
        np.save(pixels, np.load(pixels)[:-1])
    after = decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    assert whole(after) == expected
    assert len(decodes) == 2 * count
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_a_full_disk_gives_one_error_and_leaves_nothing(own_split: Path, tmp_path: Path) -> None:
    """No file may grow beyond 8 KiB: the real system call fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "c") in str(caught.value)
    assert "CASCADE_EDGE_CACHE" in str(caught.value) and "GiB are free" in str(caught.value)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(own_split: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{tmp_path}/file/c: the decoded images cannot"):
        decoded_split(own_split, "train", SPEC, cache=tmp_path / "file" / "c")


def test_images_that_changed_since_the_split_are_never_cached(
    own_split: Path, tmp_path: Path
) -> None:
    file = train_file(own_split)
    Image.new("RGB", (32, 32)).save(file)
    with pytest.raises(DataError, match=f"1 of .* images of train .*{file.name}"):
        decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_what_a_killed_build_left_is_swept_when_it_is_old(own_split: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "c" / ".decoded-old", tmp_path / "c" / ".decoded-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "pixels.npy").touch()
    for path in (old / "pixels.npy", old):
        os.utime(path, (0, 0))
    decoded_split(own_split, "train", SPEC, cache=tmp_path / "c")
    assert not old.exists() and new.exists()


def test_hashes_of_another_number_are_refused(split: Path) -> None:
    images = labelled.read_labelled(split / "splits.json", split="train")
    with pytest.raises(DataError, match="132 images and 1 hashes"):
        Files(images, SPEC, ["x"])
