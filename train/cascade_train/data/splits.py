"""The four-way split: which images train, which choose, which certify, which are kept for the end.

In: labelled images and the hash of each one's pixels. Out: a split name for each. What must stay
together stays together: images of one group, and exact duplicates; both relations at once make
components, and a component is never divided.

A certificate is only true where `val_calib` is a fair sample, so the draw must not prefer small
components for small splits (filling up to a quota, largest first or neediest first, does): every
component of several images falls into a split with a chance of just that split's fraction, and
single images then fill each class up to its quota. The file format is
`cascade_calib.splits_file`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cascade_calib.labelled import LabelledImages
from cascade_calib.splits_file import (
    SPLITS,
    Entry,
    Skipped,
    Splits,
    read_splits,
    write_splits,
)
from cascade_runtime.errors import ConfigError, DataError

__all__ = [
    "DEFAULT_FRACTIONS",
    "SPLITS",
    "Entry",
    "Skipped",
    "Splits",
    "conflicts",
    "describe",
    "make_splits",
    "read_splits",
    "write_splits",
]

DEFAULT_FRACTIONS: Mapping[str, float] = {
    "train": 0.55,
    "val_select": 0.1,
    "val_calib": 0.2,
    "val_test": 0.15,
}


def conflicts(hashes: Sequence[str], labels: Iterable[int]) -> dict[int, int]:
    """Images whose exact copy has the other label: their index, and that of one such copy.

    At least one of the labels is wrong and nothing says which, so no copy can be used.
    """
    first: dict[tuple[str, int], int] = {}
    ys = [int(y) for y in labels]
    for i, (digest, y) in enumerate(zip(hashes, ys, strict=True)):
        first.setdefault((digest, y), i)
    return {
        i: first[digest, 1 - y]
        for i, (digest, y) in enumerate(zip(hashes, ys, strict=True))
        if (digest, 1 - y) in first
    }


def make_splits(
    images: LabelledImages,
    hashes: Sequence[str],
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> list[str]:
    """Draw the split of every image, stratified by label; the same for every listing order.

    Args:
        hashes: `pixels_sha256` of each image; equal ones are exact duplicates.
        fractions: the share of each of the four splits; they add up to 1.

    Raises:
        ConfigError: `fractions` are not four positive shares of 1.
        DataError: a split would lack a class; says which, and what to do.
    """
    shares = _shares(fractions)
    labels = [int(y) for y in images.labels]
    components = _components(images.groups, hashes, labels)
    result = [""] * len(images)
    for attempt in range(_ATTEMPTS):  # few large groups may miss a small split: draw again
        for component, split in _draw(components, shares, f"{seed} {attempt}"):
            for i in component.members:
                result[i] = split
        if not (missing := _missing(result, labels)):
            return result
    raise _too_few(images, hashes, *missing[0])


@dataclass(frozen=True)
class _Component:
    """Images that must share a split: their indices, how many of each class, and a name."""

    members: list[int]
    counts: tuple[int, int]
    name: str

    @property
    def stratum(self) -> tuple[int, bool]:
        """Components alike in size and label are drawn one after the other."""
        return len(self.members).bit_length(), self.counts[1] > self.counts[0]


def _components(
    groups: Sequence[str] | None, hashes: Sequence[str], labels: Sequence[int]
) -> list[_Component]:
    """Connected components of "same group or same pixels"."""
    parent = list(range(len(hashes)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for keys in [hashes] if groups is None else [hashes, groups]:
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            parent[find(i)] = find(first.setdefault(key, i))
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(len(hashes)):
        members[find(i)].append(i)
    components = []
    for indices in members.values():
        positives = sum(labels[i] for i in indices)
        # No two components share a hash, so the smallest one is a name that no order changes.
        name = min(hashes[i] for i in indices)
        components.append(_Component(indices, (len(indices) - positives, positives), name))
    return components


def _draw(
    components: list[_Component], shares: dict[str, Fraction], seed: str
) -> Iterator[tuple[_Component, str]]:
    """One draw: several images by chance, evenly spread; single images by what is then missing."""
    drawn = sorted(components, key=lambda c: _random(f"{seed} {c.name}"))
    targets = [_targets(sum(c.counts[y] for c in drawn), shares) for y in (0, 1)]
    several = sorted((c for c in drawn if len(c.members) > 1), key=lambda c: c.stratum)
    position = _random(seed)
    for component in several:
        split = _at(position, shares)
        for y in (0, 1):
            targets[y][split] -= component.counts[y]
        yield component, split
        position = (position + _GOLDEN) % _TURN
    for y in (0, 1):
        single = [c for c in drawn if len(c.members) == 1 and c.counts[y]]
        wanted = {split: Fraction(max(0, target)) for split, target in targets[y].items()}
        places = [s for s, n in _apportion(len(single), wanted).items() for _ in range(n)]
        yield from zip(single, places, strict=True)


_ATTEMPTS = 64
_TURN = 2**64
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples spread most evenly


def _random(seed: str) -> int:
    """A number below 2^64 that depends on every letter of `seed`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])


