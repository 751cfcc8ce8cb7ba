"""SCRC of a whole cascade: its promise holds, and the runtime decides as SCRC itself would."""

from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import from_margins, honest

from cascade_calib.certify_sets import _ties, certify_sets
from cascade_calib.certify_target import certify_target, fit_rules
from cascade_calib.collect import Collected
from cascade_calib.path import Request
from cascade_calib.scrc import fit_inductive, fit_transductive
from cascade_runtime.decision import Reason, decide
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import FLOAT32_MAX, Decision, Preprocess

COSTS = (1.0, 2.0)
SETS = ("scrc-i", "scrc-t")


def request(policy, alpha="1/10", delta="1/10", coverage="3/5", **more):
    numbers = (Fraction(x) for x in (alpha, delta, coverage))
    return Request(*numbers, policy=policy, **more)


def fit(select, calib, asked):
    return certify_sets(select, calib, fit_rules(select), stage_costs=COSTS, request=asked)


def overconfident(n, rng, steps=None):
    """Two exits whose probabilities are too extreme; with `steps`, on a grid, so that many tie."""
    data = honest(n, rng, 2)
    factor = 3.0

    def coarse(x):
        return x if steps is None else np.round(x * steps) / steps

    margins = [coarse(factor * (out.logits[:, 1] - out.logits[:, 0])) for out in data.exits]
    gates = [coarse(rng.normal(np.abs(m), 1.0)) for m in margins]
    return from_margins(margins, data.labels, gates)


def leaving(decision, data):
    """Gate and nonconformity of both classes [N, 2] where each image leaves, as SCRC sees them."""
    exits = tuple(decision.exits)
    accept = msgspec.structs.replace(decision.accept, tau_logit=-FLOAT32_MAX)
    verdict = decide(data.exits, msgspec.structs.replace(decision, exits=exits, accept=accept))
    gate = np.where(verdict.reason == Reason.NOT_FINITE, -np.inf, verdict.score_logit)
    return gate.astype(float), np.stack([verdict.margin, -verdict.margin], axis=1).astype(float)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SETS),
    st.sampled_from([None, 1, 4]),
    st.integers(60, 400),
)
def test_runtime_decides_as_scrc_itself_to_the_last_tie(seed, policy, steps, n):
    rng = np.random.default_rng(seed)
    select, calib = overconfident(n, rng, steps), overconfident(n, rng, steps)
    new = overconfident(200, rng, steps)
    asked = request(policy)
    decision, c = fit(select, calib, asked)
    if c.status != "CERTIFIED":
        assert all(rule.tau_logit is None for rule in decision.exits)
        assert not decide(new.exits, decision).acted.any()
        return
    gate, both = leaving(decision, calib)
    true = both[np.arange(n), calib.labels]
    if policy == "scrc-t":
        fitted = fit_transductive(gate, true, asked.coverage, asked.alpha)
    else:
        ties = _ties(leaving(decision, select)[0], asked, n)
        fitted = fit_inductive(gate, true, asked.coverage, asked.alpha, asked.delta, ties=ties)
    for data in (calib, new):
        verdict = decide(data.exits, decision)
        gate, both = leaving(decision, data)
        assert (verdict.accepted == fitted.accepts(gate)).all()
        inside = fitted.prediction_set(gate, both)
        assert (verdict.in_set[verdict.accepted] == inside[verdict.accepted]).all()
        assert (verdict.acted == (inside.sum(axis=1) == 1)).all()


def set_risk(decision, data):
    """(accepted, misses) on fresh images."""
    verdict = decide(data.exits, decision)
    missed = verdict.accepted & ~verdict.in_set[np.arange(len(data)), data.labels]
    return int(verdict.accepted.sum()), int(missed.sum())


