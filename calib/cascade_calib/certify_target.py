"""The certificate of a bundle: from collected outputs to thresholds whose promise is proven.

In: what the compiled engines said on `val_select` and on `val_calib`, and the promise asked for.
Out: the `Decision` that the runtime follows and the `Certificate` that says what is proven about
it, or, when nothing is proven, a decision that defers every image and a certificate that says what
it would take. CALIBRATION, "Certifying what is acted on".
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from cascade_calib import words
from cascade_calib.bounds import clopper_pearson_lower, clopper_pearson_upper
from cascade_calib.certify_sets import certify_sets
from cascade_calib.collect import Collected
from cascade_calib.metrics import augrc
from cascade_calib.path import (
    METHOD,
    SET_LOGIT,
    SET_POLICIES,
    Request,
    Thresholds,
    Walk,
    propose_path,
    walk,
)
from cascade_calib.scaling import fit_platt, fit_temperature, shortest_float32
from cascade_runtime.decision import decide, score_logit
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import (
    Certificate,
    Decision,
    ExitRule,
    Policy,
    Preprocess,
    ScoreKind,
    StageInput,
    binding,
)

__all__ = [
    "Request",
    "certify_target",
    "conclude",
    "decision_of",
    "fit_rules",
    "propose_path",
    "tied",
    "walk",
]


def certify_target(
    select: Collected,
    calib: Collected,
    *,
    stage_costs: Sequence[float],
    request: Request,
    preprocess: Preprocess,
    engines: dict[str, str],
    inputs: Sequence[StageInput] = (),
    calibration_uses: int = 1,
) -> tuple[Decision, Certificate]:
    """Choose and prove the thresholds of one target of a bundle.

    Args:
        stage_costs: what running each stage on one image costs, in any one unit.
        engines: path in the bundle to SHA-256, of the engines that `select` and `calib` came from.
        inputs: what each of them takes (`manifest.stage_inputs`); may be left out for one network.
        calibration_uses: how often these calibration images have been asked, this time included.

    Returns:
        The decision and its certificate; status INFEASIBLE with every threshold None when the
        promise could not be proven.

    Raises:
        DataError: `select` and `calib` are the same images.
    """
    _check(select, calib, stage_costs)
    rules = fit_rules(select, request.policy)
    prove = certify_sets if request.policy in SET_POLICIES else _certify_acting
    decision, certificate = prove(select, calib, rules, stage_costs=stage_costs, request=request)
    return decision, tied(
        certificate,
        decision,
        preprocess=preprocess,
        engines=engines,
        inputs=inputs,
        calibration_uses=calibration_uses,
    )


def tied(
    certificate: Certificate,
    decision: Decision,
    *,
    preprocess: Preprocess,
    engines: dict[str, str],
    inputs: Sequence[StageInput] = (),
    calibration_uses: int = 1,
) -> Certificate:
    """The certificate bound to the engines, the preprocessing and the decision it is about."""
    return msgspec.structs.replace(
        certificate,
        calibration_uses=calibration_uses,
        engines=dict(sorted(engines.items())),
        binding=binding(preprocess, decision, engines, inputs),
    )


def _certify_acting(
    select: Collected,
    calib: Collected,
    rules: Sequence[ExitRule],
    *,
    stage_costs: Sequence[float],
    request: Request,
) -> tuple[Decision, Certificate]:
    """The promise about single answers: fixed-sequence testing along a path of thresholds."""
    path = propose_path(select, rules, stage_costs, request, n_calib=len(calib))
    result = walk(path, rules, calib, stage_costs, request)
    return conclude(select, calib, rules, path, result, request)


def conclude(
    select: Collected,
    calib: Collected,
    rules: Sequence[ExitRule],
    path: Sequence[Thresholds],
    result: Walk,
    request: Request,
    *,
    advice: str | None = None,
) -> tuple[Decision, Certificate]:
    """What a walk along `path` comes to, not yet tied to any engine.

    Args:
        advice: what to say where nothing is proven, in place of what would make the walk pass.
    """
    chosen = None if result.chosen is None else path[result.chosen]
    decision = decision_of(rules, chosen, request.policy)
    if chosen:
        advice = ""
    elif advice is None:
        advice = words.advice(select, calib, rules, path, result, request)
    return decision, _certificate(decision, calib, request, result, advice, len(path))


def fit_rules(select: Collected, policy: Policy = "certified") -> tuple[ExitRule, ...]:
    """Each exit's scaling and its score; no threshold.

    The score is the policy's, or else the one of gate and softmax with the lower AUGRC. All on
    `val_select`; images whose outputs are not finite at an exit do not count there, and a tie goes
    to softmax, which has nothing to go wrong.
    """
    return tuple(_fit_rule(select, stage, policy) for stage in range(len(select.exits)))


def _fit_rule(select: Collected, stage: int, policy: Policy) -> ExitRule:
    out = select.exits[stage]
    finite = np.flatnonzero(np.isfinite(out.logits).all(axis=1) & np.isfinite(out.gate))
    out, labels = out.take(finite), select.labels[finite]
    wrong = (out.logits[:, 1] > out.logits[:, 0]).astype(np.int8) != labels
    platt = fit_platt(out.gate, ~wrong)
    rule = ExitRule(
        score="softmax",
        platt_a=platt.a,
        platt_b=platt.b,
        temperature=fit_temperature(out.logits, labels),
        tau_logit=None,
    )
    if policy in ("softmax", "gate"):
        return msgspec.structs.replace(rule, score=policy)
    area: dict[ScoreKind, float] = {}
    for kind in ("softmax", "gate"):
        area[kind] = augrc(score_logit(out, msgspec.structs.replace(rule, score=kind)), wrong)
    if area["gate"] < area["softmax"]:
        return msgspec.structs.replace(rule, score="gate")
    return rule


def decision_of(rules: Sequence[ExitRule], chosen: Thresholds | None, policy: Policy) -> Decision:
    """The runtime's numbers for these thresholds; None: nothing is ever answered."""
    taus = chosen or (None,) * len(rules)
    exits = tuple(
        msgspec.structs.replace(rule, tau_logit=None if tau is None else shortest_float32(tau))
        for rule, tau in zip(rules, taus, strict=True)
    )
    return Decision(policy=policy, exits=exits, set_logit=SET_LOGIT)


