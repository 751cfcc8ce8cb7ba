"""The report's key figures: what is promised of one target beside what was counted.

In: a certificate. Out: HTML. Where the promise is about prediction sets, what the sets come to in
single answers is said beside it, because nothing bounds that (CALIBRATION, "SCRC").
"""

from __future__ import annotations

from cascade_calib.report_html import EMPTY, figures
from cascade_calib.words import percent
from cascade_runtime.manifest import Certificate, SetCertificate


def key_figures(c: Certificate) -> str:
    """Coverage, risk and the risk's bound, of sets where those are what is promised."""
    if c.sets is not None:
        return figures(_of_sets(c, c.sets)) + _singles(c, c.sets)
    rows = [
        (
            "coverage",
            percent(c.coverage),
            f"{c.accepted:,} of {c.n:,} images; at least {percent(c.coverage_lower)} {_sure(c)}; "
            f"asked for {percent(c.coverage_floor)}",
        ),
        (
            "wrong when acting",
            share(c.errors, c.accepted),
            f"{c.errors:,} of {c.accepted:,} images",
        ),
        (
            "at most",
            percent(c.risk_upper) if c.accepted else EMPTY,
            f"upper bound at these thresholds, {_sure(c)}; promised {percent(c.alpha, 6)}",
        ),
    ]
    if c.fnr_promised is not None and c.fnr_upper is not None:
        missed, found = c.class_errors[1], c.class_accepted[1]
        rows.append(
            (
                "positives missed",
                share(missed, found),
                f"{missed:,} of {found:,} acted on; upper bound {percent(c.fnr_upper)} {_sure(c)}; "
                f"promised {percent(c.fnr_promised, 6)}",
            )
        )
    return figures(rows)


def risk_bound(c: Certificate) -> str:
    """The bound on what is promised, in a few words for a table."""
    if c.sets is None:
        return percent(c.risk_upper) if c.accepted else EMPTY
    if not c.sets.accepted:
        return EMPTY
    return f"{percent(c.sets.risk_upper)} of sets" + (", on average" if c.delta is None else "")


def share(part: int, of: int) -> str:
    return percent(part / of) if of else EMPTY


def _of_sets(c: Certificate, s: SetCertificate) -> list[tuple[str, str, str]]:
    return [
        (
            "accepted",
            percent(s.coverage),
            f"{s.accepted:,} of {c.n:,} images; at least {percent(s.coverage_lower)} {_sure(c)}; "
            f"asked for {percent(c.coverage_floor)}",
        ),
        (
            "sets without the true class",
            share(s.misses, s.accepted),
            f"{s.misses:,} of {s.accepted:,} accepted images",
        ),
        (
            "at most",
            percent(s.risk_upper) if s.accepted else EMPTY,
            f"bounded {_sure(c)}; promised {percent(c.alpha, 6)}",
        ),
    ]


def _singles(c: Certificate, s: SetCertificate) -> str:
    """What is left once the sets with both classes or none are deferred."""
    rows = [
        (
            "ambiguous",
            share(s.ambiguous, s.accepted),
            f"{s.ambiguous:,} of {s.accepted:,} accepted images have both classes in their set: "
            "never wrong, never an answer, deferred",
        ),
        (
            "acted on",
            percent(c.coverage),
            f"{c.accepted:,} of {c.n:,} images, accepted with one class in their set",
        ),
        (
            "wrong when acting",
            share(c.errors, c.accepted),
            f"{c.errors:,} of {c.accepted:,} images; no bound",
        ),
    ]
    if s.empty:
        rows.insert(
            1,
            (
                "empty",
                share(s.empty, s.accepted),
                f"{s.empty:,} of {s.accepted:,} accepted images have no class in their set; "
                "deferred",
            ),
        )
    return (
        "<h3>What the sets come to</h3>"
        + figures(rows)
        + '<p class="advice">The promise is about the sets, not about single answers. A set with '
        "both classes cannot be wrong, so the sets can keep their promise while the single answers "
        "are wrong more often than that.</p>"
    )


def _sure(c: Certificate) -> str:
    if c.delta is None:
        return "on average over calibration sets"
    return f"with {percent(1 - c.delta, 6)} confidence"
