"""`report.html`: the guarantee card that a person reads before trusting a bundle.

In: the manifest, and per target the outputs collected on `val_select` and `val_calib`. Out: one
HTML page that needs nothing else, reads on a phone and prints; the same bytes for the same input.
The curves are drawn on `val_select`, so that reading them tempts nobody into choosing again on the
calibration images; the certificate's own numbers are those of `val_calib`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

import msgspec
import numpy as np

from cascade_calib.collect import Collected
from cascade_calib.metrics import Float64, ece, risk_coverage_curve
from cascade_calib.plots import OperatingPoint, reliability_plot, risk_coverage_plot
from cascade_calib.scaling import reliability, sigmoid
from cascade_calib.words import percent
from cascade_runtime.decision import Bool, margin, score_logit
from cascade_runtime.manifest import Certificate, ExitRule, Manifest

VOIDS = (
    "Any change to an engine, a threshold, the scaling or the preprocessing: the runtime then "
    "refuses to open the bundle.",
    "Images that are not drawn as the calibration images were: another camera, season, place or "
    "selection. Nothing in the bundle can notice that; certify again on images of the new kind.",
    "Asking the same calibration images again after a failure, or choosing between targets by "
    "their results on them, without sharing delta between the attempts.",
    "Calibration labels that are wrong, or calibration images that were used in training.",
)


@dataclass(frozen=True)
class Evidence:
    """What one target's engines said about the two splits that its certificate rests on."""

    select: Collected
    calib: Collected


def render_report(manifest: Manifest, evidence: Mapping[str, Evidence]) -> str:
    """The page; targets in the order of the manifest, those without evidence without curves."""
    names = list(manifest.targets)
    style = resources.files("cascade_calib").joinpath("report.css").read_text("utf-8")
    sections = "".join(_target(manifest, name, evidence.get(name)) for name in names)
    title = escape(manifest.model.name)
    page = f"{_head(manifest)}\n{sections}\n{_targets(manifest)}\n{_voids()}\n{_origin(manifest)}"
    page = page.replace(" %", "\u00a0%")  # a number and its unit stay on one line
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}: what is promised</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head>\n<body><main>\n{page}\n</main></body></html>\n"
    )


def _head(manifest: Manifest) -> str:
    """The promise in words, once for all targets that share it."""
    said: dict[tuple[str, str], list[str]] = {}
    for name in manifest.targets:
        c = manifest.certificates[name]
        said.setdefault((c.status, c.promise), []).append(name)
    cards = "".join(
        f'<div class="card {status.lower()}"><p class="status">{escape(status)}</p>'
        f'<p class="promise">{escape(promise)}</p><p class="where">'
        + ", ".join(f"<code>{escape(name)}</code>" for name in names)
        + "</p></div>"
        for (status, promise), names in said.items()
    )
    no, yes = (escape(c) for c in manifest.model.classes)
    return (
        f"<header><h1>{escape(manifest.model.name)}</h1>"
        f"<p>Answers <b>{yes}</b> or <b>{no}</b> for an image, or defers it to somebody else. "
        f"“Acts on” means: gives one answer.</p></header>{cards}"
    )


def _target(manifest: Manifest, name: str, evidence: Evidence | None) -> str:
    c = manifest.certificates[name]
    parts = [f"<h2><code>{escape(name)}</code></h2>"]
    if c.advice:
        parts.append(f'<p class="advice">{escape(c.advice)}</p>')
    parts += [_figures(c), _shares(c)]
    if evidence is not None:
        rules = manifest.decision[name].exits
        parts += [_curve(c, rules, evidence.select, name), _scaling(rules, evidence.select, name)]
        if bad := evidence.select.not_finite + evidence.calib.not_finite:
            parts.append(f'<p class="advice">{bad} images gave outputs that are not finite.</p>')
    parts += [_rules(manifest.decision[name].exits), _proof(c, manifest)]
    return f"<section>{''.join(parts)}</section>"


