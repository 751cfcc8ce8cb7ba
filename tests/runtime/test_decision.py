"""The decision rule: what answers, what defers, and that early exit changes no decision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade_runtime.decision import ExitOutputs, Reason, Verdict, decide, decide_exit
from cascade_runtime.errors import BundleError
from cascade_runtime.manifest import AcceptRule, Decision, ExitRule, StageInput
from cascade_runtime.stages import Stages

from .conftest import gate_rule


def outputs(logits: list[tuple[float, float]], gate: list[float]) -> ExitOutputs:
    return ExitOutputs(np.array(logits, np.float32).reshape(-1, 2), np.array(gate, np.float32))


def single(tau: float | None, set_logit: float = 0.0) -> Decision:
    rule = ExitRule(score="gate", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=tau)
    return Decision(policy="certified", exits=(rule,), set_logit=set_logit)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gate_that_is_not_finite_defers(bad: float) -> None:
    verdict = decide([outputs([(0.0, 5.0)], [bad])], single(-1e30))
    assert (verdict.label[0], verdict.reason[0]) == (-1, Reason.NOT_FINITE)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0), (3e38, -3e38)])
def test_logits_that_are_not_finite_defer(bad: tuple[float, float]) -> None:
    verdict = decide([outputs([bad], [9.0])], single(0.0))
    assert (verdict.label[0], verdict.reason[0]) == (-1, Reason.NOT_FINITE)


@pytest.mark.parametrize("gate", [0.0, 3e38])
def test_threshold_of_infinity_never_answers(gate: float) -> None:
    verdict = decide([outputs([(0.0, 5.0)], [gate])], single(None))
    assert (verdict.label[0], verdict.reason[0]) == (-1, Reason.BELOW_THRESHOLD)


def test_score_equal_to_the_threshold_answers() -> None:
    tau = float(np.float32(0.3))
    scores = [np.nextafter(np.float32(tau), np.float32(-1)), tau]
    verdict = decide([outputs([(0.0, 5.0)] * 2, scores)], single(tau))
    assert verdict.label.tolist() == [-1, 1]


def test_wide_set_is_ambiguous_and_narrow_set_can_be_empty() -> None:
    close = [outputs([(0.0, 0.5)], [9.0])]
    wide, narrow = decide(close, single(0.0, -1.0)), decide(close, single(0.0, 1.0))
    assert (wide.reason[0], wide.in_set[0].tolist()) == (Reason.AMBIGUOUS, [True, True])
    assert (narrow.reason[0], narrow.in_set[0].tolist()) == (Reason.EMPTY, [False, False])


def test_even_logits_are_ambiguous_at_lambda_one_half() -> None:
    assert decide([outputs([(1.0, 1.0)], [9.0])], single(0.0)).reason[0] == Reason.AMBIGUOUS


def test_exit_that_answers_without_a_singleton_is_final() -> None:
    decision = Decision(policy="certified", exits=single(0.0).exits * 2, set_logit=-1.0)
    unsure, sure = outputs([(0.0, 0.5)], [9.0]), outputs([(0.0, 5.0)], [9.0])
    verdict = decide([unsure, sure], decision)
    assert (verdict.stage[0], verdict.reason[0]) == (0, Reason.AMBIGUOUS)


def test_softmax_score_is_the_absolute_margin() -> None:
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=2.0, tau_logit=1.0)
    decision = Decision(policy="softmax", exits=(rule,), set_logit=0.0)
    verdict = decide_exit(outputs([(2.0, 0.0), (0.0, 1.5), (0.0, 2.5)], [0, 0, 0]), decision, 0)
    assert verdict.label.tolist() == [0, -1, 1]


def accepting(tau: float, at: float) -> Decision:
    """One exit that always answers, and SCRC's own threshold behind it; sets bounded at 1."""
    accept = AcceptRule(tau_logit=tau, set_logit_at=at)
    return Decision(policy="scrc-t", exits=single(-9.0).exits, set_logit=1.0, accept=accept)


def test_image_that_leaves_below_the_accepting_threshold_is_deferred_there() -> None:
    decision = accepting(0.5, 1.0)
    twice = Decision(
        policy="scrc-t", exits=decision.exits * 2, set_logit=1.0, accept=decision.accept
    )
    sure = outputs([(0.0, 5.0)], [9.0])
    verdict = decide([outputs([(0.0, 5.0)], [0.25]), sure], twice)
    assert (verdict.label[0], verdict.stage[0], verdict.reason[0]) == (-1, 0, Reason.NOT_ACCEPTED)
    assert not verdict.accepted[0]


