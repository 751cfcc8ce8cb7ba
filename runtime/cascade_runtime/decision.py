"""From the exits' outputs to decisions: the one home of the rule that is certified.

Everything is compared on the logit scale in float32: `sigmoid` is monotone, so `score >= tau` and
`score_logit >= tau_logit` are the same statement, and the second needs only multiply, add,
divide and compare, which IEEE 754 fixes to the bit. A C reader therefore decides identically.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cascade_runtime.manifest import AcceptRule, Decision, ExitRule

Float32: TypeAlias = npt.NDArray[np.float32]
Int8: TypeAlias = npt.NDArray[np.int8]
Bool: TypeAlias = npt.NDArray[np.bool_]


class Reason(IntEnum):
    """Why an image was deferred; ACTED when it was not."""

    ACTED = 0
    BELOW_THRESHOLD = 1
    AMBIGUOUS = 2
    EMPTY = 3
    NOT_FINITE = 4
    NOT_ACCEPTED = 5


@dataclass(frozen=True)
class ExitOutputs:
    """What one exit gives for B images: logits float32 [B, 2], gate float32 [B]."""

    logits: Float32
    gate: Float32

    def take(self, index: npt.NDArray[np.intp] | slice) -> ExitOutputs:
        return ExitOutputs(self.logits[index], self.gate[index])


@dataclass(frozen=True)
class Verdict:
    """Decisions for B images: label int8 [B] (-1 deferred), stage, reason, and both set members."""

    label: Int8
    stage: Int8
    reason: Int8
    in_set: Bool  # [B, 2]
    score_logit: Float32
    margin: Float32  # [B], calibrated logit of class 1

    @property
    def acted(self) -> Bool:
        return self.label >= 0

    @property
    def accepted(self) -> Bool:
        """Where some exit answered, with whatever set: acted on, ambiguous or empty."""
        return _any_of(self.reason, (Reason.ACTED, Reason.AMBIGUOUS, Reason.EMPTY))


def margin(outputs: ExitOutputs, rule: ExitRule) -> Float32:
    """Temperature-scaled logit of class 1, float32 [B]: (l1 - l0) / T."""
    difference = outputs.logits[:, 1] - outputs.logits[:, 0]
    return np.asarray(difference / np.float32(rule.temperature), dtype=np.float32)


def score_logit(outputs: ExitOutputs, rule: ExitRule) -> Float32:
    """The exit score on the logit scale, float32 [B]; higher is more trusted."""
    if rule.score == "softmax":
        return np.abs(margin(outputs, rule))
    scaled = np.float32(rule.platt_a) * outputs.gate
    return np.asarray(scaled + np.float32(rule.platt_b), dtype=np.float32)


def answers(score: Float32, rule: ExitRule) -> Bool:
    """Where the exit answers: score >= tau, written so that NaN never does."""
    if rule.tau_logit is None:
        return np.zeros(score.shape, dtype=np.bool_)
    return np.asarray(score >= np.float32(rule.tau_logit), dtype=np.bool_)


def accepts(score: Float32, accept: AcceptRule | None) -> Bool:
    """Where an image that leaves here is accepted; everywhere if the policy does not ask."""
    if accept is None:
        return np.ones(score.shape, dtype=np.bool_)
    return np.asarray(score >= np.float32(accept.tau_logit), dtype=np.bool_)


def set_bar(score: Float32, decision: Decision) -> Float32:
    """logit(1 - lambda) for each image, float32 [B]: another one exactly at SCRC's threshold."""
    bar = np.full(score.shape, decision.set_logit, dtype=np.float32)
    if decision.accept is not None:
        at = score == np.float32(decision.accept.tau_logit)
        bar[at] = np.float32(decision.accept.set_logit_at)
    return bar


def prediction_set(m: Float32, bar: Float32) -> Bool:
    """bool [B, 2]: y is in the set iff 1 - p_y <= lambda, that is +-margin >= logit(1 - lambda)."""
    return np.stack([-m >= bar, m >= bar], axis=1)


def decide_exit(outputs: ExitOutputs, decision: Decision, stage: int) -> Verdict:
    """The verdict of one exit alone; reason BELOW_THRESHOLD or NOT_FINITE where it passes on."""
    rule = decision.exits[stage]
    m = margin(outputs, rule)
    score = score_logit(outputs, rule)
    members = prediction_set(m, set_bar(score, decision))
    reason = np.full(len(m), Reason.ACTED, dtype=np.int8)
    for where, why in (  # a later one goes before an earlier one
        (~(members[:, 0] | members[:, 1]), Reason.EMPTY),
        (members[:, 0] & members[:, 1], Reason.AMBIGUOUS),
        (~accepts(score, decision.accept), Reason.NOT_ACCEPTED),
        (~answers(score, rule), Reason.BELOW_THRESHOLD),
        (~(np.isfinite(score) & np.isfinite(m)), Reason.NOT_FINITE),
    ):
        reason[where] = why
    label = np.where(reason == Reason.ACTED, members[:, 1], -1).astype(np.int8)
    stages = np.full(len(m), stage, dtype=np.int8)
    return Verdict(label, stages, reason, members, score, m)


def decide(exits: list[ExitOutputs], decision: Decision) -> Verdict:
    """The cascade's verdict from every exit's outputs: the first exit that answers is final.

    An exit that answers with no singleton defers the image; later exits are not asked.
    """
    if len(exits) != len(decision.exits):
        raise ValueError(f"{len(exits)} exits' outputs for a decision of {len(decision.exits)}")
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite defers
        parts = [decide_exit(outputs, decision, stage) for stage, outputs in enumerate(exits)]
    verdict = parts[-1]
    for part in reversed(parts[:-1]):
        verdict = _where(passes_on(part), verdict, part)
    return verdict


def _where(choose_later: Bool, later: Verdict, earlier: Verdict) -> Verdict:
    """Row by row, the later verdict where `choose_later`, else the earlier one."""
    pair = {
        field.name: np.where(
            choose_later if field.name != "in_set" else choose_later[:, None],
            getattr(later, field.name),
            getattr(earlier, field.name),
        )
        for field in fields(Verdict)
    }
    return Verdict(**pair)


def passes_on(verdict: Verdict) -> Bool:
    """Where an exit did not answer and the next one is asked."""
    return _any_of(verdict.reason, (Reason.BELOW_THRESHOLD, Reason.NOT_FINITE))


def _any_of(reason: Int8, wanted: tuple[Reason, ...]) -> Bool:
    """Where it is one of a few; `np.isin` takes ten times as long on a batch."""
    found = np.zeros(reason.shape, dtype=np.bool_)
    for one in wanted:
        found |= reason == one
    return found