def _figures(c: Certificate) -> str:
    """The key figures of one certificate."""
    sure = percent(1 - c.delta, 6)
    rows = [
        (
            "coverage",
            percent(c.coverage),
            f"{c.accepted:,} of {c.n:,} images; at least "
            f"{percent(c.coverage_lower)} with {sure} confidence; "
            f"asked for {percent(c.coverage_floor)}",
        ),
        (
            "wrong when acting",
            percent(c.errors / c.accepted) if c.accepted else "–",
            f"{c.errors:,} of {c.accepted:,} images",
        ),
        (
            "at most",
            percent(c.risk_upper) if c.accepted else "–",
            f"upper bound with {sure} confidence; promised {percent(c.alpha, 6)}",
        ),
    ]
    if c.fnr_promised is not None and c.fnr_upper is not None:
        missed, found = c.class_errors[1], c.class_accepted[1]
        rows.append(
            (
                "positives missed",
                percent(missed / found) if found else "–",
                f"{missed:,} of {found:,} acted on; upper bound {percent(c.fnr_upper)} with {sure} "
                f"confidence; promised {percent(c.fnr_promised, 6)}",
            )
        )
    cells = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{value}</dd><dd class='note'>{escape(note)}</dd></div>"
        for title, value, note in rows
    )
    return f'<dl class="figures">{cells}</dl>'


def _shares(c: Certificate) -> str:
    """How many calibration images each exit answered, as one bar."""
    counts = [(f"exit {i}", k) for i, k in enumerate(c.exit_counts)] + [
        ("deferred", c.n - c.accepted)
    ]
    total = max(1, c.n)
    last = len(counts) - 1
    bars = "".join(
        f'<i class="s{"d" if i == last else i % 6}" style="flex:{k}"></i>'
        for i, (_, k) in enumerate(counts)
        if k
    )
    legend = "".join(
        f'<li><i class="s{"d" if i == last else i % 6}"></i>{what} '
        f"<b>{percent(k / total)}</b> <span>{k:,}</span></li>"
        for i, (what, k) in enumerate(counts)
    )
    return (
        f'<h3>Who answers</h3><div class="bar" aria-hidden="true">{bars}</div>'
        f'<ul class="legend">{legend}</ul>'
    )


def _curve(c: Certificate, rules: tuple[ExitRule, ...], select: Collected, name: str) -> str:
    curves = []
    for stage, rule in enumerate(rules):
        known, right = _known(select, stage, rule)
        curves.append(
            risk_coverage_curve(score_logit(select.exits[stage], rule)[known], ~right[known])
        )
    point = None
    if c.accepted:
        point = OperatingPoint(c.coverage, c.errors / c.accepted, c.risk_upper)
    svg = risk_coverage_plot(curves, c.alpha, point, f"Risk over coverage, {name}")
    return (
        f"<h3>Risk over coverage</h3><figure>{svg}<figcaption>Lines: each exit alone, on the "
        f"{len(select):,} selection images. Diamond: the whole cascade, on the {c.n:,} calibration "
        "images.</figcaption></figure>"
    )


def _scaling(rules: tuple[ExitRule, ...], select: Collected, name: str) -> str:
    """Reliability before and after scaling of the classifier and the gate of each exit."""
    blocks, rows = [], []
    for stage, rule in enumerate(rules):
        known, right = _known(select, stage, rule)
        plain = msgspec.structs.replace(rule, temperature=1.0, platt_a=1.0, platt_b=0.0)
        for kind in ("softmax", "gate"):
            what = "classifier" if kind == "softmax" else "gate"
            before, after = (
                _probability(select, stage, msgspec.structs.replace(r, score=kind))[known]
                for r in (plain, rule)
            )
            truth = right[known]
            svg = reliability_plot(
                reliability(before, truth, bins=10),
                reliability(after, truth, bins=10),
                0.5 if kind == "softmax" else 0.0,
                f"Reliability of exit {stage} {what}, {name}",
            )
            used = " (decides)" if rule.score == kind else ""
            blocks.append(
                f"<figure>{svg}<figcaption>exit {stage}, {what}{used}</figcaption></figure>"
            )
            rows.append(
                (f"exit {stage} {what}", _number(ece(before, truth)), _number(ece(after, truth)))
            )
    return (
        "<h3>Does a score mean what it says?</h3>"
        f'<div class="grid">{"".join(blocks)}</div>'
        + _table(("score", "ECE before", "ECE after"), rows)
        + '<p class="note">On the selection images; a larger dot stands for more of them. '
        "ECE: mean gap between stated probability and share right.</p>"
    )


