"""Threshold vectors for a cascade: which to try, in which order, and how far the proof reaches.

In: outputs collected on `val_select` (to propose) and on `val_calib` (to test). Out: a path of
vectors from safest to cheapest, fixed before any calibration image is looked at, and the walk
along it: fixed-sequence testing, which stops at the first vector that is not proven.
CALIBRATION, "Certifying what is acted on"; Learn-then-Test, arXiv 2110.01052.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import TypeAlias

import msgspec
import numpy as np

from cascade_calib.arrays import Float64, Int64
from cascade_calib.bounds import at_least, binomial_p_values
from cascade_calib.collect import Collected
from cascade_calib.scaling import sigmoid
from cascade_runtime.decision import Float32, decide_exit, passes_on
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Decision, ExitRule, Policy

Thresholds: TypeAlias = tuple[float | None, ...]

SET_POLICIES = ("scrc-i", "scrc-t")
METHOD = "fixed-sequence exact binomial test"
CANDIDATES = 4096
PER_EXIT = 256
SET_LOGIT = 0.0  # lambda = 1/2: the set is the more probable class, and both where they tie
_CELLS = 4_000_000  # candidates x images held at once


@dataclass(frozen=True)
class Request:
    """The promise asked for: risk <= alpha, but for delta of the draws, and the coverage floor.

    With `fnr`, also FNR <= fnr among the positives acted on, both promises at once but for delta:
    each is tested at half of the certificate's share of it.

    `claims` certificates are asked of the same calibration images, one a target of the bundle, and
    each is tested at delta / claims (Bonferroni): the promise then holds whichever target runs,
    also where the certificates themselves decide which one that is.

    `policy` says which score an exit is judged by, or that prediction sets are promised instead:
    then alpha is their risk, coverage the share of images accepted (`certify_sets`).

    Raises:
        ConfigError: the policy does not make such a promise.
    """

    alpha: Fraction
    delta: Fraction
    coverage: Fraction
    claims: int = 1
    fnr: Fraction | None = None
    policy: Policy = "certified"

    def __post_init__(self) -> None:
        if self.policy not in SET_POLICIES:
            return
        if self.fnr is not None:
            raise ConfigError(
                f"--fnr promises something of single answers, and {self.policy} of prediction "
                "sets; ask for it under the policy certified, softmax or gate"
            )
        if not self.coverage:
            raise ConfigError(
                f"coverage is 0, and {self.policy} needs a share of images to accept, such as 0.7"
            )

    @property
    def share(self) -> Fraction:
        """The part of delta that one test may use."""
        return self.delta / self.claims / (1 if self.fnr is None else 2)


@dataclass(frozen=True)
class Outcomes:
    """What each of C threshold vectors does to N images; arrays [C].

    accepted: acted on by the whole cascade; errors: wrong among them; expected: their summed
    error probability by the scores' own word; cost: mean cost of the stages an image went through.
    positives: acted-on images of class 1; missed: those called 0. Counted only where asked for.
    """

    accepted: Int64
    errors: Int64
    expected: Float64
    cost: Float64
    images: int
    positives: Int64 | None = None
    missed: Int64 | None = None


@dataclass(frozen=True)
class Proposal:
    """A path, safest first, and what `val_select` expects of each of its C vectors; arrays [C].

    danger: the p-value that the test is expected to give; from 0.5 on, where no test is likely to
    pass, 0.5 + risk. cost: of an image, in the units of the stage costs. risk and coverage.
    """

    path: list[Thresholds]
    danger: Float64
    cost: Float64
    coverage: Float64
    risk: Float64

    def likely(self, share: Fraction) -> int:
        """The cheapest vector that is expected to pass at this share of delta, else the safest."""
        good = np.flatnonzero(self.danger <= float(share))
        return int(good[-1]) if len(good) else 0


@dataclass(frozen=True)
class Walk:
    """How far the test came: `passed` of the `tested` first vectors, and the one chosen of them."""

    outcomes: Outcomes
    p_values: Float64
    tested: int
    passed: int
    chosen: int | None
    fnr_p_values: Float64 | None = None

    @property
    def decisive(self) -> Float64:
        """The p-value of each vector: the larger one where two promises are asked for."""
        return (
            self.p_values
            if self.fnr_p_values is None
            else np.maximum(self.p_values, self.fnr_p_values)
        )


def outcomes(
    data: Collected,
    rules: Sequence[ExitRule],
    stage_costs: Sequence[float],
    tau: Float32,
    *,
    by_class: bool = False,
) -> Outcomes:
    """The cascade's behaviour under many threshold vectors, as `decision.decide` has it.

    Args:
        tau: float32 [C, S], +inf where the exit never answers.
        by_class: whether to count the positives, too.
    """
    exits = [_exit(data, rule, stage) for stage, rule in enumerate(rules)]
    n, step = len(data), max(1, _CELLS // max(1, len(data)))
    accepted = np.zeros(len(tau), dtype=np.int64)
    errors = np.zeros(len(tau), dtype=np.int64)
    positives, missed = np.zeros_like(accepted), np.zeros_like(accepted)
    expected, cost = np.zeros(len(tau)), np.zeros(len(tau))
    positive = data.labels == 1
    for start in range(0, len(tau), step):
        rows = slice(start, start + step)
        pending = np.ones((len(tau[rows]), n), dtype=np.bool_)
        for stage, (score, acts, wrong, doubt) in enumerate(exits):
            cost[rows] += pending.sum(axis=1) * float(stage_costs[stage])
            answered = pending & (score >= tau[rows, stage, None])
            accepted[rows] += (answered & acts).sum(axis=1)
            errors[rows] += (answered & wrong).sum(axis=1)
            expected[rows] += answered @ doubt
            if by_class:
                positives[rows] += (answered & acts & positive).sum(axis=1)
                missed[rows] += (answered & wrong & positive).sum(axis=1)
            pending &= ~answered
    counted = (positives, missed) if by_class else (None, None)
    return Outcomes(accepted, errors, expected, cost / max(1, n), n, *counted)


def propose_path(
    select: Collected,
    rules: Sequence[ExitRule],
    stage_costs: Sequence[float],
    request: Request,
    *,
    n_calib: int,
) -> list[Thresholds]:
    """The path of `propose`, alone."""
    return propose(select, rules, stage_costs, request, n_calib=n_calib).path


def propose(
    select: Collected,
    rules: Sequence[ExitRule],
    stage_costs: Sequence[float],
    request: Request,
    *,
    n_calib: int,
) -> Proposal:
    """Threshold vectors worth testing, safest first, each next one riskier and cheaper.

    Candidates are all combinations of each exit's score quantiles on `val_select`; the safer of
    two is the one whose test on `n_calib` images is expected to give the smaller p-value or, where
    neither is likely to pass, the one with the smaller risk. Risk is taken half as counted and half
    as the calibrated scores expect it: counted alone, the cheapest of many candidates without an
    error is the luckiest. In that order the path keeps what is cheaper than all before it, at
    equal cost what covers more. Every vector has enough coverage in hand that `n_calib` images
    will not show less than the floor by chance.

    Returns:
        The path and its figures; empty where there are no images, or no candidate reaches the
        coverage floor.
    """
    n = len(select)
    if not n or not n_calib:
        return Proposal([], *(np.zeros(0) for _ in range(4)))
    tau = _grid(select, rules)
    seen = outcomes(select, rules, stage_costs, tau, by_class=request.fnr is not None)
    coverage = seen.accepted / n
    floor = float(request.coverage)
    spare = 2 * np.sqrt(floor * (1 - floor) * (1 / n + 1 / n_calib))
    wanted = min(floor + spare, float(coverage.max(initial=0.0)))
    usable = (coverage >= wanted) & (seen.accepted >= at_least(request.coverage, n))
    k = np.maximum(seen.accepted, 1)
    risk = 0.5 * (seen.errors + 0.5) / (k + 1) + 0.5 * seen.expected / k
    danger = binomial_p_values(risk * coverage * n_calib, coverage * n_calib, request.alpha)
    if request.fnr is not None and seen.positives is not None and seen.missed is not None:
        rate, found = (seen.missed + 0.5) / (seen.positives + 1), seen.positives / n * n_calib
        danger = np.maximum(danger, binomial_p_values(rate * found, found, request.fnr))
    danger = np.where(danger < 0.5, danger, 0.5 + risk)  # hopeless p-values all round to 1
    order = [int(i) for i in np.lexsort((-coverage, seen.cost, danger)) if usable[i]]
    rows = cheaper_and_cheaper(order, list(zip(seen.cost, -coverage, strict=True)))
    path = [tuple(float(t) if np.isfinite(t) else None for t in tau[i]) for i in rows]
    return Proposal(path, danger[rows], seen.cost[rows], coverage[rows], risk[rows])


def cheaper_and_cheaper(order: Sequence[int], ranks: Sequence[tuple[float, ...]]) -> list[int]:
    """Of these, in their order, those that rank lower than all before them."""
    kept: list[int] = []
    for i in order:
        if not kept or ranks[i] < ranks[kept[-1]]:
            kept.append(i)
    return kept


def walk(
    path: Sequence[Thresholds],
    rules: Sequence[ExitRule],
    calib: Collected,
    stage_costs: Sequence[float],
    request: Request,
) -> Walk:
    """Test the path in its order and keep the cheapest proven vector above the coverage floor.

    The hypothesis at each vector is "the risk of what it acts on is above alpha", and with an FNR
    promise also "its FNR is above that"; stopping at the first that is not rejected keeps the
    chance of any false rejection at delta, with no division by the length of the path.
    """
    tau = as_float32(path, len(rules))
    seen = outcomes(calib, rules, stage_costs, tau, by_class=request.fnr is not None)
    p = binomial_p_values(seen.errors, seen.accepted, request.alpha)
    p_fnr = None
    if request.fnr is not None and seen.positives is not None and seen.missed is not None:
        p_fnr = binomial_p_values(seen.missed, seen.positives, request.fnr)
    passed = passed_first(p if p_fnr is None else np.maximum(p, p_fnr), request.share)
    chosen = cheapest_covering(seen.accepted[:passed], request.coverage, len(calib))
    return Walk(seen, p, min(passed + 1, len(path)), passed, chosen, p_fnr)


def passed_first(p_values: Float64, share: Fraction) -> int:
    """How many vectors pass before the first that does not (fixed-sequence testing)."""
    failures = np.flatnonzero(p_values > float(share))
    return int(failures[0]) if len(failures) else len(p_values)


def cheapest_covering(accepted: Int64, coverage: Fraction, n: int) -> int | None:
    """The last, so the cheapest, of the passed vectors that acts on enough of n images."""
    good = np.flatnonzero(accepted >= at_least(coverage, max(1, n)))
    return int(good[-1]) if len(good) else None


def as_float32(path: Sequence[Thresholds], exits: int) -> Float32:
    """Threshold vectors as float32 [C, S], None as +inf."""
    rows = [[np.inf if t is None else t for t in vector] for vector in path]
    return np.asarray(rows, dtype=np.float32).reshape(len(path), exits)


def always(rule: ExitRule) -> Decision:
    """A cascade of this one exit, which answers whatever its score."""
    exits = (msgspec.structs.replace(rule, tau_logit=float("-inf")),)
    return Decision(policy="certified", exits=exits, set_logit=SET_LOGIT)


def _exit(
    data: Collected, rule: ExitRule, stage: int
) -> tuple[Float32, np.ndarray, np.ndarray, Float64]:
    """Score (-inf: never answers), where it acts, where wrongly, and its error probability."""
    verdict = decide_exit(data.exits[stage], always(rule), 0)
    score = np.where(passes_on(verdict), np.float32(-np.inf), verdict.score_logit)
    wrong = verdict.acted & (verdict.label != data.labels)
    doubt = np.where(verdict.acted, sigmoid(-score.astype(np.float64)), 0.0)
    return score.astype(np.float32), verdict.acted, wrong, doubt


def _grid(select: Collected, rules: Sequence[ExitRule]) -> Float32:
    """All combinations of each exit's score quantiles, and +inf for all but the last exit."""
    per_exit = min(PER_EXIT, max(2, int(CANDIDATES ** (1 / len(rules)) + 1e-9)))
    columns = []
    for stage, rule in enumerate(rules):
        score = _exit(select, rule, stage)[0]
        ordered = np.sort(score[np.isfinite(score)])
        last = stage == len(rules) - 1
        picks = np.linspace(0, max(0, len(ordered) - 1), per_exit - (not last)).round()
        values = ordered[picks.astype(np.int64)] if len(ordered) else ordered
        columns.append(np.unique(values) if last else np.append(np.unique(values), np.inf))
    return np.array(list(product(*columns)), dtype=np.float32).reshape(-1, len(rules))
