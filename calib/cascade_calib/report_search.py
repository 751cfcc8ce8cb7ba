"""The report's table and picture of a search: every candidate, and why it did or did not ship.

In: the manifest. Out: HTML; empty where the target was named and not searched for. All figures are
those of `val_select` and a clock, as the search saw them before it tested anything, but for how
many tests on `val_calib` each candidate came through.
"""

from __future__ import annotations

from cascade_calib.bounds import clopper_pearson_upper
from cascade_calib.plots import SpeedPoint, speed_plot
from cascade_calib.report_html import EMPTY, facts, table
from cascade_calib.words import percent
from cascade_runtime.manifest import Certificate, Manifest, Search, SearchCandidate

HEAD = (
    "candidate",
    "outcome",
    "images/s",
    "rounds",
    "size",
    "difference",
    "flips",
    "coverage",
    "risk",
    "tests passed",
)


def candidates(manifest: Manifest) -> str:
    """The section, or nothing."""
    if manifest.search is None:
        return ""
    search = manifest.search
    rows = [_cells(number, row, search) for number, row in enumerate(search.candidates, 1)]
    why = [(row.name, row.reason) for row in search.candidates]
    certificate = next(iter(manifest.certificates.values()))
    return (
        "<section><h2>How the target was chosen</h2><p>Of these candidates the fastest whose "
        "certificate holds was to ship. Hypotheses (candidate, thresholds) were put in one order "
        "on the selection images, from the safest to the fastest, and tested on the calibration "
        f"images in that order until one failed: {search.sequence_tested} of "
        f"{search.sequence_length}. That is one sequence of tests, so the promise does not depend "
        f"on how many candidates there were.</p>{_picture(search, certificate)}"
        f"{table(HEAD, rows, 'Candidates')}{facts(why)}<p class='note'>Speed: median "
        f"of {search.rounds} rounds in which every candidate had its turn, over "
        f"{search.timed} selection images, "
        f"{search.batch} at a time, with the early exits of the thresholds proposed for it. "
        "Difference: the largest to the float32 network, as a share of what the precision may "
        "differ by. Flips: images decided otherwise than by that network. "
        f"Coverage and risk: on the {search.n_select:,} selection images that proposed "
        "the thresholds, so they flatter; they are not what is certified.</p></section>"
    )


def _picture(search: Search, certificate: Certificate) -> str:
    beyond = 1 - (certificate.confidence or 0.95)
    points = [
        SpeedPoint(
            number,
            row.outcome,
            (row.slowest, row.images_per_s, row.fastest),
            row.errors / row.accepted,
            clopper_pearson_upper(row.errors, row.accepted, beyond),
        )
        for number, row in enumerate(search.candidates, 1)
        if row.accepted
        and row.slowest is not None
        and row.images_per_s is not None
        and row.fastest is not None
    ]
    if not points:
        return ""
    said = "; ".join(
        f"{p.number} {search.candidates[p.number - 1].name}, {p.outcome}, {p.speed[1]:g} images a "
        f"second, {percent(p.risk)} wrong"
        for p in points
    )
    promised = f"promised: {percent(certificate.alpha, 6)}"
    svg = speed_plot(points, certificate.alpha, promised, "Risk over speed", said)
    return (
        f"<figure>{svg}<figcaption>Each candidate by its number in the table, on the selection "
        f"images: upright, the risk up to its upper bound at {percent(1 - beyond, 6)} confidence; "
        "across, the slowest to the fastest round.</figcaption></figure>"
    )


def _cells(number: int, row: SearchCandidate, search: Search) -> tuple[str, ...]:
    name = f"{number}. {row.name}"
    if row.images_per_s is None or row.slowest is None or row.fastest is None:
        return (name, row.outcome, *[EMPTY] * 8)
    parity = row.parity
    n = search.n_select
    return (
        name,
        row.outcome,
        f"{row.images_per_s:g}",
        f"{row.slowest:g} to {row.fastest:g}",
        f"{row.engine_bytes / 1e6:.3g} MB",
        percent(of_limit(row), 2),
        f"{parity.get('decision_flips', 0):.0f} of {parity.get('images', 0):.0f}",
        percent(row.accepted / n) if n else EMPTY,
        percent(row.errors / row.accepted) if row.accepted else EMPTY,
        f"{row.passed} of {row.tested}" if row.tested else EMPTY,
    )


def of_limit(row: SearchCandidate) -> float:
    """The largest difference to the network, as a share of the largest that is allowed."""
    allowed = row.parity.get("limit", 0.0) * row.parity.get("largest_logit", 0.0)
    return row.parity.get("max_difference", 0.0) / allowed if allowed else 0.0