def _at(position: int, shares: dict[str, Fraction]) -> str:
    """The split in whose stretch of the circle the position lies."""
    end = Fraction(0)
    for split in SPLITS:
        end += shares[split]
        if position < end * _TURN:
            return split
    return SPLITS[-1]


def _shares(fractions: Mapping[str, float]) -> dict[str, Fraction]:
    """The fractions as the decimals that were typed: .55 of 100 is 55 (CALIBRATION, "Bounds")."""
    if set(fractions) != set(SPLITS):
        raise ConfigError(
            f"fractions: splits are {', '.join(fractions) or 'none'}, expected {', '.join(SPLITS)}"
        )
    try:
        shares = {split: Fraction(str(fractions[split])) for split in SPLITS}
    except ValueError as error:
        raise ConfigError(f"fractions: {dict(fractions)} are not all numbers") from error
    total = sum(shares.values(), Fraction(0))
    if min(shares.values()) <= 0 or abs(total - 1) > Fraction(1, 10**6):
        raise ConfigError(
            f"fractions: {dict(fractions)} must all be above 0 and add up to 1, "
            f"they add up to {float(total):g}"
        )
    return {split: share / total for split, share in shares.items()}


def _targets(n: int, shares: dict[str, Fraction]) -> dict[str, int]:
    """How many of n images each split should have: at least 1 each where n allows."""
    targets = _apportion(n, shares)
    for split in SPLITS:
        if targets[split] == 0 and n >= len(SPLITS):
            targets[max(SPLITS, key=lambda other: targets[other])] -= 1
            targets[split] = 1
    return targets


def _apportion(n: int, weights: dict[str, Fraction]) -> dict[str, int]:
    """Whole numbers in proportion to the weights that add up to n, by largest remainder."""
    total = sum(weights.values(), Fraction(0)) or Fraction(1)
    exact = {split: n * weight / total for split, weight in weights.items()}
    counts = {split: int(value) for split, value in exact.items()}
    by_remainder = sorted(SPLITS, key=lambda split: counts[split] - exact[split])
    for split in by_remainder[: n - sum(counts.values())]:
        counts[split] += 1
    return counts


def _missing(splits: Sequence[str], labels: Sequence[int]) -> list[tuple[str, int]]:
    """The splits that lack a class, and which."""
    there = set(zip(splits, labels, strict=True))
    return [(split, y) for split in SPLITS for y in (0, 1) if (split, y) not in there]


def _too_few(images: LabelledImages, hashes: Sequence[str], split: str, y: int) -> DataError:
    of_class = [i for i in range(len(images)) if images.labels[i] == y]
    kinds = f"{len({hashes[i] for i in of_class})} different ones"
    if images.groups is not None:
        kinds += f" in {len({images.groups[i] for i in of_class})} groups"
    return DataError(
        f"{split} would have no image of class {images.classes[y]!r}: its {len(of_class)} images "
        f"are {kinds}; every split needs some: add images, make the groups smaller, or give "
        f"{split} a larger fraction"
    )


def describe(splits: Splits) -> str:
    """The sizes of the splits as a small text table, by class."""
    lines = [f"{'':12}{splits.classes[0]:>14}{splits.classes[1]:>14}"]
    for split in SPLITS:
        labels = [entry.label for entry in splits.of(split)]
        lines.append(f"{split:12}{labels.count(0):>14}{labels.count(1):>14}")
    return "\n".join(lines)
