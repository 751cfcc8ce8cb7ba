"""SCRC for a whole cascade: which images it accepts, and prediction sets that hold among them.

In: what the compiled engines said on `val_select` and `val_calib`, and the promise asked for. Out:
the `Decision` and the `Certificate` of the policies `scrc-i` and `scrc-t`. Thresholds of the early
exits are fixed on `val_select` alone, so the cascade is one model to SCRC: an image's gate is its
score at the exit where it leaves, its nonconformity minus the margin of its true class there.
Both stand on the logit scale, where they order images as the probabilities do, and in float32, as
the runtime compares them. CALIBRATION, "SCRC"; Xu, Guo and Wei, arXiv 2512.12844 v2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec
import numpy as np

from cascade_calib import words
from cascade_calib.collect import Collected
from cascade_calib.metrics import Float64
from cascade_calib.path import Request, as_float32, outcomes, propose_path
from cascade_calib.prediction_sets import Selective
from cascade_calib.result import as_coverage
from cascade_calib.scaling import shortest_float32
from cascade_calib.scrc import fit_inductive, fit_transductive
from cascade_runtime.decision import Reason, Verdict, decide
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import (
    FLOAT32_MAX,
    AcceptRule,
    Certificate,
    Decision,
    ExitRule,
    SetCertificate,
)

_INF = float("inf")
_EVERYTHING = -FLOAT32_MAX  # below every finite score, and a number that JSON can hold


def certify_sets(
    select: Collected,
    calib: Collected,
    rules: Sequence[ExitRule],
    *,
    stage_costs: Sequence[float],
    request: Request,
) -> tuple[Decision, Certificate]:
    """Fit SCRC to the cascade that `rules` and `val_select` describe.

    Returns:
        The decision and its certificate, whose engines and binding the caller fills in.

    Raises:
        ConfigError: an FNR promise, which prediction sets do not make, or a coverage of 0.
    """
    if request.fnr is not None:
        raise ConfigError(
            f"--fnr promises something of single answers, and {request.policy} of prediction sets; "
            "ask for it under the policy certified, softmax or gate"
        )
    as_coverage(request.coverage)
    routed = _route(select, rules, stage_costs, request, len(calib))
    fitted = _fit(routed, request, calib, _ties(routed, request, select, len(calib)))
    decision = _decision(routed, request, fitted)
    return decision, _certificate(decision, calib, request, fitted)


def _route(
    select: Collected,
    rules: Sequence[ExitRule],
    stage_costs: Sequence[float],
    request: Request,
    n_calib: int,
) -> tuple[ExitRule, ...]:
    """Early exits as the cheapest thresholds that keep to alpha on `val_select`; the last is open.

    Nothing is proven here, and a poor choice breaks no promise: it only makes wider sets. Where no
    thresholds keep to alpha, the early exits stay shut.
    """
    path = propose_path(select, rules, stage_costs, request, n_calib=n_calib)
    seen = outcomes(select, rules, stage_costs, as_float32(path, len(rules)))
    accepted = np.maximum(seen.accepted, 1)
    risk = 0.5 * (seen.errors + 0.5) / (accepted + 1) + 0.5 * seen.expected / accepted
    good = np.flatnonzero(risk <= float(request.alpha))
    early = path[int(good[-1])][:-1] if len(good) else (None,) * (len(rules) - 1)
    taus = (*(None if t is None else shortest_float32(t) for t in early), _EVERYTHING)
    return tuple(
        msgspec.structs.replace(rule, tau_logit=tau) for rule, tau in zip(rules, taus, strict=True)
    )


def _fit(rules: tuple[ExitRule, ...], request: Request, calib: Collected, ties: int) -> Selective:
    gate, nonconformity = _seen(rules, request, calib)
    if request.policy == "scrc-t":
        return fit_transductive(gate, nonconformity, request.coverage, request.alpha)
    share = request.share
    return fit_inductive(gate, nonconformity, request.coverage, request.alpha, share, ties=ties)


def _seen(
    rules: tuple[ExitRule, ...], request: Request, data: Collected
) -> tuple[Float64, Float64]:
    """Gate and nonconformity of the true class where each image leaves, float64 [N] each.

    An image whose outputs are not finite is never accepted, and no set would hold for it.
    """
    verdict = decide(data.exits, _open(rules, request))
    lost = verdict.reason == Reason.NOT_FINITE
    towards = np.where(data.labels == 1, verdict.margin, -verdict.margin)
    gate = np.where(lost, np.float32(-np.inf), verdict.score_logit)
    return gate.astype(np.float64), np.where(lost, np.inf, -towards.astype(np.float64))


def _open(rules: tuple[ExitRule, ...], request: Request) -> Decision:
    """The cascade that accepts everything."""
    accept = AcceptRule(tau_logit=_EVERYTHING, set_logit_at=_EVERYTHING)
    return Decision(policy=request.policy, exits=rules, set_logit=_EVERYTHING, accept=accept)


def _ties(rules: tuple[ExitRule, ...], request: Request, select: Collected, n_calib: int) -> int:
    """How many calibration images may share a gate, judged on `val_select`; 0: all differ there."""
    gate = _seen(rules, request, select)[0]
    most = int(np.unique(gate[np.isfinite(gate)], return_counts=True)[1].max(initial=1))
    return 0 if most == 1 else ceil(2 * most * n_calib / max(1, len(select)))


def _decision(rules: tuple[ExitRule, ...], request: Request, fitted: Selective) -> Decision:
    """The fitted thresholds as the runtime's numbers; shut where nothing was proven."""
    if not _usable(fitted):
        shut = tuple(msgspec.structs.replace(rule, tau_logit=None) for rule in rules)
        return msgspec.structs.replace(_open(shut, request), set_logit=0.0)
    tau = np.float32(fitted.tau)  # exact: it is one of the float32 scores, or -inf
    strict = request.policy == "scrc-i"  # accepts above tau, that is from the next float32 on
    first = np.nextafter(tau, np.float32(np.inf)) if strict else tau
    q_at, q_above = (float(q) for q in fitted.limit(np.array([tau, np.inf])))
    return Decision(
        policy=request.policy,
        exits=rules,
        set_logit=_bar(q_above),
        accept=AcceptRule(
            tau_logit=shortest_float32(max(float(first), _EVERYTHING)), set_logit_at=_bar(q_at)
        ),
    )


