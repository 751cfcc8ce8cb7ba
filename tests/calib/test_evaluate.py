import json
from dataclasses import replace
from fractions import Fraction
from io import StringIO

import msgspec
import numpy as np
import pytest
from populations import from_margins, honest
from rich.console import Console

from cascade_calib.bootstrap import Interval
from cascade_calib.borne_out import coverage_held, set_risk_held
from cascade_calib.certify_target import Request, certify_target
from cascade_calib.evaluate import conclusion, estimate, evaluate_collected, tables
from cascade_runtime.manifest import FLOAT32_MAX, AcceptRule, Decision, Preprocess, SetCertificate

REQUEST = Request(Fraction(1, 10), Fraction(1, 10), Fraction(1, 5))


@pytest.fixture(scope="module")
def certified():
    rng = np.random.default_rng(0)
    return certify_target(
        honest(600, rng, 2),
        honest(1500, rng, 2),
        stage_costs=(1.0, 1.0),
        request=REQUEST,
        preprocess=Preprocess(height=8, width=8),
        engines={},
    )


def look(seen, certified, **more):
    decision, certificate = certified
    return evaluate_collected(
        seen, decision, certificate, target="t", classes=("clear", "roadwork"), **more
    )


def test_counts_add_up_and_intervals_enclose_their_values(certified):
    result = look(honest(2000, np.random.default_rng(1), 2), certified)
    assert result.coverage.part == result.risk.of == sum(x.answered for x in result.exits)
    assert result.risk.part == sum(x.errors for x in result.exits)
    assert result.fnr.part + result.fpr.part == result.risk.part
    assert result.fnr.of + result.fpr.of == result.risk.of
    for x in (result.coverage, result.risk, result.fnr, result.fpr, result.full_accuracy):
        assert x.interval.low < x.value < x.interval.high
    assert result.full_accuracy.value == pytest.approx(0.75, abs=0.04)
    assert result.promise == "held"


def test_fnr_counts_positives_called_negative(certified):
    labels = np.array([1, 1, 1, 0])
    margins = np.array([9.0, 9.0, -9.0, -9.0])
    result = look(from_margins([margins, margins], labels), certified)
    assert (result.fnr.part, result.fnr.of) == (1, 3)
    assert (result.fpr.part, result.fpr.of) == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "n", "says"),
    [(5, 100, "held"), (12, 100, "not contradicted"), (30, 100, "contradicted")],
)
def test_promise_is_judged_with_allowance_for_chance(certified, wrong, n, says):
    labels = np.ones(n)
    margins = np.where(np.arange(n) < wrong, -9.0, 9.0)
    result = look(from_margins([margins, margins], labels), certified)
    assert result.promise == says
    assert f"{wrong} % of the {n} images" in conclusion(result)


def test_infeasible_target_carries_no_promise(certified):
    decision, certificate = certified
    closed = msgspec.structs.replace(
        decision,
        exits=tuple(msgspec.structs.replace(r, tau_logit=None) for r in decision.exits),
    )
    never = (closed, msgspec.structs.replace(certificate, status="INFEASIBLE"))
    result = look(honest(100, np.random.default_rng(2), 2), never)
    assert result.promise == "no promise"
    assert result.to_dict()["risk"]["value"] is None
    assert "defers every image" in conclusion(result)


def test_calibration_images_are_recognised(certified):
    seen = honest(300, np.random.default_rng(3), 2)
    decision, certificate = certified
    own = msgspec.structs.replace(certificate, calibration_sha256=seen.content_sha256)
    assert "confirms nothing" in conclusion(look(seen, (decision, own)))
    assert "confirms nothing" not in conclusion(look(seen, certified))


def test_groups_widen_the_intervals(certified):
    seen = honest(400, np.random.default_rng(4), 2)
    order = np.argsort(np.abs(seen.exits[0].gate))  # neighbours alike, as frames of a video are
    seen = replace(seen, exits=[out.take(order) for out in seen.exits], labels=seen.labels[order])
    grouped = replace(seen, groups=tuple(f"v{i // 40}" for i in range(400)))
    alone, together = look(seen, certified).coverage, look(grouped, certified).coverage
    width = together.interval.high - together.interval.low
    assert width > 1.5 * (alone.interval.high - alone.interval.low)


def test_json_is_valid_and_tables_name_the_classes(certified):
    result = look(honest(200, np.random.default_rng(5), 2), certified, skipped=3)
    back = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert back["risk"]["of"] == result.risk.of
    assert set(back["coverage"]["interval"]) == {"low", "high"}
    text = StringIO()
    console = Console(file=text, width=110)
    for table in tables(result):
        console.print(table)
    assert "roadwork called clear" in text.getvalue()
    assert "3 images could not be read" in conclusion(result)


def test_outputs_that_are_not_finite_are_counted(certified):
    seen = honest(200, np.random.default_rng(6), 2)
    for out in seen.exits:
        out.logits[:5] = np.nan
    result = look(seen, certified)
    assert result.not_finite == 5
    assert result.coverage.part <= 195