def calibrations(policy, draws, n, alpha="1/10"):
    rng = np.random.default_rng(11)
    truth = overconfident(20_000, rng)
    for _ in range(draws // 20):
        select = overconfident(400, rng)
        for _ in range(20):
            decision, c = fit(select, overconfident(n, rng), request(policy, alpha))
            if c.status == "CERTIFIED":
                accepted, misses = set_risk(decision, truth)
                yield misses / max(1, accepted), accepted / len(truth)
            else:
                yield 0.0, 0.0


def test_risk_of_inductive_sets_exceeds_alpha_no_more_often_than_delta():
    found = np.array(list(calibrations("scrc-i", 200, 400)))
    bad = (found[:, 0] > 0.1).mean()
    assert (found[:, 1] > 0).mean() > 0.9  # it does not pass by refusing
    assert bad <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 200)
    short = (found[:, 1] < 0.6).mean()
    assert short <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 200)


def test_mean_risk_of_transductive_sets_is_at_most_alpha():
    found = np.array(list(calibrations("scrc-t", 200, 300)))
    mean, error = found[:, 0].mean(), found[:, 0].std() / np.sqrt(len(found))
    assert (found[:, 1] > 0).all()
    assert mean <= 0.1 + 3 * error
    assert (found[:, 0] > 0.1).mean() > 0.3  # on average, not for almost every calibration


def test_counts_are_the_runtimes_own():
    rng = np.random.default_rng(3)
    calib = overconfident(900, rng)
    for policy in SETS:
        decision, c = fit(overconfident(500, rng), calib, request(policy))
        verdict = decide(calib.exits, decision)
        assert c.status == "CERTIFIED"
        assert (c.sets.accepted, c.sets.misses) == set_risk(decision, calib)
        assert c.sets.ambiguous == (verdict.reason == Reason.AMBIGUOUS).sum()
        assert c.sets.empty == (verdict.reason == Reason.EMPTY).sum()
        assert c.accepted == verdict.acted.sum() == sum(c.exit_counts)
        assert c.sets.accepted == c.accepted + c.sets.ambiguous + c.sets.empty
        assert c.errors == (verdict.acted & (verdict.label != calib.labels)).sum()
        assert (c.risk_upper, c.coverage_lower) == (1.0, 0.0)  # nothing is proven of these
        assert c.sets.misses / c.sets.accepted <= c.sets.risk_upper <= 0.11
        assert (c.delta is None) == (policy == "scrc-t")


def test_early_exits_take_part():
    rng = np.random.default_rng(5)
    calib = overconfident(900, rng)
    decision, c = fit(overconfident(500, rng), calib, request("scrc-i", alpha="1/5"))
    assert decision.exits[0].tau_logit is not None
    assert c.exit_counts[0] > 0 and c.exit_counts[1] > 0
    assert decision.exits[-1].tau_logit == pytest.approx(-FLOAT32_MAX)


@pytest.mark.parametrize("policy", SETS)
def test_too_few_images_are_infeasible_and_say_how_many_are_needed(policy):
    rng = np.random.default_rng(6)
    select, calib = overconfident(200, rng), overconfident(20, rng)
    decision, c = fit(select, calib, request(policy, alpha="1/100"))
    assert c.status == "INFEASIBLE"
    assert all(rule.tau_logit is None for rule in decision.exits)
    assert c.accepted == c.sets.accepted == 0
    assert "label about" in c.advice and "alpha of" in c.advice
    assert "second test" in c.advice


@pytest.mark.parametrize("policy", SETS)
def test_outputs_that_are_not_finite_are_never_accepted(policy):
    rng = np.random.default_rng(8)
    select, calib = overconfident(400, rng), overconfident(600, rng)
    for out in calib.exits:
        out.gate[:250] = np.nan
        out.logits[:250] = np.nan
    decision, c = fit(select, calib, request(policy))
    verdict = decide(calib.exits, decision)
    assert not verdict.accepted[:250].any()
    assert c.sets.accepted == verdict.accepted.sum()


