import json
from dataclasses import replace
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from populations import confidence_threshold, from_margins, honest, true_risk
from scipy.stats import binom

from cascade_calib.certify_target import Request, certify_target, fit_rules, propose_path, walk
from cascade_calib.metrics import coverage_at_risk
from cascade_runtime.decision import decide, score_logit
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Decision, Preprocess, binding

PREPROCESS = Preprocess(height=64, width=64)
ENGINES = {"targets/x/stage1.onnx": "b" * 64, "targets/x/stage0.onnx": "a" * 64}
REQUEST = Request(Fraction(1, 10), Fraction(1, 10), Fraction(1, 5))


def ask(select, calib, request=REQUEST, costs=None, **more):
    costs = costs or (1.0,) * len(select.exits)
    return certify_target(
        select,
        calib,
        stage_costs=costs,
        request=request,
        preprocess=PREPROCESS,
        engines=ENGINES,
        **more,
    )


def draws(stages, selects, calibs, n_select, n_calib):
    """(rules, threshold vector or None, calib) for independent calibrations of known truth."""
    rng = np.random.default_rng(7)
    for _ in range(selects):
        select = honest(n_select, rng, stages)
        rules = fit_rules(select)
        costs = (1.0,) * stages
        path = propose_path(select, rules, costs, REQUEST, n_calib=n_calib)
        for _ in range(calibs):
            calib = honest(n_calib, rng, stages)
            chosen = walk(path, rules, calib, costs, REQUEST).chosen
            yield rules, None if chosen is None else path[chosen], calib


def violates(rules, taus, alpha=REQUEST.alpha):
    pairs = zip(taus, rules, strict=True)
    thresholds = [confidence_threshold(tau, rule.temperature) for tau, rule in pairs]
    return true_risk(thresholds)[1] > alpha


def limit(trials):
    """delta plus three standard errors."""
    delta = float(REQUEST.delta)
    return delta + 3 * np.sqrt(delta * (1 - delta) / trials)


@pytest.mark.parametrize("stages", [1, 2])
def test_certificates_fail_no_more_often_than_delta(stages):
    results = list(draws(stages, selects=6, calibs=50, n_select=400, n_calib=1500))
    certified = [(rules, taus) for rules, taus, _ in results if taus is not None]
    assert len(certified) > 0.8 * len(results)
    bad = sum(violates(rules, taus) for rules, taus in certified)
    assert bad / len(results) <= limit(len(results))


def test_the_empirical_threshold_fails_the_same_check():
    bad = trials = 0
    for rules, _, calib in draws(1, selects=6, calibs=50, n_select=400, n_calib=1500):
        trials += 1
        score = score_logit(calib.exits[0], rules[0])
        wrong = (calib.exits[0].logits[:, 1] > calib.exits[0].logits[:, 0]) != calib.labels
        naive = coverage_at_risk(score, wrong, float(REQUEST.alpha)).threshold
        bad += violates(rules, (naive,)) if np.isfinite(naive) else False
    assert bad / trials > 2 * limit(trials)


def test_certificate_counts_are_the_runtimes_decisions():
    rng = np.random.default_rng(3)
    select, calib = honest(800, rng, 2), honest(1500, rng, 2)
    decision, c = ask(select, calib, costs=(1.0, 2.0))
    verdict = decide(calib.exits, decision)
    wrong = verdict.acted & (verdict.label != calib.labels)
    assert c.status == "CERTIFIED"
    assert (c.n, c.accepted, c.errors) == (1500, verdict.acted.sum(), wrong.sum())
    assert sum(c.exit_counts) == sum(c.class_accepted) == c.accepted
    assert sum(c.class_errors) == c.errors
    assert c.errors / c.accepted < c.risk_upper <= 0.1
    assert c.coverage_lower < c.coverage == c.accepted / c.n
    assert c.coverage >= c.coverage_floor == 0.2
    assert 0 < c.path_tested <= c.path_length
    assert c.calibration_sha256 == calib.content_sha256
    assert "at most 10 % are wrong, with 90 % confidence" in c.promise
    assert c.advice == ""


def test_certificate_is_bound_to_engines_preprocessing_and_numbers():
    rng = np.random.default_rng(4)
    decision, c = ask(honest(500, rng), honest(900, rng), calibration_uses=3)
    assert c.engines == ENGINES
    assert list(c.engines) == sorted(ENGINES)
    assert c.binding == binding(PREPROCESS, decision, ENGINES)
    assert c.calibration_uses == 3


