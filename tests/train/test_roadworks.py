"""The rendered data set: same number, same frame; honest labels; no shortcut past the road."""

import numpy as np
import pytest

from cascade_train.data.roadworks import CLASSES, REASONS, VARIANTS, Difficulty, Scene, render
from cascade_train.data.roadworks.compose import make_plan, paint_street, photograph

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def scenes(variant: str) -> list[Scene]:
    return [render(variant, i) for i in range(600)]


def auc(values: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a random positive's value exceeds a random negative's."""
    ranks = values.argsort().argsort() + 1
    positives = int(labels.sum())
    excess = ranks[labels == 1].sum() - positives * (positives + 1) / 2
    return float(excess / (positives * (len(labels) - positives)))


def test_same_arguments_give_the_same_bytes(variant: str) -> None:
    first, again = render(variant, 11, seed=3), render(variant, 11, seed=3)
    assert first.pixels.dtype == np.uint8
    assert first.pixels.shape == (64, 64, 3)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert (first.label, first.hardness) == (again.label, again.hardness)


def test_frames_do_not_depend_on_the_order_of_calls() -> None:
    forward = [render("night", i).pixels for i in range(8)]
    backward = [render("night", i).pixels for i in reversed(range(8))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_seed_index_and_variant_each_change_the_frame() -> None:
    base = render("day", 5).pixels
    for other in (render("day", 6), render("day", 5, seed=1), render("night", 5)):
        assert not np.array_equal(base, other.pixels)


def test_size_sets_the_shape_and_keeps_the_label() -> None:
    large = render("day", 4, size=96)
    assert large.pixels.shape == (96, 96, 3)
    assert large.label == render("day", 4).label


def test_classes_are_balanced_and_unknown_to_the_index(scenes: list[Scene]) -> None:
    labels = np.array([scene.label for scene in scenes])
    assert len(CLASSES) == 2
    assert abs(labels.mean() - 0.5) < 0.06
    assert abs(labels[::2].mean() - labels[1::2].mean()) < 0.12


def test_about_a_quarter_is_hard_alike_in_both_classes(scenes: list[Scene]) -> None:
    for label in (0, 1):
        hard = [bool(scene.hardness) for scene in scenes if scene.label == label]
        assert 0.18 < np.mean(hard) < 0.32
    assert {reason for scene in scenes for reason in scene.hardness} == set(REASONS)


def test_every_positive_shows_its_roadworks(variant: str, scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes[:200]):
        if scene.label == 1:
            plan = make_plan(variant, index, seed=0, size=64, difficulty=Difficulty())
            bare = photograph(plan, paint_street(plan), [])
            change = np.abs(scene.pixels.astype(int) - bare).max(axis=2)
            assert (change >= 24).sum() >= (12 if scene.hardness else 110), index


def test_brightness_and_noise_do_not_tell_the_classes_apart(scenes: list[Scene]) -> None:
    labels = np.array([scene.label for scene in scenes])
    grey = np.array([scene.pixels @ LUMA for scene in scenes])
    top_rows = grey[:, :12]  # sky and roofs, where no works stand
    assert abs(auc(grey.mean(axis=(1, 2)), labels) - 0.5) < 0.08
    assert abs(auc(np.abs(np.diff(top_rows, axis=2)).mean(axis=(1, 2)), labels) - 0.5) < 0.08


def test_night_is_darker_than_day() -> None:
    day, night = (np.mean([render(v, i).pixels.mean() for i in range(60)]) for v in VARIANTS)
    assert night < 0.65 * day


def test_no_hard_share_gives_no_hard_frames() -> None:
    easy = Difficulty(hard_share=0.0)
    assert all(render("day", i, difficulty=easy).hardness == () for i in range(20))


def test_unknown_variant_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'dusk'.*day, night"):
        render("dusk", 0)


@pytest.mark.parametrize("wrong", [{"hard_share": 1.5}, {"reason_weights": (1.0,)}])
def test_impossible_difficulty_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Difficulty(**wrong)