def test_score_at_the_accepting_threshold_has_the_other_set_bound() -> None:
    above = np.nextafter(np.float32(0.5), np.float32(1))
    verdict = decide([outputs([(0.0, 2.0)] * 2, [0.5, above])], accepting(0.5, 3.0))
    assert verdict.reason.tolist() == [Reason.EMPTY, Reason.ACTED]
    verdict = decide([outputs([(0.0, 2.0)] * 2, [0.5, above])], accepting(0.5, -3.0))
    assert verdict.reason.tolist() == [Reason.AMBIGUOUS, Reason.ACTED]
    assert verdict.accepted.all()


@dataclass
class Table:
    """An engine that answers from a table. An image's pixels are its row there, its tokens -row."""

    exits: ExitOutputs
    last: bool  # whether it gives no tokens
    takes: StageInput | None = None  # None: the one or the other

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        kind = "pixels" if batch.dtype == np.uint8 else "tokens"
        assert (batch.ndim, batch.dtype) == ((4, np.uint8) if kind == "pixels" else (3, np.float32))
        assert self.takes in (None, kind)
        first = batch.reshape(len(batch), -1)[:, 0]
        rows = (first if kind == "pixels" else -first).astype(np.intp)
        found = {"logits": self.exits.logits[rows], "gate": self.exits.gate[rows]}
        if not self.last:
            found["tokens"] = -rows.astype(np.float32).reshape(-1, 1, 1)
        return found


def reference(exits: list[ExitOutputs], decision: Decision, row: int) -> tuple[int, int, int]:
    """Label, stage and reason of one image, one step at a time and in plain words."""
    f = np.float32
    outcome = (-1, 0, Reason.BELOW_THRESHOLD)
    for stage, (out, rule) in enumerate(zip(exits, decision.exits, strict=True)):
        m = (out.logits[row, 1] - out.logits[row, 0]) / f(rule.temperature)
        score = f(rule.platt_a) * out.gate[row] + f(rule.platt_b)
        if rule.score == "softmax":
            score = abs(m)
        if not (math.isfinite(m) and math.isfinite(score)):
            outcome = (-1, stage, Reason.NOT_FINITE)
            continue
        if rule.tau_logit is None or not score >= f(rule.tau_logit):
            outcome = (-1, stage, Reason.BELOW_THRESHOLD)
            continue
        bar = f(decision.set_logit)
        if decision.accept is not None:
            if not score >= f(decision.accept.tau_logit):
                return -1, stage, Reason.NOT_ACCEPTED
            if score == f(decision.accept.tau_logit):
                bar = f(decision.accept.set_logit_at)
        in_set = [y for y, side in ((0, -m), (1, m)) if side >= bar]
        if len(in_set) == 1:
            return in_set[0], stage, Reason.ACTED
        return -1, stage, Reason.AMBIGUOUS if in_set else Reason.EMPTY
    return outcome


# A coarse grid makes ties and exact hits of a threshold common; wild values make NaN and overflow.
_grid = st.integers(-8, 8).map(lambda i: i / 4)
_wild = st.one_of(_grid, st.floats(width=32))
_rules = st.builds(
    ExitRule,
    score=st.sampled_from(["gate", "softmax"]),
    platt_a=st.sampled_from([0.5, 1.0, 1.7]),
    platt_b=_grid,
    temperature=st.sampled_from([0.5, 1.0, 1.3]),
    tau_logit=st.one_of(st.none(), _grid),
)


