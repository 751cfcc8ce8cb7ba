"""The report's figures, as SVG text to be placed inside an HTML page.

In: curves and numbers. Out: `<svg>` elements that scale to their container, keep their text as
text, and are the same bytes for the same input. Nothing global is touched: no pyplot, and the
settings hold for one figure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade_calib.arrays import Float64, Int64
from cascade_calib.metrics import RiskCoverage
from cascade_calib.scaling import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6e99", "#c2571a", "#5b7f2b", "#7a4fa3", "#8a6d1d", "#3c4a57")
INK, FAINT, LIMIT = "#1d2730", "#c9d1d8", "#b3261e"
BEFORE = "#7f8b95"
STEADY = 0.02  # the first few images of a curve are all noise
_SCREEN = 600
STYLE: dict[Any, Any] = {  # of every picture; the packages add what theirs differ in
    "font.family": "sans-serif",
    "font.size": 10.0,
    "svg.fonttype": "none",  # text stays text
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Band:
    """Intervals of the selective risk at some coverages; float64 [points] each."""

    coverage: Float64
    low: Float64
    high: Float64


@dataclass(frozen=True)
class ExitCurve:
    """One exit's risk over coverage, and how far to trust it."""

    line: RiskCoverage
    band: Band


@dataclass(frozen=True)
class OperatingPoint:
    """Where the cascade stands: coverage, risk, and the risk's upper bound where there is one."""

    coverage: float
    risk: float
    upper: float | None


@dataclass(frozen=True)
class SpeedPoint:
    """A candidate of a search: its number, images a second, and risk with its upper bound."""

    number: int
    outcome: str
    speed: tuple[float, float, float]  # slowest round, median, fastest round
    risk: float
    upper: float


def risk_coverage_plot(
    curves: Sequence[ExitCurve],
    limit: float,
    promised: str,
    point: OperatingPoint | None,
    name: str,
    description: str = "",
) -> str:
    """Selective risk over coverage for each exit alone, the promised risk, and the cascade.

    Args:
        limit: the promised risk, and `promised` what it is called.
        name: of the figure; unlike that of any other in the page.
        description: what the figure shows, for those who cannot see it.
    """

    def draw(axes: Axes) -> None:
        for stage, curve in enumerate(curves):
            colour, band = COLOURS[stage % len(COLOURS)], curve.band
            axes.fill_between(
                100 * band.coverage, 100 * band.low, 100 * band.high, color=colour, alpha=0.15, lw=0
            )
            steady = _shown(curve.line)
            x, y = curve.line.coverage[steady], curve.line.selective[steady]
            axes.plot(100 * x, 100 * y, color=colour, label=f"exit {stage} alone")
        axes.axhline(100 * limit, color=LIMIT, dashes=(4, 3), label=promised)
        if point is not None:
            _mark(axes, point)
        axes.set(xlim=(0, 101), ylim=(0, 100 * _top(curves, limit, point)))
        axes.set(xlabel="coverage, % of images acted on", ylabel="wrong among them, %")
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2, fontsize=9
        )

    return _svg(draw, (3.8, 3.1), name, description)


def _shown(line: RiskCoverage) -> Int64:
    """The points past the noise, at most as many as a screen can tell apart."""
    steady = np.flatnonzero(line.coverage >= STEADY)
    picks = np.linspace(0, len(steady) - 1, min(len(steady), _SCREEN)).round()
    return steady[picks.astype(np.int64)]


def _mark(axes: Axes, point: OperatingPoint) -> None:
    upper = point.risk if point.upper is None else point.upper
    axes.errorbar(
        [100 * point.coverage],
        [100 * point.risk],
        yerr=[[0.0], [100 * (upper - point.risk)]],
        fmt="D",
        color=INK,
        capsize=0 if point.upper is None else 4,
        label="cascade" if point.upper is None else "cascade, upper bound",
        zorder=5,
    )


def _top(curves: Sequence[ExitCurve], limit: float, point: OperatingPoint | None) -> float:
    """The region that matters: what is promised, the cascade, the best exit to half coverage."""
    half = [
        float(np.interp(0.5, curve.line.coverage, curve.line.selective))
        for curve in curves
        if len(curve.line.coverage)
    ]
    top = max(3 * limit, 2 * min(half, default=0.0))
    if point is not None:
        top = max(top, 1.3 * (point.risk if point.upper is None else point.upper))
    return min(top, 1.0)


def reliability_plot(
    before: Reliability, after: Reliability, floor: float, name: str, description: str = ""
) -> str:
    """What a score said against how often it was right, before and after scaling.

    Args:
        floor: the smallest probability that the score can state, 0.5 for the larger of two.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, zorder=1)
        for curve, colour, label in ((before, BEFORE, "before"), (after, COLOURS[0], "after")):
            size = 9 + 160 * curve.count / max(1, int(curve.count.sum()))
            axes.scatter(curve.said, curve.found, s=size, color=colour, alpha=0.85, linewidth=0)
            axes.scatter([], [], s=30, color=colour, label=label)
        axes.set(xlim=(floor - 0.03, 1.04), ylim=(-0.05, 1.06))
        axes.set(xlabel="stated probability", ylabel="share right")
        axes.legend(frameon=False, loc="lower right", fontsize=9)

    return _svg(draw, (3.4, 2.7), name, description)


def speed_plot(
    points: Sequence[SpeedPoint], limit: float, promised: str, name: str, description: str = ""
) -> str:
    """Risk against speed, a marker a candidate with its number, and the promised risk.

    Args:
        limit: the promised risk, and `promised` what it is called.
    """
    marks = {"shipped": "D", "certified": "o", "failed": "X"}

    def draw(axes: Axes) -> None:
        axes.axhline(100 * limit, color=LIMIT, dashes=(4, 3), label=promised)
        for outcome in dict.fromkeys(p.outcome for p in points):
            of = [p for p in points if p.outcome == outcome]
            slow, x, fast = np.array([p.speed for p in of]).T
            y, up = np.array([(100 * p.risk, 100 * p.upper) for p in of]).T
            colour = COLOURS[0] if outcome == "shipped" else LIMIT if outcome == "failed" else INK
            axes.errorbar(
                *(x, y),
                xerr=[x - slow, fast - x],
                yerr=[np.zeros(len(y)), up - y],
                fmt=marks.get(outcome, "s"),
                mfc=colour if outcome in marks else "white",
                color=colour,
                elinewidth=0.8,
                label=outcome,
            )
            for point in of:
                place = (point.speed[1], 100 * point.risk)
                axes.annotate(str(point.number), place, (5, -11), textcoords="offset points")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100 * max(1.5 * limit, 1.1 * max(p.upper for p in points)))
        axes.set(xlabel="images a second", ylabel="wrong when acting, %")
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2, fontsize=9
        )

    return _svg(draw, (3.8, 3.1), name, description)


def _svg(
    draw: Callable[[Axes], None], size: tuple[float, float], name: str, description: str
) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure: Figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(color="#e8edf1", linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), name, description)


def _inline(svg: str, name: str, description: str) -> str:
    """The element alone, without fixed size, its ids unique in the page and its content spoken."""
    body = svg[svg.index("<svg") :]
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
    rest = re.sub(r'\bid="', f'id="{slug}-', rest)
    rest = re.sub(r'(href="#|url\(#)', rf"\g<1>{slug}-", rest)
    label = escape(f"{name}: {description}" if description else name)
    return f'{head} role="img" aria-label="{label}">{rest}'.strip()
