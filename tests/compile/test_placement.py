"""What a choice of exits is expected to cost, by hand; and that none that may ship is faster."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_calib.bounds import pass_probability
from cascade_calib.certify_target import decision_of, fit_rules
from cascade_calib.collect import Collected
from cascade_calib.path import Request, propose
from cascade_compile.exits import ExitsChoice, ExitsRequest
from cascade_compile.exits_page import conclusion
from cascade_compile.placement import Exits, Placement, choose, expect, subsets
from cascade_compile.stage_times import Times, times_of
from cascade_compile.targets import TargetName
from cascade_runtime.decision import ExitOutputs, decide

ASKED = Request(Fraction("0.1"), Fraction("0.05"), Fraction("0.3"))
N_CALIB = 400


def test_milliseconds_are_those_of_a_hand_calculation() -> None:
    """Two at a time: half of them, and then a quarter, come to the later exits."""
    stages = np.array([[0, 3.0, 4.0], [0, 5.0, 7.0], [0, 2.0, 3.0]])
    times = Times(stages, saved=np.array([0, 1.0, 1.0]))
    by_hand = 4 + (2 * 0.5 * 0.5 * 5 + 0.25 * 7) + (2 * 0.25 * 0.75 * 2 + 0.0625 * 3)
    assert times.an_image([0, 1, 2], [1, 0.5, 0.25]) == pytest.approx(by_hand / 2)
    without_the_second = 4 + 2 * 0.5 * 0.5 * (5 + 2 - 1) + 0.25 * (7 + 3 - 1)
    assert times.an_image([0, 2], [1, 0.5]) == pytest.approx(without_the_second / 2)
    assert times.an_image([1], [1]) == pytest.approx((4 + 7 - 1) / 2)  # nothing after the second
    assert times.an_image([0, 2], [1, 0]) == pytest.approx(4 / 2)  # nobody goes on


def test_batches_cost_what_their_pieces_do() -> None:
    pieces = {1: np.array([1.0, 10.0]), 2: np.array([1.5, 15.0]), 4: np.array([2.0, 20.0])}
    times = times_of(pieces, {1: 11.0, 2: 16.5, 4: 22.0}, 7)
    assert times.stages[0].tolist() == [0, 1, 1.5, 2.5, 2, 3, 3.5, 4.5]
    assert times.stages[1].tolist() == [0, 10, 15, 25, 20, 30, 35, 45]
    assert not times.saved.any()


def test_head_and_call_of_an_exit_that_is_left_out_are_saved() -> None:
    blocks, head = np.array([4.0, 2.0, 6.0]), 0.5
    times = times_of({1: blocks + head}, {1: blocks.sum() + head}, 1)
    assert times.saved[1] == pytest.approx(head)
    assert times.together(1, 3)[1] == pytest.approx(2 + 6 + head)
    slower = times_of({1: blocks}, {1: 20.0}, 1)  # as noise may have it
    assert not slower.saved.any()


def test_every_choice_of_a_few_exits_and_all_of_them() -> None:
    assert list(subsets(3, 2)) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert sorted(subsets(3, 9)) == sorted(set(subsets(3, 9)))
    assert len(list(subsets(6, 6))) == 63


def cascade(seed: int, n: int = 80, exits: int = 3) -> Exits:
    """Exits that are right more often the later they are, and stages of any cost."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int8)
    outputs = []
    for stage in range(exits):
        margin = (2 * labels - 1) * 2.0 * (stage + 1) + rng.normal(0, 3, n)
        logits = np.stack([-margin / 2, margin / 2], axis=1).astype(np.float32)
        outputs.append(ExitOutputs(logits, rng.normal(0, 1, n).astype(np.float32)))
    seen = Collected(outputs, labels, tuple(map(str, range(n))), str(seed))
    stages = np.cumsum(rng.uniform(0.1, 1, (exits, 5)), axis=1)
    stages[:, 0] = 0
    saved = np.array([0, *np.full(4, 0.05)])
    macs = tuple(float(m) for m in rng.integers(1, 9, exits))
    rules = fit_rules(seen, "certified")
    return Exits(seen, rules, tuple(range(1, exits + 1)), macs, Times(stages, saved))


