"""A bundle's figures on labelled images that no threshold has seen.

In: an open cascade and labelled images (`val_test`, or a set from the field). Out: an
`Evaluation`: coverage, risk, FNR, FPR, accuracy, per-exit shares, each with a 95 % bootstrap
interval, and whether the promise is borne out. Nothing is chosen here, so it may be run as often
as wanted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade_calib.bootstrap import RESAMPLES, Interval, bootstrap_ci, ratio_intervals
from cascade_calib.borne_out import Held, coverage_held, rate_held, set_risk_held
from cascade_calib.bounds import clopper_pearson_lower, clopper_pearson_upper
from cascade_calib.collect import Collected, collect
from cascade_calib.metrics import augrc, confusion
from cascade_calib.progress import Progress
from cascade_calib.words import percent
from cascade_runtime.decision import Bool, Reason, Verdict, decide, score_logit
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Certificate, Decision

if TYPE_CHECKING:
    from rich.table import Table

    from cascade_calib.labelled import LabelledImages
    from cascade_runtime.cascade import Cascade


@dataclass(frozen=True)
class Estimate:
    """A share, what it was counted from, and its 95 % interval (NaN where it is undefined)."""

    value: float
    part: int
    of: int
    interval: Interval


@dataclass(frozen=True)
class ExitFigures:
    """What one exit did, and how well its score separates right from wrong over all images."""

    answered: int
    errors: int
    augrc: float
    augrc_interval: Interval


@dataclass(frozen=True)
class Evaluation:
    """Everything `cascade-calibrate evaluate` prints; counts are of images.

    risk: wrong among the acted on. fnr: acted-on positives called negative; fpr: the reverse.
    full_accuracy: of the last exit, asked about every image. mcc: of the acted on. promise:
    whether the certificate's risk is borne out, as `borne_out` has it.
    fnr_promise: the same of the promised FNR; both None where none was promised.
    accepted, set_risk, ambiguous: under a policy that promises prediction sets, the share of images
    accepted and, of these, of sets without the true class and of sets with both classes; the
    promise is then about set_risk, and under SCRC-I coverage_promise is about accepted.
    """

    target: str
    classes: tuple[str, str]
    images: int
    skipped: int
    not_finite: int
    coverage: Estimate
    risk: Estimate
    fnr: Estimate
    fpr: Estimate
    full_accuracy: Estimate
    mcc: float
    exits: tuple[ExitFigures, ...]
    alpha: float
    promise: Held
    is_calibration_set: bool
    content_sha256: str
    coverage_floor: float = 0.0
    fnr_promised: float | None = None
    fnr_promise: Held | None = None
    coverage_promise: Held | None = None
    accepted: Estimate | None = None
    set_risk: Estimate | None = None
    ambiguous: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: NaN becomes None."""
        return {key: json_safe(value) for key, value in asdict(self).items()}