def test_no_error_seen_does_not_give_an_interval_of_no_width():
    top, bottom = np.zeros(300, np.bool_), np.ones(300, np.bool_)
    found = estimate(top, bottom, Interval(0.0, 0.0))
    assert found.interval.low == 0.0
    assert found.interval.high == pytest.approx(1 - 0.025 ** (1 / 300))


@pytest.mark.parametrize(
    ("missed", "says", "word"),
    [
        (5, "held", "FNR promise held"),
        (13, "not contradicted", "FNR is not contradicted"),
        (40, "contradicted", "FNR is CONTRADICTED"),
    ],
)
def test_a_promised_fnr_is_judged_beside_the_risk(certified, missed, says, word):
    decision, certificate = certified
    promising = msgspec.structs.replace(certificate, fnr_promised=0.1, fnr_upper=0.1)
    labels = np.repeat([1, 0], [100, 900])
    margins = np.where(labels == 1, 9.0, -9.0)
    margins[:missed] = -9.0
    result = look(from_margins([margins, margins], labels), (decision, promising))
    assert (result.promise, result.fnr_promise, result.fnr_promised) == ("held", says, 0.1)
    assert word in conclusion(result)
    assert f"{missed} % of the 100 positives" in conclusion(result)


def test_no_fnr_promise_is_not_spoken_of_and_mcc_is_of_the_acted_on(certified):
    labels = np.array([1, 1, 0, 0])
    margins = np.array([9.0, 9.0, -9.0, 9.0])
    result = look(from_margins([margins, margins], labels), certified)
    assert result.fnr_promise is None
    assert "FNR" not in conclusion(result)
    assert result.mcc == pytest.approx(1 / np.sqrt(3))


@pytest.mark.parametrize(
    ("policy", "missed", "says"),
    [("scrc-t", 2, "held"), ("scrc-i", 13, "not contradicted"), ("scrc-i", 40, "contradicted")],
)
def test_promise_of_sets_is_judged_by_their_risk(certified, policy, missed, says):
    """100 accepted and acted on, 10 accepted with both classes in their set, the rest not."""
    rule = msgspec.structs.replace(
        certified[0].exits[0], score="gate", platt_a=1.0, platt_b=0.0, temperature=1.0
    )
    exits = (
        msgspec.structs.replace(rule, tau_logit=None),
        msgspec.structs.replace(rule, tau_logit=-FLOAT32_MAX),
    )
    accept = AcceptRule(tau_logit=0.0, set_logit_at=-1.0)
    decision = Decision(policy=policy, exits=exits, set_logit=-1.0, accept=accept)
    margins = np.repeat([9.0, 0.5, 9.0], [100, 10, 50])
    labels = np.ones(160, np.int64)
    labels[:missed] = 0
    gate = np.repeat([1.0, 1.0, -1.0], [100, 10, 50])
    seen = from_margins([margins, margins], labels, [gate, gate])
    result = look(seen, (decision, certified[1]))
    assert (result.accepted.part, result.accepted.of) == (110, 160)
    assert (result.set_risk.part, result.set_risk.of) == (missed, 110)
    assert (result.ambiguous.part, result.risk.of) == (10, 100)
    assert result.promise == says
    assert "110 sets of accepted images lack the true class" in conclusion(result)
    assert json.dumps(result.to_dict(), allow_nan=False)
    text = StringIO()
    Console(file=text, width=110).print(tables(result)[0])
    assert "set risk" in text.getvalue() and "ambiguous" in text.getvalue()


def sets_certificate(certified, delta, accepted=700):
    sets = SetCertificate(
        accepted=accepted,
        misses=30,
        risk_upper=0.05,
        coverage=0.7,
        coverage_lower=0.7,
        ambiguous=0,
        empty=0,
    )
    return msgspec.structs.replace(
        certified[1], alpha=0.05, delta=delta, coverage_floor=0.7, sets=sets
    )


def test_risk_of_one_calibration_above_a_promised_mean_is_no_contradiction(certified):
    """Of SCRC-T's calibrations about half lie above alpha: exactly Beta(b + 1, m - b)."""
    c = sets_certificate(certified, None)
    rng = np.random.default_rng(0)
    allowed = 35  # floor(701 * .05)
    risks = rng.beta(allowed, 701 - allowed, 400)
    words = [set_risk_held(c, int(rng.binomial(5000, r)), 5000) for r in risks]
    assert words.count("contradicted") / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert words.count("not contradicted") > 100
    strict = sets_certificate(certified, 0.1)
    sterner = [set_risk_held(strict, int(rng.binomial(5000, r)), 5000) for r in risks]
    assert sterner.count("contradicted") / 400 > 0.15


def test_promised_share_of_accepted_images_is_judged(certified):
    c = sets_certificate(certified, 0.1)
    assert coverage_held(c, 700, 1000) == "held"
    assert coverage_held(c, 690, 1000) == "not contradicted"
    assert coverage_held(c, 76, 1000) == "contradicted"
    assert coverage_held(c, 0, 0) == "nothing to judge"
    assert coverage_held(sets_certificate(certified, None), 76, 1000) is None
    assert coverage_held(certified[1], 76, 1000) is None
