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
from typing import TYPE_CHECKING, Any

from cascade_calib.metrics import RiskCoverage
from cascade_calib.scaling import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6e99", "#c2571a", "#5b7f2b", "#7a4fa3", "#8a6d1d", "#3c4a57")
INK, FAINT, LIMIT = "#1d2730", "#c9d1d8", "#b3261e"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "svg.fonttype": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class OperatingPoint:
    """Where the certified cascade stands: its coverage, its risk and the risk's upper bound."""

    coverage: float
    risk: float
    upper: float


def risk_coverage_plot(
    curves: Sequence[RiskCoverage], alpha: float, point: OperatingPoint | None, name: str
) -> str:
    """Selective risk over coverage for each exit alone, the promised risk, and the cascade."""

    def draw(axes: Axes) -> None:
        top = 3 * alpha  # the region that matters; a poor exit's curve may leave the frame
        for stage, curve in enumerate(curves):
            steady = curve.coverage >= 0.02  # the first few images are all noise
            x, y = curve.coverage[steady], curve.selective[steady]
            axes.plot(100 * x, 100 * y, color=_colour(stage), label=f"exit {stage} alone")
        axes.axhline(100 * alpha, color=LIMIT, dashes=(4, 3), label=f"promised: {100 * alpha:g} %")
        if point is not None:
            above = 100 * (point.upper - point.risk)
            axes.errorbar(
                [100 * point.coverage],
                [100 * point.risk],
                yerr=[[0.0], [above]],
                fmt="D",
                color=INK,
                capsize=4,
                label="cascade, upper bound",
                zorder=5,
            )
            top = max(top, 1.3 * point.upper)
        axes.set(xlim=(0, 101), ylim=(0, 100 * min(top, 1.0)))
        axes.set(xlabel="coverage, % of images acted on", ylabel="wrong among them, %")
        axes.legend(
            frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2, fontsize=9
        )

    return _svg(draw, (3.8, 3.1), name)


def reliability_plot(before: Reliability, after: Reliability, floor: float, name: str) -> str:
    """What a score said against how often it was right, before and after scaling.

    Args:
        floor: the smallest probability that the score can state, 0.5 for the larger of two.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, zorder=1)
        for curve, colour, label in ((before, "#9aa5ae", "before"), (after, COLOURS[0], "after")):
            size = 9 + 160 * curve.count / max(1, int(curve.count.sum()))
            axes.scatter(curve.said, curve.found, s=size, color=colour, alpha=0.85, linewidth=0)
            axes.scatter([], [], s=30, color=colour, label=label)
        axes.set(xlim=(floor - 0.03, 1.04), ylim=(-0.05, 1.06))
        axes.set(xlabel="stated probability", ylabel="share right")
        axes.legend(frameon=False, loc="lower right", fontsize=9)

    return _svg(draw, (3.4, 2.7), name)


def _svg(draw: Callable[[Axes], None], size: tuple[float, float], name: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure: Figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(color="#e8edf1", linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The element alone, without fixed size, its ids unique in the page and its name spoken."""
    body = svg[svg.index("<svg") :]
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())
    rest = re.sub(r'\bid="', f'id="{slug}-', rest)
    rest = re.sub(r'(href="#|url\(#)', rf"\g<1>{slug}-", rest)
    return f'{head} role="img" aria-label="{name}">{rest}'.strip()


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