@st.composite
def cascades(draw: st.DrawFn) -> tuple[list[ExitOutputs], Decision]:
    rules = tuple(draw(st.lists(_rules, min_size=1, max_size=3)))
    accept = draw(st.none() | st.builds(AcceptRule, tau_logit=_grid, set_logit_at=_grid))
    policy = "certified" if accept is None else "scrc-t"
    decision = Decision(policy=policy, exits=rules, set_logit=draw(_grid), accept=accept)
    count = draw(st.integers(0, 40))
    exits = [
        ExitOutputs(
            draw(hnp.arrays(np.float32, (count, 2), elements=_wild)),
            draw(hnp.arrays(np.float32, count, elements=_wild)),
        )
        for _ in rules
    ]
    return exits, decision


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=150)
@given(cascades())
def test_early_exit_decides_as_one_image_at_a_time(
    case: tuple[list[ExitOutputs], Decision],
) -> None:
    exits, decision = case
    count = len(exits[0].gate)
    stages = Stages([Table(e, e is exits[-1]) for e in exits])
    pixels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    verdict = stages.forward(pixels, decision)
    found = list(zip(verdict.label, verdict.stage, verdict.reason, strict=True))
    assert found == [reference(exits, decision, row) for row in range(count)]
    _assert_same(verdict, decide(stages.forward_all(pixels), decision))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=150)
@given(cascades(), st.data())
def test_early_exit_decides_the_same_whatever_the_stages_take(
    case: tuple[list[ExitOutputs], Decision], data: st.DataObject
) -> None:
    exits, decision = case
    count, kinds = len(exits[0].gate), st.sampled_from(["pixels", "tokens"])
    inputs: list[StageInput] = ["pixels", *(data.draw(kinds) for _ in exits[1:])]
    handed = [kind == "tokens" for kind in inputs[1:]] + [False]
    spare = data.draw(st.booleans())  # tokens that nobody takes
    tables = [
        Table(out, not (hands or spare), kind)
        for out, hands, kind in zip(exits, handed, inputs, strict=True)
    ]
    stages = Stages(tables, inputs=inputs)
    pixels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    verdict = stages.forward(pixels, decision)
    found = list(zip(verdict.label, verdict.stage, verdict.reason, strict=True))
    assert found == [reference(exits, decision, row) for row in range(count)]
    _assert_same(verdict, decide(stages.forward_all(pixels), decision))


def _assert_same(first: Verdict, second: Verdict) -> None:
    for field in ("label", "stage", "reason", "in_set", "score_logit", "margin"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field), field)


def test_only_images_that_did_not_exit_reach_the_next_stage() -> None:
    exits = [outputs([(0.0, 5.0)] * 5, [9, -9, 9, -9, -9]), outputs([(5.0, 0.0)] * 5, [9] * 5)]
    decision = Decision(policy="certified", exits=(gate_rule(0.0), gate_rule(0.0)), set_logit=0.0)
    seen: list[tuple[int, int]] = []
    pixels = np.arange(5, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    stages = Stages([Table(exits[0], False), Table(exits[1], True)])
    verdict = stages.forward(pixels, decision, lambda stage, n, _: seen.append((stage, n)))
    assert seen == [(0, 5), (1, 3)]
    assert verdict.label.tolist() == [1, 0, 1, 0, 0]


def test_only_images_that_did_not_exit_reach_the_second_model() -> None:
    exits = [outputs([(0.0, 5.0)] * 5, [9, -9, 9, -9, -9]), outputs([(5.0, 0.0)] * 5, [9] * 5)]
    decision = Decision(policy="certified", exits=(gate_rule(0.0), gate_rule(0.0)), set_logit=0.0)
    seen: list[tuple[int, int]] = []
    pixels = np.arange(5, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    tables = [Table(out, True, "pixels") for out in exits]
    stages = Stages(tables, inputs=("pixels", "pixels"))
    verdict = stages.forward(pixels, decision, lambda stage, n, _: seen.append((stage, n)))
    assert seen == [(0, 5), (1, 3)]
    assert verdict.label.tolist() == [1, 0, 1, 0, 0]


def test_stage_that_gives_no_tokens_to_one_that_takes_them_is_refused() -> None:
    out = outputs([(0.0, 5.0)], [9])
    stages = Stages([Table(out, True)] * 2)
    with pytest.raises(BundleError, match="stage 0: output 'tokens' is missing"):
        stages.forward_all(np.zeros((1, 1, 1, 3), np.uint8))


@pytest.mark.parametrize("inputs", [(), ("pixels",), ("tokens", "pixels"), ("pixels",) * 3])
def test_inputs_that_do_not_fit_the_engines_are_refused(inputs: tuple[StageInput, ...]) -> None:
    table = Table(outputs([(0.0, 5.0)], [9]), False)
    with pytest.raises(ValueError, match="needs one an engine and pixels first"):
        Stages([table, table], inputs=inputs)