def _rules(rules: tuple[ExitRule, ...]) -> str:
    rows = []
    for stage, rule in enumerate(rules):
        tau = "never answers" if rule.tau_logit is None else f"{sigmoid(rule.tau_logit):.4f}"
        scale = f"{rule.platt_a:.4g}, {rule.platt_b:.4g}"
        rows.append((f"exit {stage}", rule.score, tau, f"{rule.temperature:.4g}", scale))
    return "<h3>Thresholds</h3>" + _table(
        ("", "score", "answers from", "temperature", "Platt a, b"), rows
    )


def _proof(c: Certificate, manifest: Manifest) -> str:
    no, yes = manifest.model.classes
    classes = "; ".join(
        f"{name}: {e:,} wrong of {k:,}"
        for name, e, k in zip((no, yes), c.class_errors, c.class_accepted, strict=True)
    )
    facts = [
        ("method", f"{c.method}, {c.path_tested} of {c.path_length} threshold vectors tested"),
        ("alpha, delta", f"{c.alpha:g}, {c.delta:g}"),
        ("certificates sharing delta", f"{c.claims}"),
        ("by true class", classes),
        (
            "calibration set",
            f"{c.n:,} images, asked {c.calibration_uses} time(s), SHA-256 {c.calibration_sha256}",
        ),
        ("binding", c.binding),
        *((path, digest) for path, digest in c.engines.items()),
    ]
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    return f'<h3>Proof and what it is tied to</h3><dl class="facts">{items}</dl>'


def _targets(manifest: Manifest) -> str:
    rows = []
    for name, target in manifest.targets.items():
        c = manifest.certificates[name]
        parity = ", ".join(f"{key} {value:.3g}" for key, value in sorted(target.parity.items()))
        risk = percent(c.risk_upper) if c.accepted else "–"
        rows.append(
            (name, c.status, percent(c.coverage), risk, f"{target.images_per_s:.0f}", parity or "–")
        )
    head = ("target", "status", "coverage", "risk at most", "images/s", "against the original")
    return f"<section><h2>Targets</h2>{_table(head, rows)}</section>"


def _voids() -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in VOIDS)
    return f"<section><h2>What voids the promise</h2><ul>{items}</ul></section>"


def _origin(manifest: Manifest) -> str:
    by, model = manifest.made_by, manifest.model
    facts = [
        ("data", model.data),
        ("network", f"{model.preset}, {model.parameters:,} parameters, exits after {model.exits}"),
        ("made", f"{by.created}, cascade-edge {by.version}, commit {by.git_commit}"),
        ("seed", str(by.seed)),
        ("command", by.command),
        ("machine", by.machine),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(by.versions.items()))),
    ]
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    return f'<section><h2>Where it comes from</h2><dl class="facts">{items}</dl></section>'


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _known(select: Collected, stage: int, rule: ExitRule) -> tuple[Bool, Bool]:
    """Where an exit's outputs are finite, and where its answer is right; bool [N] each."""
    out = select.exits[stage]
    known = np.isfinite(out.logits).all(axis=1) & np.isfinite(out.gate)
    right = (margin(out, rule) > 0) == (select.labels == 1)
    return known, np.asarray(right, dtype=np.bool_)


def _probability(select: Collected, stage: int, rule: ExitRule) -> Float64:
    return sigmoid(score_logit(select.exits[stage], rule))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"