def test_thresholds_survive_the_manifest_as_float32():
    rng = np.random.default_rng(5)
    calib = honest(1500, rng, 2)
    decision, _ = ask(honest(800, rng, 2), calib)
    back = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    assert back == decision
    for rule in decision.exits:
        if rule.tau_logit is not None:
            assert str(np.float32(rule.tau_logit)) == repr(rule.tau_logit)
    before, after = decide(calib.exits, decision), decide(calib.exits, back)
    assert (before.label == after.label).all()


def test_same_inputs_give_the_same_certificate():
    rng = np.random.default_rng(6)
    select, calib = honest(500, rng, 2), honest(900, rng, 2)
    assert ask(select, calib) == ask(select, calib)


def test_infeasible_defers_everything_and_says_what_it_takes():
    rng = np.random.default_rng(8)
    request = Request(Fraction(1, 50), Fraction(1, 20), Fraction(7, 10))
    calib = honest(900, rng)
    decision, c = ask(honest(500, rng), calib, request)
    assert c.status == "INFEASIBLE"
    assert all(rule.tau_logit is None for rule in decision.exits)
    assert not decide(calib.exits, decision).acted.any()
    assert (c.accepted, c.errors, c.coverage, c.risk_upper) == (0, 0, 0.0, 1.0)
    assert "defers every image" in c.promise
    assert "instead of 0.02" in c.advice
    assert "second test" in c.advice


def test_the_alpha_that_infeasible_advises_does_pass_on_the_same_data():
    rng = np.random.default_rng(9)
    select, calib = honest(500, rng), honest(900, rng)
    request = Request(Fraction(1, 50), Fraction(1, 20), Fraction(7, 10))
    _, c = ask(select, calib, request)
    advised = Fraction(c.advice.split("alpha of ")[1].split(" ")[0])
    assert ask(select, calib, replace(request, alpha=advised))[1].status == "CERTIFIED"


def test_too_few_images_are_counted_out():
    rng = np.random.default_rng(10)
    labels = rng.integers(0, 2, 400)
    sure = from_margins([(2 * labels - 1) * rng.uniform(1, 8, 400)], labels)
    few = from_margins([sure.exits[0].logits[:60, 1] * 2], labels[:60])
    request = Request(Fraction(1, 100), Fraction(1, 20), Fraction(7, 10))
    _, c = ask(sure, few, request)
    assert c.status == "INFEASIBLE"
    assert "takes 299 even without an error" in c.advice
    assert "more labelled calibration images" in c.advice


def test_all_wrong_all_tied_and_no_images_are_defined():
    rng = np.random.default_rng(11)
    labels = rng.integers(0, 2, 300)
    wrong = from_margins([(1 - 2 * labels) * rng.uniform(1, 3, 300)], labels)
    again = from_margins([(1 - 2 * labels) * rng.uniform(1, 3, 300)], labels)
    tied = from_margins([np.zeros(300)], labels)
    none = from_margins([np.zeros(0)], np.zeros(0))
    advice = {ask(s, c)[1].advice for s, c in [(wrong, again), (tied, again), (none, again)]}
    assert len(advice) == 3
    assert all(advice)
    assert ask(wrong, none)[1].status == "INFEASIBLE"


def test_all_right_is_certified_at_full_coverage():
    rng = np.random.default_rng(12)
    labels = rng.integers(0, 2, 600)
    data = [from_margins([(2 * labels - 1) * rng.uniform(1, 3, 600)], labels) for _ in range(2)]
    _, c = ask(*data, Request(Fraction(1, 100), Fraction(1, 20), Fraction(9, 10)))
    assert (c.status, c.errors) == ("CERTIFIED", 0)
    assert c.coverage > 0.99


def test_constant_scores_act_on_everything_or_nothing():
    select, calib = (from_margins([np.full(n, 2.0)], np.ones(n)) for n in (500, 400))
    decision, c = ask(select, calib)
    assert c.status == "CERTIFIED"
    assert c.coverage == 1.0
    assert c.class_accepted == (0, 400)
    assert json.loads(msgspec.json.encode(decision))


def test_outputs_that_are_not_finite_are_never_acted_on():
    rng = np.random.default_rng(13)
    select, calib = honest(800, rng), honest(1500, rng)
    calib.exits[0].gate[:300] = np.nan
    calib.exits[0].logits[:300] = np.nan
    decision, c = ask(select, calib)
    assert calib.not_finite == 300
    assert not decide(calib.exits, decision).acted[:300].any()
    assert c.n == 1500