def _certificate(
    decision: Decision,
    calib: Collected,
    request: Request,
    result: Walk,
    advice: str,
    path_length: int,
) -> Certificate:
    """The counts, taken again from the runtime's own decision rule on the final numbers."""
    verdict = decide(calib.exits, decision)
    acted, wrong = verdict.acted, verdict.acted & (verdict.label != calib.labels)
    n, k, e = len(calib), int(acted.sum()), int(wrong.sum())
    if result.chosen is not None:
        tested = (result.outcomes.accepted[result.chosen], result.outcomes.errors[result.chosen])
        if tested != (k, e):
            raise RuntimeError(f"the tested vector counts {tested}, the decision rule {(k, e)}")
    certified = result.chosen is not None
    classes = (0, 1)
    positive = calib.labels == 1
    missed, found = int((wrong & positive).sum()), int((acted & positive).sum())
    promises_fnr = request.fnr is not None
    return Certificate(
        status="CERTIFIED" if certified else "INFEASIBLE",
        method=METHOD,
        promise=words.promise(request) if certified else words.NO_PROMISE,
        advice=advice,
        alpha=float(request.alpha),
        delta=float(request.delta),
        claims=request.claims,
        coverage_floor=float(request.coverage),
        n=n,
        accepted=k,
        errors=e,
        risk_upper=clopper_pearson_upper(e, k, request.share),
        coverage=k / n if n else 0.0,
        coverage_lower=clopper_pearson_lower(k, n, request.share),
        exit_counts=tuple(
            int((acted & (verdict.stage == stage)).sum()) for stage in range(len(calib.exits))
        ),
        class_errors=tuple(int((wrong & (calib.labels == c)).sum()) for c in classes),
        class_accepted=tuple(int((acted & (calib.labels == c)).sum()) for c in classes),
        path_length=path_length,
        path_tested=result.tested,
        calibration_sha256=calib.content_sha256,
        calibration_uses=1,
        engines={},
        binding="",
        fnr_promised=None if request.fnr is None else float(request.fnr),
        fnr_upper=clopper_pearson_upper(missed, found, request.share) if promises_fnr else None,
    )


def _check(select: Collected, calib: Collected, stage_costs: Sequence[float]) -> None:
    if len(select) and select.content_sha256 == calib.content_sha256:
        raise DataError(
            "val_select and val_calib hold the same images; thresholds proposed and tested on the "
            "same images prove nothing: split the data again"
        )
    if not len(stage_costs) == len(select.exits) == len(calib.exits):
        raise ValueError("stage_costs, select and calib must have one entry a stage each")
