"""The report's curves: risk over coverage of each exit, and whether its scores mean what they say.

In: the rules and what the engines said on `val_select`. Out: HTML with figures inside. The curves
are not of `val_calib`, so that reading them tempts nobody into choosing again on those images.
"""

from __future__ import annotations

import msgspec
import numpy as np

from cascade_calib.collect import Collected
from cascade_calib.metrics import Float64, ece, risk_coverage_curve
from cascade_calib.plots import (
    ExitCurve,
    OperatingPoint,
    reliability_plot,
    risk_coverage_plot,
)
from cascade_calib.report_band import risk_band
from cascade_calib.report_html import number, table
from cascade_calib.scaling import reliability, sigmoid
from cascade_calib.words import percent
from cascade_runtime.decision import Bool, margin, score_logit
from cascade_runtime.manifest import Certificate, ExitRule


def risk_over_coverage(
    c: Certificate, rules: tuple[ExitRule, ...], select: Collected, name: str
) -> str:
    """Each exit alone with its band, and the cascade's own point from the certificate."""
    curves = [_exit_curve(select, stage, rule) for stage, rule in enumerate(rules)]
    point = None
    if c.accepted:
        bound = c.risk_upper if c.sets is None else None
        point = OperatingPoint(c.coverage, c.errors / c.accepted, bound)
    promised = "promised" if c.sets is None else "promised of sets"
    svg = risk_coverage_plot(
        curves,
        c.alpha,
        f"{promised}: {percent(c.alpha, 6)}",
        point,
        f"Risk over coverage, {name}",
        _in_words(c, curves),
    )
    groups = select.groups
    drawn = "images" if groups is None else f"its {len(set(groups)):,} groups of images"
    return (
        f"<h3>Risk over coverage</h3><figure>{svg}<figcaption>Lines: each exit alone, on the "
        f"{len(select):,} selection images. Bands: 95 % intervals, point by point, from drawing "
        f"{drawn} again; they have no height where nothing is wrong yet, which proves nothing."
        + (f" Diamond: the whole cascade, on the {c.n:,} calibration images." if point else "")
        + "</figcaption></figure>"
    )


def scaling(rules: tuple[ExitRule, ...], select: Collected, name: str) -> str:
    """Reliability before and after scaling of the classifier and the gate of each exit."""
    blocks, rows = [], []
    for stage, rule in enumerate(rules):
        known, right = _known(select, stage, rule)
        plain = msgspec.structs.replace(rule, temperature=1.0, platt_a=1.0, platt_b=0.0)
        truth = right[known]
        for kind in ("softmax", "gate"):
            what = f"exit {stage}, {'classifier' if kind == 'softmax' else 'gate'}"
            before, after = (
                _probability(select, stage, msgspec.structs.replace(r, score=kind))[known]
                for r in (plain, rule)
            )
            gaps = number(ece(before, truth)), number(ece(after, truth))
            svg = reliability_plot(
                reliability(before, truth, bins=10),
                reliability(after, truth, bins=10),
                0.5 if kind == "softmax" else 0.0,
                f"Reliability of {what}, {name}",
                f"calibration error {gaps[0]} before scaling, {gaps[1]} after",
            )
            used = " (decides)" if rule.score == kind else ""
            blocks.append(f"<figure>{svg}<figcaption>{what}{used}</figcaption></figure>")
            rows.append((what + used, *gaps))
    return (
        "<h3>Does a score mean what it says?</h3>"
        f'<div class="grid">{"".join(blocks)}</div>'
        + table(("score", "ECE before", "ECE after"), rows, "Calibration error")
        + '<p class="note">On the selection images; a larger dot stands for more of them. '
        "ECE: mean gap between stated probability and share right.</p>"
    )


def _exit_curve(select: Collected, stage: int, rule: ExitRule) -> ExitCurve:
    known, right = _known(select, stage, rule)
    score, wrong = score_logit(select.exits[stage], rule)[known], ~right[known]
    groups = None
    if select.groups is not None:
        groups = [group for group, there in zip(select.groups, known, strict=True) if there]
    return ExitCurve(risk_coverage_curve(score, wrong), risk_band(score, wrong, groups))


def _in_words(c: Certificate, curves: list[ExitCurve]) -> str:
    """The figure for those who cannot see it."""
    said = [
        f"exit {i} alone is wrong on {percent(curve.line.selective[-1])} of all images"
        for i, curve in enumerate(curves)
        if len(curve.line.selective)
    ]
    if c.accepted:
        said.append(
            f"the cascade on {percent(c.errors / c.accepted)} of the {percent(c.coverage)} that it "
            "acts on"
        )
    return "; ".join(said)


def _known(select: Collected, stage: int, rule: ExitRule) -> tuple[Bool, Bool]:
    """Where an exit's outputs are finite, and where its answer is right; bool [N] each."""
    out = select.exits[stage]
    known = np.isfinite(out.logits).all(axis=1) & np.isfinite(out.gate)
    with np.errstate(invalid="ignore", over="ignore"):
        right = (margin(out, rule) > 0) == (select.labels == 1)
    return known, np.asarray(right, dtype=np.bool_)


def _probability(select: Collected, stage: int, rule: ExitRule) -> Float64:
    return sigmoid(score_logit(select.exits[stage], rule))
