from dataclasses import replace
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import from_margins, honest

from cascade_calib.certify_target import fit_rules
from cascade_calib.path import SET_LOGIT, Request, as_float32, outcomes, propose_path, walk
from cascade_runtime.decision import decide
from cascade_runtime.manifest import Decision, ExitRule

REQUEST = Request(Fraction(1, 10), Fraction(1, 10), Fraction(1, 5))
COSTS = (1.0, 3.0)

RULES = (
    ExitRule(score="gate", platt_a=1.5, platt_b=-0.25, temperature=1.0, tau_logit=None),
    ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.7, tau_logit=None),
)

awkward = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.0])
threshold = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5, 1.25, 2.0]))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(awkward, awkward, awkward, awkward, st.booleans()), max_size=12),
    threshold,
    threshold,
)
def test_outcomes_are_those_of_the_runtimes_own_decision(rows, tau0, tau1):
    columns = np.array([row[:4] for row in rows], dtype=np.float32).reshape(-1, 4).T
    labels = np.array([row[4] for row in rows], dtype=np.int8)
    data = from_margins([columns[0], columns[2]], labels, [columns[1], columns[3]])
    taus = (tau0, tau1)
    with np.errstate(all="ignore"):
        seen = outcomes(data, RULES, COSTS, as_float32([taus], 2))
        exits = tuple(
            msgspec.structs.replace(r, tau_logit=t) for r, t in zip(RULES, taus, strict=True)
        )
        verdict = decide(data.exits, Decision(policy="certified", exits=exits, set_logit=SET_LOGIT))
    wrong = verdict.acted & (verdict.label != labels)
    assert (seen.accepted[0], seen.errors[0]) == (verdict.acted.sum(), wrong.sum())
    assert seen.cost[0] * len(rows) == pytest.approx(np.where(verdict.stage == 0, 1.0, 4.0).sum())


def test_path_grows_cheaper_and_holds_the_floor_with_room():
    rng = np.random.default_rng(0)
    select = honest(1500, rng, stages=2)
    rules = fit_rules(select)
    path = propose_path(select, rules, COSTS, REQUEST, n_calib=2000)
    seen = outcomes(select, rules, COSTS, as_float32(path, 2))
    rank = list(zip(seen.cost, -seen.accepted, strict=True))
    assert len(path) > 10
    assert rank == sorted(rank, reverse=True)
    assert len(set(rank)) == len(rank)
    assert (seen.accepted / len(select)).min() > float(REQUEST.coverage)
    assert all(vector[-1] is not None for vector in path)


def test_one_stage_path_widens_instead():
    select = honest(800, np.random.default_rng(1))
    rules = fit_rules(select)
    path = propose_path(select, rules, (1.0,), REQUEST, n_calib=1000)
    seen = outcomes(select, rules, (1.0,), as_float32(path, 1))
    assert len(path) > 50
    assert (np.diff(seen.accepted) > 0).all()


def test_a_useless_first_exit_is_left_out_on_the_safe_side():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 1000)
    good = (2 * labels - 1) * rng.uniform(2, 6, 1000)
    select = from_margins([rng.normal(0, 1, 1000), good], labels)
    path = propose_path(select, fit_rules(select), COSTS, REQUEST, n_calib=1000)
    seen = outcomes(select, fit_rules(select), COSTS, as_float32(path, 2))
    assert path[0][0] is None or seen.cost[0] > 3.9


def test_walk_stops_at_the_first_failure_even_if_a_later_vector_would_pass():
    labels = np.ones(400)
    margin = np.where(np.arange(400) < 100, -9.0, 5.0)  # the most trusted quarter is wrong
    calib = from_margins([margin], labels)
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=None)
    request = Request(Fraction(3, 10), Fraction(1, 10), Fraction(1, 10))
    result = walk([(8.0,), (1.0,)], (rule,), calib, (1.0,), request)
    assert result.p_values[0] > 0.1 > result.p_values[1]
    assert (result.tested, result.passed, result.chosen) == (1, 0, None)


def test_walk_keeps_the_last_passed_vector_that_covers_enough():
    labels = np.ones(400)
    calib = from_margins([np.linspace(0.01, 4, 400)], labels)
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=None)
    request = Request(Fraction(1, 10), Fraction(1, 10), Fraction(1, 2))
    result = walk([(1.0,), (1.5,), (3.0,)], (rule,), calib, (1.0,), request)
    assert result.passed == 3
    assert result.chosen == 1


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_images_have_a_defined_walk(n):
    calib = from_margins([np.ones(n)], np.ones(n))
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=None)
    assert walk([(0.0,)], (rule,), calib, (1.0,), REQUEST).chosen is None
    assert walk([], (rule,), calib, (1.0,), REQUEST).tested == 0


def test_hopeless_request_still_starts_from_the_smallest_risk():
    select = honest(1500, np.random.default_rng(0), stages=2)
    rules = fit_rules(select)
    strict = replace(REQUEST, alpha=Fraction(1, 1000))
    first = propose_path(select, rules, COSTS, strict, n_calib=2000)[0]
    seen = outcomes(select, rules, COSTS, as_float32([first], 2))
    whole = outcomes(select, rules, COSTS, np.full((1, 2), -np.inf, dtype=np.float32))
    risk = seen.errors[0] / seen.accepted[0]
    assert seen.accepted[0] < whole.accepted[0] == 1500
    assert risk < 0.5 * whole.errors[0] / 1500
