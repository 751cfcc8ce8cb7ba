"""`report.html`: the guarantee card that a person reads before trusting a bundle.

In: the manifest, and per target the outputs collected on `val_select` and `val_calib`. Out: one
HTML page that needs nothing else, reads on a phone and prints; the same bytes for the same input.
The curves are drawn on `val_select`, so that reading them tempts nobody into choosing again on the
calibration images; the certificate's own numbers are those of `val_calib`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources

from cascade_calib.collect import Collected
from cascade_calib.report_curves import risk_over_coverage, scaling
from cascade_calib.report_exits import exits_and_cost
from cascade_calib.report_figures import key_figures, risk_bound
from cascade_calib.report_html import EMPTY, facts, table
from cascade_calib.report_search import candidates
from cascade_calib.report_worst import acted_on, worst_images
from cascade_calib.scaling import sigmoid
from cascade_calib.words import percent
from cascade_runtime.manifest import FLOAT32_MAX, Decision, Manifest
from cascade_runtime.preprocess import Pixels

VOIDS = (
    "Any change to an engine, a threshold, the scaling or the preprocessing: the runtime then "
    "refuses to open the bundle.",
    "Images that are not drawn as the calibration images were: another camera, season, place or "
    "selection. Nothing in the bundle can notice that; certify again on images of the new kind.",
    "Asking the same calibration images again after a failure, or choosing between targets by "
    "their results on them, without sharing delta between the attempts.",
    "Calibration labels that are wrong, or calibration images that were used in training.",
)
NOTHING_FROM_OUTSIDE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Evidence:
    """What one target's engines said about the two splits that its certificate rests on.

    pixels: of `select`, uint8 [N, H, W, 3], for the worst images among them; None: the page shows
    none, as it should where whoever gets the bundle may not see the images.
    """

    select: Collected
    calib: Collected
    pixels: Pixels | None = None


def render_report(manifest: Manifest, evidence: Mapping[str, Evidence]) -> str:
    """The page; targets in the order of the manifest, those without evidence without curves."""
    names = list(manifest.targets)
    style = resources.files("cascade_calib").joinpath("report.css").read_text("utf-8")
    sections = "".join(_target(manifest, name, evidence.get(name)) for name in names)
    title = escape(manifest.model.name)
    errors = _worst(manifest, evidence)
    targets = _targets(manifest) + candidates(manifest)
    parts = (_head(manifest), sections, errors, targets, _voids(), _origin(manifest))
    page = "\n".join(parts)
    page = page.replace(" %", "\u00a0%")  # a number and its unit stay on one line
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}: what is promised</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">'
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
    decision = manifest.decision[name]
    calib = None if evidence is None else evidence.calib
    parts += [key_figures(c), exits_and_cost(c, decision, manifest.stages, calib)]
    if evidence is not None:
        select = evidence.select
        parts += [
            risk_over_coverage(c, decision.exits, select, name),
            scaling(decision.exits, select, name),
        ]
        if bad := select.not_finite + evidence.calib.not_finite:
            parts.append(f'<p class="advice">{bad} images gave outputs that are not finite.</p>')
    parts += [_rules(decision), _proof(manifest, name)]
    return f"<section>{''.join(parts)}</section>"


def _worst(manifest: Manifest, evidence: Mapping[str, Evidence]) -> str:
    """The errors of all targets together, which were shown the same selection images."""
    acted = {
        name: acted_on(manifest.decision[name], evidence[name].select, evidence[name].pixels)
        for name in manifest.targets
        if name in evidence
    }
    return worst_images(acted, manifest.model.classes)


def _rules(decision: Decision) -> str:
    rows = []
    for stage, rule in enumerate(decision.exits):
        tau = "never answers" if rule.tau_logit is None else _from(rule.tau_logit)
        scale = f"{rule.platt_a:.4g}, {rule.platt_b:.4g}"
        rows.append((f"exit\u00a0{stage}", rule.score, tau, f"{rule.temperature:.4g}", scale))
    head = ("", "score", "answers from", "temperature", "Platt a, b")
    text = "<h3>Thresholds</h3>" + table(head, rows, "Thresholds")
    shut = all(rule.tau_logit is None for rule in decision.exits)
    if decision.accept is not None and not shut:
        above, at = decision.set_logit, decision.accept.set_logit_at
        text += facts(
            [
                ("accepted from score", _from(decision.accept.tau_logit)),
                ("a class is in the set from probability", _from(above)),
                ("exactly at the score threshold from", _from(at)),
            ]
        )
    return text


def _from(logit: float) -> str:
    return "any" if logit <= -FLOAT32_MAX else f"{sigmoid(logit):.4f}"


def _proof(manifest: Manifest, name: str) -> str:
    c = manifest.certificates[name]
    classes = "; ".join(
        f"{label}: {e:,} wrong of {k:,}"
        for label, e, k in zip(
            manifest.model.classes, c.class_errors, c.class_accepted, strict=True
        )
    )
    tested = f", {c.path_tested} of {c.path_length} threshold vectors tested"
    delta = "on average over calibration sets" if c.delta is None else f"{c.delta:g}"
    measured = sorted(manifest.targets[name].parity.items())
    parity = ", ".join(
        f"{key.replace('_', ' ')} {value:.3g}"
        for key, value in measured
        if not key.startswith("stage")  # each stage's own are in the manifest
    )
    rows = [
        ("policy", manifest.decision[name].policy),
        ("method", c.method + (tested if c.sets is None else "")),
        ("alpha, delta", f"{c.alpha:g}, {delta}"),
        ("certificates sharing delta", f"{c.claims}"),
        ("by true class", classes),
        (
            "calibration set",
            f"{c.n:,} images, asked {c.calibration_uses} time(s), SHA-256 {c.calibration_sha256}",
        ),
        ("engine against the network", parity or EMPTY),
        ("binding", c.binding),
        *c.engines.items(),
    ]
    return f"<h3>Proof and what it is tied to</h3>{facts(rows)}"


def _targets(manifest: Manifest) -> str:
    rows = []
    for name, target in manifest.targets.items():
        c = manifest.certificates[name]
        speed = f"{target.images_per_s:.0f}"
        rows.append((name, c.status, percent(c.coverage), risk_bound(c), speed))
    head = ("target", "status", "coverage", "risk at most", "images/s")
    return f"<section><h2>Targets</h2>{table(head, rows, 'Targets')}</section>"


def _voids() -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in VOIDS)
    return f"<section><h2>What voids the promise</h2><ul>{items}</ul></section>"


def _origin(manifest: Manifest) -> str:
    by, model = manifest.made_by, manifest.model
    rows = [
        ("data", model.data),
        ("network", f"{model.preset}, {model.parameters:,} parameters, exits after {model.exits}"),
        ("made", f"{by.created}, cascade-edge {by.version}, commit {by.git_commit}"),
        ("seed", str(by.seed)),
        ("command", by.command),
        ("machine", by.machine),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(by.versions.items()))),
    ]
    return f"<section><h2>Where it comes from</h2>{facts(rows)}</section>"