def by_hand(exits: Exits, kept: tuple[int, ...]) -> tuple[float, float, float] | None:
    """(ms, coverage, chance) image by image and batch by batch."""
    rules = tuple(exits.rules[i] for i in kept)
    outputs = [exits.seen.exits[i] for i in kept]
    seen = Collected(outputs, exits.seen.labels, exits.seen.names, "")
    macs = [sum(exits.macs[(kept[i - 1] + 1 if i else 0) : k + 1]) for i, k in enumerate(kept)]
    path = propose(seen, rules, macs, ASKED, n_calib=N_CALIB)
    if not path.path:
        return None
    row = path.likely(ASKED.share)
    verdict = decide(outputs, decision_of(rules, path.path[row], "certified"))
    batch, total = exits.times.batch, 0.0
    for place, exit_ in enumerate(kept):
        first = kept[place - 1] + 1 if place else 0
        share = sum(int(stage) >= place for stage in verdict.stage) / len(seen)
        for n in range(1, batch + 1):
            cost = sum(exits.times.stages[s, n] for s in range(first, exit_ + 1))
            cost -= (exit_ - first) * exits.times.saved[n]
            total += comb(batch, n) * share**n * (1 - share) ** (batch - n) * cost
    covered = sum(int(label) >= 0 for label in verdict.label) / len(seen)
    chance = pass_probability(N_CALIB, ASKED.alpha, ASKED.share, path.coverage[0], path.risk[0])
    return 1e3 * total / batch, covered, chance if path.danger[0] <= 0.05 else 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.one_of(st.none(), st.floats(0, 0.3)))
def test_none_that_may_ship_is_faster_than_the_chosen(seed: int, within: float | None) -> None:
    exits = cascade(seed)
    choices = [kept for count in (1, 2, 3) for kept in combinations(range(3), count)]
    expected = {kept: by_hand(exits, kept) for kept in choices}
    good = {kept: e for kept, e in expected.items() if e is not None and e[2] >= 0.8}
    if within is not None and good:
        best = max(covered for _, covered, _ in good.values())
        good = {kept: e for kept, e in good.items() if e[1] >= best - within}
    found = [expect(exits, kept, ASKED, N_CALIB) for kept in subsets(3, 3)]
    chosen = choose([p for p in found if p is not None], 0.8, within)
    if not good:
        assert chosen is None
        return
    assert chosen is not None
    kept = tuple(block - 1 for block in chosen.exits)
    assert chosen.ms == pytest.approx(good[kept][0])
    assert chosen.coverage == good[kept][1] >= float(ASKED.coverage)
    assert chosen.ms <= min(ms for ms, _, _ in good.values()) * (1 + 1e-9)


def placement(ms: float, coverage: float, chance: float = 0.95) -> Placement:
    return Placement((1,), ms, (1.0,), coverage, 0.01, chance)


def test_little_coverage_is_given_up_where_that_is_said() -> None:
    fast, slow = placement(1, 0.72), placement(2, 0.9)
    assert choose([slow, fast]) is fast
    assert choose([slow, fast], within=0.1) is slow
    assert choose([slow, fast], within=0.2) is fast
    assert choose([slow, fast, placement(3, 0.99, chance=0.85)], within=0) is slow
    assert choose([placement(1, 0.9, chance=0.85)]) is None
    assert choose([placement(1, 0.9, chance=0.85)], chance=0.8) is not None


def test_conclusion_says_what_was_chosen_or_what_would_have_to_be_otherwise() -> None:
    target = TargetName("onnxruntime", "fp32", "cpu")
    request = ExitsRequest(Path("run"), Path("new"), target, ASKED)
    fast, own = placement(1, 0.8), placement(3, 0.9)
    said = conclusion(ExitsChoice(request, 900, 3, (fast, own), own, fast))
    assert "exit after 1, 3.00 times as fast as all" in said
    assert "It covers 80 %; exits after 1 would cover 90 % and take 3.00 times as long" in said
    assert said.endswith("--target onnxruntime/fp32/cpu --alpha 0.1 --delta 0.05 --coverage 0.3")
    hopeless = placement(3, 0.9, chance=0.85)
    assert "exit after 1; all of them are not likely to be certified" in conclusion(
        ExitsChoice(request, 900, 3, (fast, hopeless), hopeless, fast)
    )
    said = conclusion(ExitsChoice(request, 900, 3, (hopeless,), hopeless, None))
    assert "none has a chance of 95 % to be certified at alpha 10 % with coverage 30 %" in said
    assert "nothing is written. Label more images, or ask for a larger alpha" in said