def test_selecting_and_testing_on_the_same_images_is_refused():
    data = honest(300, np.random.default_rng(14))
    with pytest.raises(DataError, match="same images"):
        ask(data, data)


def test_the_gate_is_used_only_where_it_ranks_better():
    rng = np.random.default_rng(15)
    labels = rng.integers(0, 2, 1000)
    said = np.where(rng.random(1000) < 0.8, labels, 1 - labels)
    margin = (2 * said - 1) * rng.uniform(1, 2, 1000)
    knows, noise = (said == labels) + rng.normal(0, 0.3, 1000), rng.normal(0, 1, 1000)
    kinds = [
        fit_rules(from_margins([margin], labels, [gate]))[0].score
        for gate in (knows, noise, np.abs(margin))
    ]
    assert kinds[:2] == ["gate", "softmax"]


def with_fnr(request=REQUEST, fnr="0.1"):
    return replace(request, fnr=Fraction(fnr))


def test_an_fnr_promise_is_tested_on_the_positives_and_written_down():
    rng = np.random.default_rng(16)
    select, calib = honest(800, rng, 2), honest(2500, rng, 2)
    decision, c = ask(select, calib, with_fnr())
    verdict = decide(calib.exits, decision)
    found = verdict.acted & (calib.labels == 1)
    missed = int((found & (verdict.label == 0)).sum())
    assert c.status == "CERTIFIED"
    assert (c.class_errors[1], c.class_accepted[1]) == (missed, found.sum())
    assert binom.cdf(missed, found.sum(), 0.1) <= 0.05  # half of delta
    assert binom.cdf(c.errors, c.accepted, 0.1) <= 0.05
    assert c.fnr_promised == 0.1
    assert missed / found.sum() < c.fnr_upper <= 0.1
    assert "of the positives among them at most 10 % are missed, with 90 % confidence" in c.promise


def test_without_an_fnr_promise_none_is_written():
    rng = np.random.default_rng(17)
    _, c = ask(honest(500, rng), honest(1500, rng))
    assert (c.fnr_promised, c.fnr_upper) == (None, None)
    assert "missed" not in c.promise
    assert REQUEST.share == Fraction(1, 10)
    assert with_fnr().share == Fraction(1, 20)


def one_sided(n, rng):
    """Never wrong on class 0, wrong on three positives in ten, whatever the score."""
    labels = (rng.random(n) < 0.1).astype(int)
    said = np.where(rng.random(n) < 0.3, 0, labels)
    return from_margins([(2 * said - 1) * rng.uniform(1, 4, n)], labels)


def test_a_missed_fnr_makes_it_infeasible_though_the_risk_is_proven():
    rng = np.random.default_rng(18)
    select, calib = one_sided(1500, rng), one_sided(3000, rng)
    assert ask(select, calib)[1].status == "CERTIFIED"
    decision, c = ask(select, calib, with_fnr())
    assert c.status == "INFEASIBLE"
    assert all(rule.tau_logit is None for rule in decision.exits)
    assert "positives among these they miss" in c.advice
    assert "What would make the FNR pass: an FNR of 0." in c.advice
    assert "make it pass" not in c.advice
    assert 0.3 < float(c.advice.split("an FNR of ")[1].split(" ")[0]) < 0.45
    assert ask(select, calib, with_fnr(fnr="0.45"))[1].status == "CERTIFIED"


def test_too_few_positives_are_counted_out():
    rng = np.random.default_rng(19)
    labels = (rng.random(900) < 0.02).astype(int)
    data = [from_margins([(2 * labels - 1) * rng.uniform(1, 4, 900)], labels) for _ in range(2)]
    _, c = ask(*data, with_fnr(fnr="0.05"))
    assert c.status == "INFEASIBLE"
    assert "a proof takes 59 positives even if none is missed" in c.advice
    assert "more labelled calibration images" in c.advice


def test_fnr_promises_fail_no_more_often_than_delta():
    """The same share of each class is wrong, so the true FNR is the true risk."""
    rng = np.random.default_rng(20)
    request = Request(Fraction(2, 5), Fraction(1, 10), Fraction(1, 5), fnr=Fraction(3, 20))
    bad = certified = 0
    for _ in range(4):
        select = honest(400, rng)
        rules = fit_rules(select)
        path = propose_path(select, rules, (1.0,), request, n_calib=1500)
        for _ in range(50):
            chosen = walk(path, rules, honest(1500, rng), (1.0,), request).chosen
            if chosen is not None:
                certified += 1
                bad += violates(rules, path[chosen], request.fnr)
    assert certified > 100
    assert bad / 200 <= limit(200)