@pytest.mark.parametrize("policy", SETS)
def test_decision_survives_the_manifest(policy):
    rng = np.random.default_rng(9)
    decision, _ = fit(overconfident(400, rng), overconfident(700, rng), request(policy))
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision
    for value in (decision.set_logit, decision.accept.tau_logit, decision.accept.set_logit_at):
        assert np.float32(value) == value or str(np.float32(value)) == repr(value)


@pytest.mark.parametrize("policy", SETS)
def test_promise_that_sets_do_not_make_is_refused_before_any_engine_runs(policy):
    with pytest.raises(ConfigError, match="--fnr"):
        request(policy, fnr=Fraction(1, 10))
    with pytest.raises(ConfigError, match="coverage is 0"):
        request(policy, coverage="0")


def spoiled(n, rng, share):
    """As `overconfident`, but this share of images gives no finite outputs."""
    data = overconfident(n, rng)
    bad = rng.random(n) < share
    for out in data.exits:
        out.gate[bad] = np.nan
        out.logits[bad] = np.nan
    return data


def test_coverage_is_not_certified_where_too_many_outputs_are_not_finite():
    """Two in a hundred are lost, and 99 % are asked for: it may pass for delta of the draws."""
    rng = np.random.default_rng(12)
    select = spoiled(300, rng, 0.02)
    asked = request("scrc-i", alpha="2/5", delta="1/20", coverage="99/100")
    passed = [fit(select, spoiled(600, rng, 0.02), asked)[1].status for _ in range(200)]
    assert passed.count("CERTIFIED") / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    _, c = fit(select, spoiled(600, rng, 0.02), asked)
    assert c.status == "INFEASIBLE"
    assert "outputs that are not finite" in c.advice


def test_all_images_cannot_be_promised_and_that_is_said():
    rng = np.random.default_rng(13)
    asked = request("scrc-i", coverage="1")
    _, c = fit(overconfident(300, rng), overconfident(600, rng), asked)
    assert c.status == "INFEASIBLE" and "ask for less coverage" in c.advice


def test_ties_elsewhere_do_not_move_the_operating_point():
    rng = np.random.default_rng(14)
    asked = request("scrc-i", coverage="3/5")
    saturated = np.minimum(rng.random(1000), 0.9)  # a tenth of all at the top value
    assert _ties(saturated, asked, 1000) == 1
    assert _ties(np.round(saturated, 1), asked, 1000) > 100


def test_promise_says_whether_it_holds_on_average_or_with_confidence():
    rng = np.random.default_rng(4)
    select, calib = overconfident(400, rng), overconfident(700, rng)
    average = fit(select, calib, request("scrc-t"))[1].promise
    confident = fit(select, calib, request("scrc-i", claims=2))[1].promise
    assert "on average over calibration sets" in average and "confidence" not in average
    assert "90 % confidence" in confident and "all 2 targets at once" in confident
    assert "at least 60 % of images" in confident


def certify(select, calib, policy):
    return certify_target(
        select,
        calib,
        stage_costs=COSTS,
        request=request(policy),
        preprocess=Preprocess(height=8, width=8),
        engines={"a/x": "a" * 64},
    )


@pytest.mark.parametrize("policy", ["softmax", "gate"])
def test_policy_fixes_the_score_of_every_exit(policy):
    rng = np.random.default_rng(10)
    select: Collected = overconfident(600, rng)
    for out in select.exits:  # the other score is the better one at every exit
        good = (out.logits[:, 1] > out.logits[:, 0]) == select.labels
        if policy == "softmax":
            out.gate[:] = good + rng.normal(0, 0.1, len(good))
        else:
            out.gate[:] = rng.normal(0, 1, len(good))
    decision, c = certify(select, overconfident(900, rng), policy)
    assert {rule.score for rule in decision.exits} == {policy}
    assert decision.policy == policy
    assert decision.accept is None and c.sets is None
    assert certify(select, overconfident(900, rng), "certified")[0].exits[0].score != policy
