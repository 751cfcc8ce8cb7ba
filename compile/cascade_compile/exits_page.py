"""What was expected of each choice of exits, for people.

In: an `ExitsChoice`. Out: a table and a sentence, or a picture of milliseconds against coverage.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from cascade_calib.path import Request
from cascade_calib.plots import COLOURS, FAINT, INK, LIMIT, STYLE
from cascade_calib.report_html import EMPTY
from cascade_calib.words import percent
from cascade_compile.exits import ExitsChoice
from cascade_compile.placement import Placement

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 5


def table(found: ExitsChoice) -> Table:
    """The fastest few that are likely to be certified, else the likeliest, and the run's own."""
    from rich.table import Table

    made = Table(title="Expected of the exits after blocks")
    made.add_column("exits")
    for head in ("ms/image", "coverage", "risk", "chance", "reached, by exit"):
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("")
    rows = [p for p in found.placements if found.likely(p)][:SHOWN]
    if not rows:
        rows = sorted(found.placements, key=lambda p: -p.chance)[:SHOWN]
    rows += [p for p in (found.chosen, found.own) if p is not None and p not in rows]
    for placement in sorted(rows, key=lambda p: p.ms):
        made.add_row(*_cells(placement, _note(found, placement)))
    return made


def conclusion(found: ExitsChoice) -> str:
    """What was chosen, and why it may be trusted; or what would have to be otherwise."""
    request, chosen = found.request, found.chosen
    on = (
        f"Of {found.considered} choices, on {found.images:,} images of val_select, "
        f"{request.batch} at a time on {request.target}"
    )
    if chosen is None:
        alpha, floor = float(request.promise.alpha), float(request.promise.coverage)
        return (
            f"{on}, none has a chance of {percent(request.chance)} to be certified at alpha "
            f"{percent(alpha, 6)} with coverage {percent(floor, 6)}; nothing is written. Label "
            "more images, or ask for a larger alpha, less coverage, or a smaller --chance"
        )
    than = "; all of them are not likely to be certified"
    if found.own is not None and found.likely(found.own):
        than = f", {found.own.ms / chosen.ms:.2f} times as fast as all of them"
    best = max((p for p in found.placements if found.likely(p)), key=lambda p: p.coverage)
    covers = f"It covers {percent(chosen.coverage)}"
    if best.coverage > chosen.coverage:
        covers += (
            f"; exits after {_blocks(best)} would cover {percent(best.coverage)} and take "
            f"{best.ms / chosen.ms:.2f} times as long (--within limits what is given up)"
        )
    return (
        f"{on}: exit after {_blocks(chosen)}{than}. {covers}. These are expectations of "
        "val_select; what is promised is certified on val_calib, which was not read:\n"
        f"  cascade-compile bundle {request.out} --out NAME.cascade --target {request.target} "
        f"{_promised(request.promise)}"
    )


def picture(found: ExitsChoice) -> bytes:
    """PNG: each choice's milliseconds and coverage, the chosen and the run's own one named."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for likely, colour, label in (
            (True, COLOURS[0], "likely to be certified"),
            (False, FAINT, "not likely"),
        ):
            some = [p for p in found.placements if found.likely(p) == likely]
            points = [p.ms for p in some], [100 * p.coverage for p in some]
            axes.plot(*points, "o", color=colour, markersize=4, label=label)
        for one, colour, mark in ((found.own, INK, "s"), (found.chosen, COLOURS[1], "D")):
            if one is not None:
                label = f"{_blocks(one)}: {_note(found, one)}"
                face = colour if found.likely(one) else "none"
                at = [one.ms], [100 * one.coverage]
                axes.plot(*at, mark, color=colour, markerfacecolor=face, label=label)
        floor = 100 * float(found.request.promise.coverage)
        axes.axhline(floor, color=LIMIT, linewidth=1, linestyle="--", label="coverage floor")
        axes.set_xlabel("expected milliseconds an image")
        axes.set_ylabel("expected coverage, %")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _promised(promise: Request) -> str:
    """The options of `bundle` that ask for the same."""
    asked = {"alpha": promise.alpha, "delta": promise.delta, "coverage": promise.coverage}
    asked |= {} if promise.fnr is None else {"fnr": promise.fnr}
    options = [f"--{name} {float(value):g}" for name, value in asked.items()]
    return " ".join([*options, *[f"--policy {promise.policy}"] * (promise.policy != "certified")])


def _cells(placement: Placement, note: str) -> tuple[str, ...]:
    return (
        _blocks(placement),
        f"{placement.ms:.3g}",
        percent(placement.coverage),
        percent(placement.risk),
        f"{100 * placement.chance:.0f} %",
        " / ".join(f"{100 * share:.0f} %" for share in placement.reach),
        note,
    )


def _note(found: ExitsChoice, placement: Placement) -> str:
    """Why a choice is named."""
    notes = [
        "chosen" * (placement == found.chosen),
        "as trained" * (placement == found.own),
        "not likely to be certified" * (not found.likely(placement)),
    ]
    return ", ".join(note for note in notes if note)


def _blocks(placement: Placement) -> str:
    return ",".join(map(str, placement.exits)) or EMPTY
