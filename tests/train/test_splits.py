"""The four-way split: what must hold for every set of images."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_calib.labelled import LabelledImages
from cascade_runtime.errors import ConfigError, DataError
from cascade_train.data.splits import DEFAULT_FRACTIONS, SPLITS, conflicts, make_splits


def images_of(labels: list[int], groups: list[str] | None = None) -> LabelledImages:
    return LabelledImages(
        root=Path(),
        paths=tuple(f"{i}.png" for i in range(len(labels))),
        labels=np.array(labels, dtype=np.int8),
        groups=None if groups is None else tuple(groups),
        classes=("car", "truck"),
    )


def counts(labels: list[int], splits: list[str]) -> dict[tuple[str, int], int]:
    return Counter(zip(splits, labels, strict=True))


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[int], list[str], list[str] | None]:
    """Labels, hashes with duplicates, and perhaps groups that cut across the duplicates."""
    n = draw(st.integers(60, 160))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    share = draw(st.sampled_from([0.3, 0.5, 0.7]))
    kinds = draw(st.integers(n // 2, 2 * n))
    labels = (rng.random(n) < share).astype(int).tolist()
    hashes = [f"hash {k}" for k in rng.integers(0, kinds, n)]
    groups = None
    if draw(st.booleans()):
        groups = [f"group {g}" for g in rng.integers(0, draw(st.integers(n, 5 * n)), n)]
    return labels, hashes, groups


@settings(max_examples=60)
@given(data_sets(), st.integers(0, 99))
def test_nothing_that_belongs_together_is_divided(
    data: tuple[list[int], list[str], list[str] | None], seed: int
) -> None:
    labels, hashes, groups = data
    try:
        splits = make_splits(images_of(labels, groups), hashes, seed=seed)
    except DataError as error:
        assert "would have no image of class" in str(error)
        return
    assert len(splits) == len(labels)
    assert set(splits) == set(SPLITS)
    for keys in [hashes] if groups is None else [hashes, groups]:
        where = defaultdict(set)
        for key, split in zip(keys, splits, strict=True):
            where[key].add(split)
        assert all(len(found) == 1 for found in where.values())
    assert all(counts(labels, splits)[split, y] for split in SPLITS for y in (0, 1))


@settings(max_examples=40)
@given(data_sets(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(
    data: tuple[list[int], list[str], list[str] | None], seed: int, random: object
) -> None:
    labels, hashes, groups = data
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = images_of([labels[i] for i in order], groups and [groups[i] for i in order])
    try:
        splits = make_splits(images_of(labels, groups), hashes, seed=seed)
    except DataError:
        with pytest.raises(DataError):
            make_splits(shuffled, [hashes[i] for i in order], seed=seed)
        return
    assert make_splits(shuffled, [hashes[i] for i in order], seed=seed) == [
        splits[i] for i in order
    ]


@settings(max_examples=40)
@given(st.integers(20, 300), st.integers(20, 300), st.integers(0, 99))
def test_single_images_meet_the_fractions_exactly(n0: int, n1: int, seed: int) -> None:
    labels = [0] * n0 + [1] * n1
    splits = make_splits(images_of(labels), [str(i) for i in range(n0 + n1)], seed=seed)
    found = counts(labels, splits)
    for split, share in DEFAULT_FRACTIONS.items():
        for y, n in ((0, n0), (1, n1)):
            assert abs(found[split, y] - share * n) < 1 + 1e-9


def test_fractions_are_read_as_decimals() -> None:
    """In floats .55 of 100 is 55.00000000000001, and .07 of 100 is 7.000000000000001."""
    labels = [0] * 100 + [1] * 100
    fractions = {"train": 0.55, "val_select": 0.07, "val_calib": 0.28, "val_test": 0.1}
    splits = make_splits(images_of(labels), [str(i) for i in range(200)], fractions=fractions)
    assert counts(labels, splits) == {
        (split, y): round(100 * share) for split, share in fractions.items() for y in (0, 1)
    }


def test_groups_come_close_to_the_fractions() -> None:
    rng = np.random.default_rng(1)
    groups = [f"video {g}" for g in range(200) for _ in range(int(rng.integers(1, 12)))]
    labels = [int(rng.random() < 0.4) for _ in groups]
    for seed in range(10):
        splits = make_splits(
            images_of(labels, groups), [str(i) for i in range(len(labels))], seed=seed
        )
        for split, share in DEFAULT_FRACTIONS.items():
            assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.03)
            for y in (0, 1):
                found = counts(labels, splits)[split, y] / labels.count(y)
                assert found == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("mixed", [True, False])
def test_large_groups_are_as_likely_in_every_split_as_its_fraction(mixed: bool) -> None:
    """A split that small groups fill up is no fair sample, and nothing on it would be proven."""
    groups = [f"big {g}" for g in range(40) for _ in range(10)] + [f"small {g}" for g in range(400)]
    labels = [(i if mixed else i // 10) % 2 for i in range(len(groups))]
    hashes = [str(i) for i in range(800)]
    big = Counter[str]()
    for seed in range(50):
        splits = make_splits(images_of(labels, groups), hashes, seed=seed)
        big.update(s for s, g in zip(splits, groups, strict=True) if g.startswith("big"))
    for split, share in DEFAULT_FRACTIONS.items():
        assert big[split] / big.total() == pytest.approx(share, abs=0.02)


def test_one_large_group_is_not_always_in_the_same_split() -> None:
    labels = [i % 2 for i in range(200)]
    groups = ["big"] * 10 + [f"small {i}" for i in range(190)]
    where = Counter(
        make_splits(images_of(labels, groups), [str(i) for i in range(200)], seed=seed)[0]
        for seed in range(200)
    )
    for split, share in DEFAULT_FRACTIONS.items():
        assert where[split] / 200 == pytest.approx(share, abs=0.11)  # three standard errors


def test_eight_groups_reach_all_four_splits() -> None:
    groups = [f"site {i // 10}" for i in range(80)]
    for seed in range(10):
        splits = make_splits(
            images_of([i % 2 for i in range(80)], groups), [str(i) for i in range(80)], seed=seed
        )
        assert set(splits) == set(SPLITS)


def test_duplicates_join_groups() -> None:
    """a-b share a group, b-c their pixels: a and c stay together through b."""
    filler = 200
    groups = ["g", "g", "h", *(f"own {i}" for i in range(filler))]
    hashes = ["a", "b", "b", *(str(i) for i in range(filler))]
    labels = [0, 0, 0, *(i % 2 for i in range(filler))]
    where = set()
    for seed in range(12):
        splits = make_splits(images_of(labels, groups), hashes, seed=seed)
        assert len(set(splits[:3])) == 1
        where.add(splits[0])
    assert len(where) > 1


def test_the_seed_draws_another_split_and_the_same_seed_the_same() -> None:
    labels, hashes = [i % 2 for i in range(100)], [str(i) for i in range(100)]
    first = make_splits(images_of(labels), hashes, seed=0)
    assert first == make_splits(images_of(labels), hashes, seed=0)
    assert first != make_splits(images_of(labels), hashes, seed=1)


@pytest.mark.parametrize(
    ("labels", "groups", "word"),
    [
        ([0] * 50 + [1] * 3, None, "no image of class 'truck': its 3 images are 3 different ones"),
        ([0, 1] * 20, ["x"] * 40, "in 1 groups"),
        ([0, 1] * 20, ["x", "y", "z"] * 13 + ["x"], "make the groups smaller"),
    ],
)
def test_too_few_for_four_splits_says_what_to_do(
    labels: list[int], groups: list[str] | None, word: str
) -> None:
    with pytest.raises(DataError, match=word):
        make_splits(images_of(labels, groups), [str(i) for i in range(len(labels))])


def test_four_of_each_class_are_enough() -> None:
    splits = make_splits(images_of([0, 1] * 4), [str(i) for i in range(8)])
    assert Counter(splits) == dict.fromkeys(SPLITS, 2)


@pytest.mark.parametrize(
    "fractions",
    [
        {"train": 1.0},
        {"train": 0.5, "val_select": 0.2, "val_calib": 0.2, "val_test": 0.2},
        {"train": 0.8, "val_select": 0.2, "val_calib": 0.0, "val_test": 0.0},
        {"train": 1.4, "val_select": -0.2, "val_calib": -0.1, "val_test": -0.1},
        {"train": float("nan"), "val_select": 0.2, "val_calib": 0.2, "val_test": 0.2},
    ],
)
def test_fractions_that_are_no_shares_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        make_splits(images_of([0, 1] * 20), [str(i) for i in range(40)], fractions=fractions)


def test_copies_with_both_labels_conflict_and_others_do_not() -> None:
    hashes, labels = ["a", "b", "a", "c", "c", "a"], [0, 0, 1, 1, 1, 0]
    assert conflicts(hashes, labels) == {0: 2, 2: 0, 5: 2}