def evaluate(
    cascade: Cascade,
    images: LabelledImages,
    *,
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a bundle's engines over labelled images and compare with its certificate.

    Raises:
        DataError: no image can be read, or the images have other classes than the bundle.
    """
    from cascade_calib.labelled import load_pixels

    images = in_the_classes_of(images, cascade.manifest.model.classes)
    loaded = load_pixels(images, cascade.preprocess, progress=progress)
    seen = collect(cascade.stages, loaded, progress, batch_size)
    return evaluate_collected(
        seen,
        cascade.decision,
        cascade.certificate,
        target=cascade.target,
        classes=cascade.manifest.model.classes,
        skipped=len(loaded.skipped),
        resamples=resamples,
        seed=seed,
    )


def in_the_classes_of(images: LabelledImages, classes: tuple[str, str]) -> LabelledImages:
    """The same images with class 1 meaning what it means in the bundle; "0" and "1" are as is.

    Raises:
        DataError: the names differ, so nobody can say which class is which.
    """
    if images.classes == classes or set(images.classes) == {"0", "1"}:
        return images
    if images.classes == classes[::-1]:
        turned = (1 - images.labels).astype(np.int8)
        return replace(images, labels=turned, classes=classes)
    raise DataError(
        f"the images are labelled {' and '.join(map(repr, images.classes))}, the bundle answers "
        f"{' or '.join(map(repr, classes))}; rename the class folders or labels to match"
    )


def evaluate_collected(
    seen: Collected,
    decision: Decision,
    certificate: Certificate,
    *,
    target: str,
    classes: tuple[str, str],
    skipped: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """The same, from outputs already collected."""
    verdict = decide(seen.exits, decision)
    acted, wrong = verdict.acted, verdict.acted & (verdict.label != seen.labels)
    of_sets = decision.accept is not None
    ratios = shares(seen, verdict) | (set_shares(seen, verdict) if of_sets else {})
    intervals = ratio_intervals(
        np.stack([top for top, _ in ratios.values()], axis=1),
        np.stack([bottom for _, bottom in ratios.values()], axis=1),
        seen.groups,
        resamples=resamples,
        seed=seed,
    )
    estimates = {
        name: estimate(top, bottom, interval)
        for (name, (top, bottom)), interval in zip(ratios.items(), intervals, strict=True)
    }
    exits = tuple(
        _exit_figures(seen, decision, stage, acted & (verdict.stage == stage), wrong, resamples)
        for stage in range(len(seen.exits))
    )
    promised = certificate.fnr_promised
    return Evaluation(
        target=target,
        classes=classes,
        images=len(seen),
        skipped=skipped,
        not_finite=seen.not_finite,
        **estimates,
        exits=exits,
        alpha=certificate.alpha,
        mcc=confusion(verdict.label, seen.labels).mcc,
        promise=_of_risk(certificate, estimates),
        is_calibration_set=seen.content_sha256 == certificate.calibration_sha256,
        content_sha256=seen.content_sha256,
        coverage_floor=certificate.coverage_floor,
        fnr_promised=promised,
        fnr_promise=None
        if promised is None
        else rate_held(certificate, estimates["fnr"].part, estimates["fnr"].of, promised),
        coverage_promise=coverage_held(certificate, estimates["accepted"].part, len(seen))
        if of_sets
        else None,
    )


def shares(seen: Collected, verdict: Verdict) -> dict[str, tuple[Bool, Bool]]:
    """Each figure of an `Evaluation` as (images that count, of which images), bool [N] each."""
    acted, wrong = verdict.acted, verdict.acted & (verdict.label != seen.labels)
    positive = seen.labels == 1
    last = seen.exits[-1].logits
    right_at_end = (last[:, 1] > last[:, 0]) == positive
    everything = np.ones(len(seen), dtype=np.bool_)
    return {
        "coverage": (acted, everything),
        "risk": (wrong, acted),
        "fnr": (wrong & positive, acted & positive),
        "fpr": (wrong & ~positive, acted & ~positive),
        "full_accuracy": (right_at_end, everything),
    }


def set_shares(seen: Collected, verdict: Verdict) -> dict[str, tuple[Bool, Bool]]:
    """The same of the prediction sets of a policy that promises these."""
    accepted = verdict.accepted
    missed = accepted & ~verdict.in_set[np.arange(len(seen)), seen.labels]
    everything = np.ones(len(seen), dtype=np.bool_)
    return {
        "accepted": (accepted, everything),
        "set_risk": (missed, accepted),
        "ambiguous": (verdict.reason == Reason.AMBIGUOUS, accepted),
    }


SET_FIGURES = {
    "accepted": "accepted",
    "set_risk": "set risk (sets without the true class)",
    "ambiguous": "ambiguous (both classes in the set)",
}


def figure_names(classes: tuple[str, str]) -> dict[str, str]:
    """What the figures of `shares` are called in a table."""
    return {
        "coverage": "coverage (acted on)",
        "risk": "risk (wrong of the acted on)",
        "fnr": f"FNR ({classes[1]} called {classes[0]})",
        "fpr": f"FPR ({classes[0]} called {classes[1]})",
        "full_accuracy": "accuracy, always run to the end",
    }


def tables(result: Evaluation) -> list[Table]:
    """The evaluation as rich tables: the figures, then the exits."""
    from rich.table import Table

    figures = Table("figure", "value", "95 % interval", "counted", title=f"on {result.target}")
    names = figure_names(result.classes)
    for field, name in (SET_FIGURES | names if result.set_risk else names).items():
        x: Estimate = getattr(result, field)
        figures.add_row(name, share(x.value), span(x.interval), f"{x.part} of {x.of}")
    figures.add_row("MCC of the acted on", _number(result.mcc), "", f"{result.risk.of}")
    exits = Table("exit", "answered", "wrong", "risk", "AUGRC x 1000")
    for stage, part in enumerate(result.exits):
        risk = part.errors / part.answered if part.answered else float("nan")
        area = f"{1000 * part.augrc:.3g} ({1000 * part.augrc_interval.low:.3g} to "
        area += f"{1000 * part.augrc_interval.high:.3g})"
        exits.add_row(str(stage), str(part.answered), str(part.errors), share(risk), area)
    return [figures, exits]


def conclusion(result: Evaluation) -> str:
    """The promise against what was seen, in words."""
    risk = f"{share(result.risk.value)} of the {result.risk.of} images acted on are wrong"
    if (x := result.set_risk) is not None:
        risk = f"{share(x.value)} of the {x.of} sets of accepted images lack the true class"
    asked = f"the {percent(result.alpha)} promised"
    sentence = {
        "held": f"The promise held: {risk}, within {asked}.",
        "not contradicted": f"Not contradicted: {risk}, above {asked}, but within chance of it.",
        "contradicted": f"CONTRADICTED: {risk}, beyond chance above {asked}. Are these images "
        "drawn like the calibration images? If they are, certify again on fresh ones.",
        "no promise": "This target carries no promise: it is INFEASIBLE and defers every image.",
        "nothing to judge": "Not one of these images is acted on: nothing can be said of the risk.",
    }[result.promise]
    if result.coverage_promise not in (None, "no promise"):
        sentence += f" {_coverage_conclusion(result)}"
    if result.fnr_promise not in (None, "no promise", "nothing to judge"):
        sentence += f" {_fnr_conclusion(result)}"
    if result.is_calibration_set:
        sentence += " These are the calibration images themselves: this confirms nothing."
    if result.skipped:
        sentence += f" {result.skipped} images could not be read and are not counted."
    return sentence


def _coverage_conclusion(result: Evaluation) -> str:
    """The promised share of images accepted against what was seen, in words."""
    assert result.accepted is not None
    found = f"{share(result.accepted.value)} of the {result.images} images are accepted"
    asked = f"the {percent(result.coverage_floor)} promised"
    return {
        "held": f"The coverage held: {found}, at least {asked}.",
        "not contradicted": f"The coverage is not contradicted: {found}, below {asked}, but within "
        "chance of it.",
    }.get(
        result.coverage_promise or "",
        f"The coverage is CONTRADICTED: {found}, beyond chance below {asked}.",
    )


def _fnr_conclusion(result: Evaluation) -> str:
    """The FNR promise against what was seen, in words."""
    missed = f"{share(result.fnr.value)} of the {result.fnr.of} positives acted on are missed"
    asked = f"the FNR of {percent(result.fnr_promised or 0.0)} promised"
    return {
        "held": f"The FNR promise held: {missed}, within {asked}.",
        "not contradicted": f"The FNR is not contradicted: {missed}, above {asked}, but within "
        "chance of it.",
    }.get(
        result.fnr_promise or "", f"The FNR is CONTRADICTED: {missed}, beyond chance above {asked}."
    )


def _exit_figures(
    seen: Collected, decision: Decision, stage: int, answered: Bool, wrong: Bool, resamples: int
) -> ExitFigures:
    out = seen.exits[stage]
    score = score_logit(out, decision.exits[stage])
    known = np.flatnonzero(np.isfinite(score) & np.isfinite(out.logits).all(axis=1))
    miss = ((out.logits[:, 1] > out.logits[:, 0]).astype(np.int8) != seen.labels)[known]
    groups = None if seen.groups is None else [seen.groups[i] for i in known]
    return ExitFigures(
        answered=int(answered.sum()),
        errors=int((answered & wrong).sum()),
        augrc=augrc(score[known], miss),
        augrc_interval=bootstrap_ci(
            score[known], miss, groups=groups, resamples=min(resamples, 1000)
        ),
    )


def estimate(top: Bool, bottom: Bool, interval: Interval) -> Estimate:
    """The ratio; where it is exactly 0 or 1, whose resamples all agree, the exact interval."""
    part, of = int(top.sum()), int(bottom.sum())
    if of and part in (0, of):
        tail = Fraction(1, 40)  # 2.5 % on either side
        low, high = clopper_pearson_lower(part, of, tail), clopper_pearson_upper(part, of, tail)
        interval = Interval(low, high)
    return Estimate(part / of if of else float("nan"), part, of, interval)


def _of_risk(certificate: Certificate, estimates: dict[str, Estimate]) -> Held:
    if (sets := estimates.get("set_risk")) is not None:
        return set_risk_held(certificate, sets.part, sets.of)
    risk = estimates["risk"]
    return rate_held(certificate, risk.part, risk.of, certificate.alpha)


def share(value: float) -> str:
    """A share for a table, "-" where it is undefined."""
    return "-" if np.isnan(value) else percent(value)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def span(interval: Interval) -> str:
    """An interval for a table."""
    return f"{share(interval.low)} to {share(interval.high)}"


def json_safe(value: Any) -> Any:
    """The same without what JSON has no word for: NaN becomes None, an interval an object."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, Interval):
        return {"low": json_safe(value.low), "high": json_safe(value.high)}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