def _usable(fitted: Selective) -> bool:
    """Whether some set can have less than both classes."""
    return fitted.status == "CERTIFIED" and float(fitted.limit(np.array([_INF]))[0]) < _INF


def _bar(q: float) -> float:
    """1 - p_y <= lambda is, on the logit scale, margin >= -q."""
    return shortest_float32(max(-q, _EVERYTHING))


def _certificate(
    decision: Decision, calib: Collected, request: Request, fitted: Selective
) -> Certificate:
    """The counts, taken from the runtime's own decision rule on the final numbers."""
    verdict = decide(calib.exits, decision)
    usable = _usable(fitted)
    counted = _counted(verdict, calib, fitted) if usable else _NOTHING
    acted, wrong = verdict.acted, verdict.acted & (verdict.label != calib.labels)
    n, k = len(calib), int(acted.sum())
    return Certificate(
        status="CERTIFIED" if usable else "INFEASIBLE",
        method=fitted.method,
        promise=words.set_promise(request) if usable else words.NO_PROMISE,
        advice="" if usable else fitted.advice,
        alpha=float(request.alpha),
        delta=None if request.policy == "scrc-t" else float(request.delta),
        claims=request.claims,
        coverage_floor=float(request.coverage),
        n=n,
        accepted=k,
        errors=int(wrong.sum()),
        risk_upper=1.0,
        coverage=k / n if n else 0.0,
        coverage_lower=0.0,
        exit_counts=tuple(
            int((acted & (verdict.stage == stage)).sum()) for stage in range(len(calib.exits))
        ),
        class_errors=tuple(int((wrong & (calib.labels == c)).sum()) for c in (0, 1)),
        class_accepted=tuple(int((acted & (calib.labels == c)).sum()) for c in (0, 1)),
        path_length=0,
        path_tested=0,
        calibration_sha256=calib.content_sha256,
        calibration_uses=1,
        engines={},
        binding="",
        sets=counted,
    )


_NOTHING = SetCertificate(
    accepted=0, misses=0, risk_upper=1.0, coverage=0.0, coverage_lower=0.0, ambiguous=0, empty=0
)


def _counted(verdict: Verdict, calib: Collected, fitted: Selective) -> SetCertificate:
    accepted = verdict.accepted
    missed = accepted & ~verdict.in_set[np.arange(len(calib)), calib.labels]
    m, misses = int(accepted.sum()), int(missed.sum())
    if not calib.not_finite and (m, misses) != (fitted.accepted, fitted.errors):
        raise RuntimeError(
            f"SCRC counts {(fitted.accepted, fitted.errors)}, the decision rule {(m, misses)}"
        )
    return SetCertificate(
        accepted=m,
        misses=misses,
        risk_upper=fitted.risk_upper,
        coverage=m / len(calib),
        coverage_lower=fitted.coverage_lower,
        ambiguous=int((verdict.reason == Reason.AMBIGUOUS).sum()),
        empty=int((verdict.reason == Reason.EMPTY).sum()),
    )
