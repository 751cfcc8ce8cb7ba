"""Which checkpoint is kept, and what is said when none is good enough."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_runtime.errors import ConfigError, DataError
from cascade_train.constraints import (
    Constraints,
    OperatingPoint,
    Standing,
    better,
    operating_point,
    standing,
    statement,
)

SCORE = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
WRONG = [0, 0, 1, 0, 0, 0, 0, 1, 1, 1]
LABEL = [0, 1, 1, 1, 0, 1, 0, 0, 1, 0]

images = st.lists(
    st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=30
)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0])
limits = st.builds(Constraints, coverage=shares, error=shares, fnr=shares)
standings = st.builds(
    lambda violation, area: Standing(
        point=OperatingPoint(threshold=0, coverage=1, error=0, fnr=0, violation=violation),
        augrc=area,
    ),
    st.sampled_from([0.0, 0.1, 0.2]),
    st.sampled_from([0.01, 0.02, 0.3, math.nan]),
)


def by_hand(rows: list[tuple[int, bool, bool]], asked: Constraints) -> list[tuple[float, ...]]:
    """(violation, coverage, error, fnr) at every threshold, counted image by image."""
    points = []
    for threshold in {score for score, _, _ in rows}:
        acted = [(wrong, label) for score, wrong, label in rows if score >= threshold]
        found = [wrong for wrong, label in acted if label]
        cov, err = len(acted) / len(rows), sum(w for w, _ in acted) / len(acted)
        fnr = sum(found) / len(found) if found else float(any(label for _, _, label in rows))
        over = (asked.coverage - cov, err - asked.error, fnr - asked.fnr)
        points.append((sum(max(0.0, x) for x in over), cov, err, fnr))
    return points


@settings(deadline=None, max_examples=200)
@given(images, limits)
def test_point_is_the_widest_of_the_least_violating_thresholds(
    rows: list[tuple[int, bool, bool]], asked: Constraints
) -> None:
    have = operating_point(*zip(*rows, strict=True), asked)
    points = by_hand(rows, asked)
    least = min(violation for violation, *_ in points)
    assert have.violation == pytest.approx(least, abs=1e-12)
    same = [p for p in points if abs(p[0] - least) < 1e-12]
    assert (have.coverage, have.error, have.fnr) in [p[1:] for p in same]
    if least == 0:
        assert have.coverage == max(p[1] for p in same)


@settings(deadline=None, max_examples=100)
@given(images, limits)
def test_violation_is_zero_exactly_where_all_three_hold(
    rows: list[tuple[int, bool, bool]], asked: Constraints
) -> None:
    point = operating_point(*zip(*rows, strict=True), asked)
    holds = (
        point.coverage >= asked.coverage and point.error <= asked.error and point.fnr <= asked.fnr
    )
    assert (point.violation == 0) == holds


@settings(deadline=None, max_examples=100)
@given(images, limits, st.randoms())
def test_order_of_the_images_does_not_matter(
    rows: list[tuple[int, bool, bool]], asked: Constraints, random: object
) -> None:
    before = standing(*zip(*rows, strict=True), asked)
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert standing(*zip(*rows, strict=True), asked) == before


@settings(deadline=None, max_examples=100)
@given(images, limits, limits)
def test_asking_for_less_never_hurts(
    rows: list[tuple[int, bool, bool]], one: Constraints, other: Constraints
) -> None:
    less = Constraints(
        coverage=min(one.coverage, other.coverage),
        error=max(one.error, other.error),
        fnr=max(one.fnr, other.fnr),
    )
    columns = list(zip(*rows, strict=True))
    assert operating_point(*columns, less).violation <= operating_point(*columns, one).violation


@given(standings, standings, standings)
def test_better_is_a_strict_order(a: Standing, b: Standing, c: Standing) -> None:
    assert not better(a, a)
    assert not (better(a, b) and better(b, a))
    if better(a, b) and better(b, c):
        assert better(a, c)
    if not better(a, b) and not better(b, a) and better(b, c):
        assert better(a, c)


@given(st.lists(standings, min_size=1, max_size=8))
def test_the_kept_one_satisfies_whenever_any_does(epochs: list[Standing]) -> None:
    best: Standing | None = None
    for epoch in epochs:
        best = epoch if better(epoch, best) else best
    assert best is not None
    assert best.satisfied == any(e.satisfied for e in epochs)
    if best.satisfied:
        assert not any(e.satisfied and e.augrc < best.augrc for e in epochs)
    else:
        assert best.point.violation == min(e.point.violation for e in epochs)


def test_an_equal_checkpoint_does_not_replace_the_earlier_one() -> None:
    judged = standing(SCORE, WRONG, LABEL, Constraints())
    assert better(judged, None)
    assert not better(judged, judged)


def test_widest_point_under_the_error_limit_is_found_beyond_a_worse_one() -> None:
    # error: 1/3 after three images, but 1/7 after seven
    point = operating_point(SCORE, WRONG, LABEL, Constraints(coverage=0.5, error=0.15, fnr=1))
    assert (point.threshold, point.coverage, point.error) == (3.0, 0.7, 1 / 7)
    assert point.violation == 0


def test_shares_that_meet_the_constraint_exactly_count_as_met() -> None:
    for n, k in itertools.product((7, 10, 100), range(1, 7)):
        wrong = [1] * k + [0] * (n - k)
        asked = Constraints(coverage=1, error=k / n, fnr=1)
        assert operating_point([1] * n, wrong, [0] * n, asked).violation == 0


def test_positives_that_are_never_acted_on_are_missed() -> None:
    score, wrong, label = [3, 3, 3, 1], [0, 0, 0, 1], [0, 0, 0, 1]
    point = operating_point(score, wrong, label, Constraints(coverage=0.5, error=1, fnr=0.2))
    assert point.fnr == 1.0 and point.violation == pytest.approx(0.8)
    no_positives = operating_point(score, wrong, [0] * 4, Constraints(coverage=0.5, fnr=0.2))
    assert no_positives.fnr == 0.0 and no_positives.violation == 0


def test_full_coverage_limit_on_the_fnr_is_the_plain_fnr() -> None:
    point = operating_point(SCORE, WRONG, LABEL, Constraints(coverage=1, error=1, fnr=0.1))
    assert (point.coverage, point.fnr) == (1.0, 2 / 5)


def test_statement_names_what_was_not_reached_and_by_how_much() -> None:
    asked = Constraints(coverage=0.9, error=0.01, fnr=0.5)
    said = statement(operating_point(SCORE, WRONG, LABEL, asked), asked)
    assert said.startswith("No checkpoint reaches coverage >= 90 %, error <= 1 % and FNR <= 50 %")
    assert "points below 90 %" in said or "points above 1 %" in said
    assert "above 50 %" not in said  # that one was kept
    assert "ask for less" in said


def test_statement_of_a_satisfied_constraint_gives_the_numbers() -> None:
    asked = Constraints(coverage=0.5, error=0.2, fnr=0.5)
    said = statement(operating_point(SCORE, WRONG, LABEL, asked), asked)
    assert said == (
        "The selected checkpoint acts on 70 % of val_select with 14.3 % wrong and an FNR of 25 %, "
        "within coverage >= 50 %, error <= 20 % and FNR <= 50 %."
    )


@pytest.mark.parametrize("field", ["coverage", "error", "fnr"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_share_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"constraints\.{field} is {value}; expected a share"):
        Constraints(**{field: value})


@pytest.mark.parametrize(
    ("score", "wrong", "labels", "message"),
    [
        ([], [], [], "no images"),
        ([1.0, math.nan], [0, 1], [0, 1], "NaN"),
        ([1.0, 2.0], [0, 1], [0], "labels must be 0 or 1"),
        ([1.0, 2.0], [0, 1], [0, 2], "labels must be 0 or 1"),
        ([1.0, 2.0], [0, 0.5], [0, 1], "error must be 0 or 1"),
    ],
)
def test_unusable_input_is_refused(
    score: list[float], wrong: list[float], labels: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        standing(score, wrong, labels, Constraints())


def test_constant_score_and_infinite_scores_are_judged() -> None:
    for score in ([1.0] * 10, [math.inf] * 5 + [-math.inf] * 5):
        judged = standing(score, WRONG, LABEL, Constraints(coverage=0.5))
        assert np.isfinite(judged.augrc) and 0 < judged.point.coverage <= 1
