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
from cascade_calib.bounds import clopper_pearson_lower
from cascade_calib.collect import Collected
from cascade_calib.metrics import Float64
from cascade_calib.path import Request, as_float32, outcomes, propose_path
from cascade_calib.prediction_sets import Selective
from cascade_calib.scaling import shortest_float32
from cascade_calib.scrc import fit_inductive, fit_transductive
from cascade_runtime.decision import Reason, Verdict, decide
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
    """
    routed = _route(select, rules, stage_costs, request, len(calib))
    gate, nonconformity = _seen(routed, request, calib)
    if request.policy == "scrc-t":
        fitted: Selective = fit_transductive(gate, nonconformity, request.coverage, request.alpha)
    else:
        ties = _ties(_seen(routed, request, select)[0], request, len(calib))
        fitted = fit_inductive(
            gate, nonconformity, request.coverage, request.alpha, request.share, ties=ties
        )
    usable = _usable(fitted, request)
    decision = _decision(routed, request, fitted, usable)
    lost = int(np.isneginf(gate).sum())
    advice = "" if usable else words.set_advice(request, len(calib), lost)
    return decision, _certificate(decision, calib, request, fitted, advice)


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


def _ties(gate: Float64, request: Request, n_calib: int) -> int:
    """How many calibration images may share the gate value at which the accepted are cut off.

    Judged by the selection images around that rank. At least 1, however few ties are seen there:
    that costs one image more, and the promised coverage then holds whatever the ties are.
    """
    ordered, n = np.sort(gate[np.isfinite(gate)])[::-1], max(1, len(gate))
    rank, spread = float(request.coverage), 3 * float(np.sqrt(0.25 / n))
    first, last = (int(np.clip(n * (rank + d), 0, len(ordered))) for d in (-spread, spread))
    _, counts = np.unique(ordered[first:last], return_counts=True)
    most = int(counts.max(initial=1))
    return 1 if most == 1 else ceil(2 * most * n_calib / n)


def _decision(
    rules: tuple[ExitRule, ...], request: Request, fitted: Selective, usable: bool
) -> Decision:
    """The fitted thresholds as the runtime's numbers; shut where nothing was proven."""
    if not usable:
        shut = tuple(msgspec.structs.replace(rule, tau_logit=None) for rule in rules)
        return msgspec.structs.replace(_open(shut, request), set_logit=0.0)
    tau = np.float32(fitted.tau)  # exact: it is one of the float32 scores, or -inf
    strict = request.policy == "scrc-i"  # accepts above tau, that is from the next float32 on
    first = float(np.nextafter(tau, np.float32(np.inf)) if strict else tau)
    q_at, q_above = (float(q) for q in fitted.limit(np.array([tau, np.inf])))
    accept = AcceptRule(
        tau_logit=_EVERYTHING if first <= _EVERYTHING else shortest_float32(first),
        set_logit_at=_bar(q_at),
    )
    return Decision(policy=request.policy, exits=rules, set_logit=_bar(q_above), accept=accept)


def _usable(fitted: Selective, request: Request) -> bool:
    """Whether some set can have less than both classes, and what is promised is proven.

    That some images give no finite outputs makes "no gate" a value that many may share, so the
    coverage of SCRC-I is asked of what is really accepted (at least the rank for it, and one more).
    """
    if fitted.status != "CERTIFIED" or float(fitted.limit(np.array([_INF]))[0]) == _INF:
        return False
    if request.policy == "scrc-t":
        return True
    proven = clopper_pearson_lower(fitted.accepted, fitted.n, request.share)
    return proven >= float(request.coverage)


def _bar(q: float) -> float:
    """1 - p_y <= lambda is, on the logit scale, margin >= -q."""
    return _EVERYTHING if -q <= _EVERYTHING else shortest_float32(0.0 - q)  # 0, never -0


def _certificate(
    decision: Decision, calib: Collected, request: Request, fitted: Selective, advice: str
) -> Certificate:
    """The counts, taken from the runtime's own decision rule on the final numbers."""
    verdict = decide(calib.exits, decision)
    usable = not advice
    counted = _counted(verdict, calib, fitted) if usable else _NOTHING
    acted, wrong = verdict.acted, verdict.acted & (verdict.label != calib.labels)
    n, k = len(calib), int(acted.sum())
    return Certificate(
        status="CERTIFIED" if usable else "INFEASIBLE",
        method=fitted.method,
        promise=words.set_promise(request) if usable else words.NO_PROMISE,
        advice=advice,
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
        coverage_lower=fitted.coverage_lower if np.isfinite(fitted.tau) else 0.0,
        ambiguous=int((verdict.reason == Reason.AMBIGUOUS).sum()),
        empty=int((verdict.reason == Reason.EMPTY).sum()),
    )
