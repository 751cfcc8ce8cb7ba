"""Choosing among candidates keeps the promise, and costs nothing that it need not."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from populations import from_margins, honest

from cascade_calib.candidates import (
    Candidate,
    Found,
    Step,
    lay_sequence,
    own_path,
    walk_sequence,
)
from cascade_calib.certify_target import fit_rules
from cascade_calib.collect import Collected
from cascade_calib.path import Proposal, Request, Thresholds, propose, walk
from cascade_calib.search_words import verdicts
from cascade_runtime.manifest import ExitRule

STUDY = Path(__file__).parents[2] / "benchmarks" / "studies" / "precision_search_simulation.py"
REQUEST = Request(Fraction(1, 10), Fraction(1, 20), Fraction(3, 10))
RULE = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=None)


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location(STUDY.stem, STUDY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def candidate(name: str, taus: list[float], danger: list[float], speed: float) -> Candidate:
    """One exit, these thresholds, as dangerous as said; each next one a tenth cheaper."""
    path: list[Thresholds] = [(tau,) for tau in taus]
    shape = np.arange(len(taus))
    proposal = Proposal(path, np.array(danger), 0.9**shape, 0.5 + shape / 100, shape / 1000)
    return Candidate(name, (RULE,), proposal, 0, speed)


def images(errors_above_2: int, errors_above_1: int, n: int = 400) -> Collected:
    """Margins of 3 for half of the images and 1.5 for the others, so many of them wrong."""
    labels = np.arange(n) % 2
    strength = np.where(np.arange(n) < n // 2, 3.0, 1.5)
    sign = 2 * labels - 1
    sign[:errors_above_2] *= -1
    sign[n // 2 : n // 2 + errors_above_1] *= -1
    return from_margins([sign * strength], labels)


def test_ten_candidates_above_alpha_break_the_promise_in_no_more_than_delta(study) -> None:
    """And the best of them, each tested at the whole of delta, breaks it several times as often."""
    world = replace(study.NULL, n_select=300, n_calib=400)
    names = ("one sequence", "best uncorrected")
    ours, control = study.simulate([world], selects=4, calibs=75, procedures=names)
    assert ours.rate <= ours.limit
    assert control.rate > 2 * control.limit
    assert ours.draws == control.draws == 300
    assert study.table([ours, control])[0] == "| world | one sequence | best uncorrected |"


def test_where_images_are_few_sharing_delta_would_lose_what_one_sequence_ships(study) -> None:
    world = next(w for w in study.WORLDS if w.name == "barely provable")
    world = replace(world, n_select=300, n_calib=250)
    names = ("one sequence", "delta / m each")
    ours, shared = study.simulate([world], selects=2, calibs=50, procedures=names)
    assert ours.shipped >= 0.9 * ours.draws
    assert shared.speed < 0.9 * ours.speed


def test_one_candidate_is_certified_as_by_itself() -> None:
    rng = np.random.default_rng(1)
    select, calib = honest(500, rng, 2), honest(900, rng, 2)
    rules, costs = fit_rules(select), (1.0, 2.0)
    proposal = propose(select, rules, costs, REQUEST, n_calib=900)
    alone = walk(proposal.path, rules, calib, costs, REQUEST)
    only = Candidate("only", rules, proposal, proposal.likely(REQUEST.share), 100.0)
    steps = lay_sequence([only])
    found = walk_sequence([only], steps, lambda _: calib, costs, REQUEST)
    assert own_path(steps, 0, proposal) == proposal.path
    assert (found.tested, found.passed, found.chosen) == (alone.tested, alone.passed, alone.chosen)
    assert found.chosen is not None


def test_sequence_goes_from_safe_to_fast_and_never_back() -> None:
    rng = np.random.default_rng(2)
    candidates = []
    for number in range(6):
        select = honest(300, rng, 2)
        rules = fit_rules(select)
        proposal = propose(select, rules, (1.0, 2.0), REQUEST, n_calib=600)
        speed = float(rng.uniform(50, 100))
        candidates.append(Candidate(f"c{number}", rules, proposal, 0, speed))
    steps = lay_sequence(candidates)
    danger = [candidates[s.candidate].proposal.danger[s.vector] for s in steps]
    speed = [candidates[s.candidate].speed(s.vector) for s in steps]
    assert len({s.candidate for s in steps}) > 1
    assert danger == sorted(danger)
    assert speed == sorted(speed)


def test_what_is_slower_and_no_safer_is_never_run_over_val_calib() -> None:
    slow = candidate("slow", [2.0, 1.0], [0.01, 0.02], 100)
    fast = candidate("fast", [2.0, 1.0], [0.01, 0.02], 300)
    steps = lay_sequence([slow, fast])
    assert {step.candidate for step in steps} == {1}

    def calib(index: int) -> Collected:
        assert index == 1
        return images(2, 2)

    found = walk_sequence([slow, fast], steps, calib, (1.0,), REQUEST)
    assert found.shipped == 1
    said = verdicts([slow, fast], found, REQUEST)
    assert said[0] == ("passed over", "fast is faster and promises at least as well on val_select")
    assert said[1][0] == "shipped"


def test_equal_speed_and_danger_are_settled_by_name_whatever_the_order() -> None:
    a, b = (candidate(name, [2.0], [0.01], 100) for name in "ab")
    assert [s.candidate for s in lay_sequence([a, b])] == [0]
    assert [s.candidate for s in lay_sequence([b, a])] == [1]


def found_by(candidates: list[Candidate], calib: list[Collected]) -> Found:
    steps = lay_sequence(candidates)
    return walk_sequence(candidates, steps, lambda i: calib[i], (1.0,), REQUEST)


def test_sequence_ends_at_the_first_failure_even_where_a_later_candidate_would_pass() -> None:
    first = candidate("first", [2.0], [0.01], 100)
    later = candidate("later", [2.0], [0.02], 200)
    calib = [images(60, 0), images(0, 0)]
    found = found_by([first, later], calib)
    assert walk(later.proposal.path, later.rules, calib[1], (1.0,), REQUEST).chosen == 0
    assert found.steps == [Step(0, 0), Step(1, 0)]
    assert (found.tested, found.passed, found.shipped) == (1, 0, None)
    said = verdicts([first, later], found, REQUEST)
    assert said[0][0] == "failed"
    assert "wrong on 60 of 200 acted on" in said[0][1]
    assert said[1] == ("not reached", "the tests ended at first, before its turn")


def test_fastest_proven_candidate_ships_and_the_failing_one_after_it_does_not() -> None:
    safe = candidate("safe", [2.0], [0.01], 100)
    good = candidate("good", [2.0], [0.02], 200)
    risky = candidate("risky", [2.0], [0.03], 300)
    found = found_by([safe, good, risky], [images(0, 0), images(2, 0), images(40, 0)])
    assert found.shipped == 1
    said = verdicts([safe, good, risky], found, REQUEST)
    assert [outcome for outcome, _ in said] == ["certified", "shipped", "failed"]
    assert said[0][1] == "holds as well; good is faster"


def test_proven_but_too_little_coverage_does_not_ship_and_does_not_end_the_tests() -> None:
    narrow = candidate("narrow", [2.0], [0.01], 100)
    wide = candidate("wide", [1.0], [0.02], 200)
    request = replace(REQUEST, coverage=Fraction(6, 10))
    steps = lay_sequence([narrow, wide])
    calib = [images(0, 0), images(3, 3)]
    found = walk_sequence([narrow, wide], steps, lambda i: calib[i], (1.0,), request)
    assert (found.passed, found.shipped) == (2, 1)
    assert verdicts([narrow, wide], found, request)[0] == (
        "failed",
        "proven thresholds act on at most 50 % of val_calib, 60 % were asked for",
    )


def test_vectors_beyond_the_end_of_the_sequence_do_not_count_for_their_candidate() -> None:
    """`both` fails at `other`; its own second vector would pass alone."""
    both = candidate("both", [2.0, 1.0], [0.01, 0.03], 100)
    other = candidate("other", [2.0], [0.02], 105)
    found = found_by([both, other], [images(0, 0), images(60, 0)])
    assert [s.candidate for s in found.steps] == [0, 1, 0]
    assert (found.walks[0].passed, found.walks[0].tested, found.walks[0].chosen) == (1, 1, 0)
    assert found.shipped == 0


def test_with_an_fnr_promise_a_step_passes_only_if_both_do() -> None:
    one = candidate("one", [2.0], [0.01], 100)
    calib = [images(2, 0)]
    request = replace(REQUEST, fnr=Fraction(1, 1000))
    found = walk_sequence([one], lay_sequence([one]), lambda i: calib[i], (1.0,), request)
    assert found.shipped is None
    assert "missed 1 of 100 positives" in verdicts([one], found, request)[0][1]
    easy = replace(REQUEST, fnr=Fraction(1, 10))
    found = walk_sequence([one], lay_sequence([one]), lambda i: calib[i], (1.0,), easy)
    assert found.shipped == 0


def test_no_candidate_with_a_path_is_no_test_at_all() -> None:
    empty = Candidate("x", (RULE,), Proposal([], *(np.zeros(0) for _ in range(4))), 0, 10.0)
    found = found_by([empty], [images(0, 0)])
    assert (found.steps, found.tested, found.passed, found.shipped) == ([], 0, 0, None)
    assert verdicts([empty], found, REQUEST) == [
        ("left out", "no thresholds reach the coverage of 30 % on val_select")
    ]
