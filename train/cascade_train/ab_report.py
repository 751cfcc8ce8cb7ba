"""A comparison for people: a table, sentences, and a picture.

In: an `AbResult`. Out: rich tables, what may be concluded and what not, and ab.png.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_calib.plots import COLOURS, FAINT, INK
from cascade_train.curves import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from cascade_train.ab import AbResult, Figure

_UNITS = {
    "augrc": ("AUGRC × 1000", 1e3, 2),
    "augrc_softmax": ("AUGRC × 1000, softmax score", 1e3, 2),
    "mcc": ("MCC", 1.0, 3),
    "fnr": ("FNR, %", 1e2, 2),
    "trainable_share": ("parameters trained, %", 1e2, 2),
    "seconds": ("training time, s", 1.0, 1),
    "peak_memory": ("peak memory, MiB", 2.0**-20, 0),
}


def unit(name: str) -> tuple[str, float, int]:
    """A figure's name for people, the factor to show it in, and its decimals."""
    if name.startswith("accuracy_"):
        return f"accuracy after block {name.removeprefix('accuracy_')}, %", 1e2, 2
    if name.startswith("coverage_at_"):
        return f"coverage at {100 * float(name.removeprefix('coverage_at_')):g} % risk, %", 1e2, 1
    return _UNITS[name]


def tables(result: AbResult) -> list[Table]:
    """What differs between the arms, and every figure."""
    from rich.markup import escape
    from rich.table import Table

    arms = Table("setting", *_headings(result), title="what differs", title_justify="left")
    for key, (a, b) in result.changed.items():
        arms.add_row(escape(key), escape(str(a)), escape(str(b)))
    figures = Table(
        "figure", *_headings(result), "B - A", "95 %, seeds and images", "95 %, seeds", "p",
        "better", title=f"val_test, {result.images} images, {len(result.seeds)} seeds, torch model",
        title_justify="left",
        caption="mean ± standard deviation over seeds; p below the line by Holm",
    )  # fmt: skip
    for f in result.figures:
        name, scale, digits = unit(f.name)
        cost = f.kind == "cost"
        figures.add_row(
            name,
            _spread(f.first, scale, digits),
            _spread(f.second, scale, digits),
            _signed(f.difference, scale, digits),
            "" if cost else _span(f.interval, scale, digits),
            _span(f.of_seeds, scale, digits),
            "" if cost or math.isnan(f.p) else f"{f.p:.2g}",
            "" if cost else {"neither": "-"}.get(f.better, f.better),
            end_section=f.kind == "primary" or f is _last_judged(result),
        )
    made = [figures] if result.figures else []
    return [arms, *made] if result.changed else made


def conclusion(result: AbResult) -> str:
    """What the numbers show, what they do not, and what went wrong."""
    lines = [_verdict(result)]
    judged = [f for f in result.figures if f.kind == "secondary"]
    if judged and len(result.seeds) > 1:
        clear = [f"{unit(f.name)[0]} ({f.better})" for f in judged if f.better != "neither"]
        found = f"better after it: {'; '.join(clear)}" if clear else "none of them differs after it"
        lines.append(
            f"AUGRC was named beforehand as the figure that decides. {len(judged)} others were "
            f"compared, corrected together (Holm): {found}."
        )
    if len(result.seeds) > 1:
        sampled = f"{result.images} test images"
        if result.groups is not None:
            sampled += f" in {result.groups} groups"
        lines.append(
            f"The unit is the training: {len(result.seeds)} seeds, both arms with the same split "
            f"and seed, and new draws of the {sampled} added to their spread. Other training "
            "images are not part of it. Measured with the torch model; a certificate is made on "
            "the compiled engine."
        )
    if result.winner != "neither":
        lines.append(
            "These test images have now been used to choose: what the chosen arm shows on them is "
            "a little too good; report it on others."
        )
    if not result.changed:
        lines.append("A and B are the same configuration: this shows the noise of a comparison.")
    if result.looks > 1:
        lines.append(
            f"This is evaluation {result.looks} with a growing number of seeds. Adding seeds until "
            "a difference shows finds one too often: the 95 % hold for a number fixed beforehand."
        )
    lines += [f"{f.arm} failed with seed {f.seed}: {f.reason}" for f in result.failures]
    return "\n".join(lines)


def _verdict(result: AbResult) -> str:
    a, b = (f"{arm} ({name})" for arm, name in zip("AB", result.names, strict=True))
    if len(result.seeds) < 2:
        return (
            f"No verdict: seeds in which both arms came to their end: {len(result.seeds)}. With "
            "fewer than two, chance in training cannot be told from a difference."
        )
    f = result.figures[0]
    _, scale, digits = unit(f.name)
    size = f"{_signed(f.difference, scale, digits)} [{_span(f.interval, scale, digits)}]"
    if f.better != "neither" and result.winner == "neither":
        failed = sum(x.arm == f.better for x in result.failures)
        return (
            f"No verdict: {f.better} has the lower AUGRC where both ended (B - A, × 1000: {size}), "
            f"but {failed} of its trainings failed, and those are not in this figure."
        )
    if result.winner == "neither":
        reach = (f.interval.high - f.interval.low) / 2
        return (
            f"The data cannot tell {a} from {b}: AUGRC × 1000, B - A, is {size}. Differences below "
            f"about {scale * reach:.{digits}f} do not show with this many seeds and images."
        )
    winner = {"A": a, "B": b}[result.winner]
    return f"{winner} is better: AUGRC × 1000, B - A, is {size}; lower is better."


def write_plot(result: AbResult, path: Path) -> None:
    """Draw ab.png: AUGRC by seed for both arms, and the difference of every figure."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    shown = [f for f in result.figures if not math.isnan(f.difference)]
    rows = max(len(shown), 1)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(11, 1.3 + 0.42 * rows), dpi=130, layout="constrained")
        FigureCanvasAgg(canvas)
        left, right = canvas.subplots(1, 2, width_ratios=(2, 5))
        if shown:
            _slopes(left, shown[0], result)
            _forest(right, shown)
        title = _verdict(result).split(": AUGRC")[0]
        canvas.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=11)
        temporary = path.with_name(f".{path.name}.part")
        try:
            canvas.savefig(temporary, format="png", metadata={"Software": None})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _slopes(axes: Axes, figure: Figure, result: AbResult) -> None:
    """One line a seed from A to B, and the means."""
    name, scale, _ = unit(figure.name)
    for a, b in zip(figure.first, figure.second, strict=True):
        axes.plot([0, 1], [scale * a, scale * b], "o-", color="#9aa5ae", markersize=3.5, lw=1)
    means = [scale * statistics.fmean(x) for x in (figure.first, figure.second)]
    axes.plot([0, 1], means, "D-", color=COLOURS[0], markersize=6, linewidth=2.2)
    labels = [f"{arm}\n{_short(name)}" for arm, name in zip("AB", result.names, strict=True)]
    axes.set_xticks([0, 1], labels)
    axes.set_xlim(-0.35, 1.35)
    axes.set_title(f"{name}, a line a seed")
    axes.grid(axis="y", color="#e8edf1", linewidth=0.8)


def _forest(axes: Axes, shown: Sequence[Figure]) -> None:
    """B - A of every figure on a scale of its own, zero in the middle."""
    for row, f in enumerate(shown):
        _, scale, digits = unit(f.name)
        interval = f.of_seeds if f.kind == "cost" else f.interval
        gaps = [b - a for a, b in zip(f.first, f.second, strict=True)]
        ends = [x for x in (*interval, *gaps) if math.isfinite(x)]
        reach = max((abs(x) for x in ends), default=0.0) or 1.0
        colour = {"A": COLOURS[1], "B": COLOURS[0]}.get(f.better, INK)
        dots = [row + 0.24] * len(gaps)
        axes.plot([g / reach for g in gaps], dots, "o", color="#9aa5ae", markersize=3)
        if math.isfinite(interval.low):
            span = [interval.low / reach, interval.high / reach]
            axes.plot(span, [row, row], color=colour, linewidth=2)
        axes.plot(f.difference / reach, row, "D", color=colour, markersize=5.5, zorder=4)
        text = _signed(f.difference, scale, digits)
        if math.isfinite(interval.low):
            text += f"  [{_span(interval, scale, digits)}]"
        axes.text(1.08, row, text, va="center", fontsize=9, color=colour)
    axes.axvline(0, color=FAINT, linewidth=1.2, zorder=0)
    axes.set_yticks(range(len(shown)), [unit(f.name)[0] for f in shown])
    axes.set(xlim=(-1.05, 2.1), ylim=(len(shown) - 0.4, -0.6))
    axes.set_xticks([])
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("B - A, 95 % intervals on their own scales; dots: seeds; colour: one is better")


def _last_judged(result: AbResult) -> Figure | None:
    return next((f for f in reversed(result.figures) if f.kind != "cost"), None)


def _headings(result: AbResult) -> tuple[str, str]:
    from rich.markup import escape

    a, b = (
        f"{arm}: {name}" if name != arm else arm
        for arm, name in zip("AB", result.names, strict=True)
    )
    return escape(a), escape(b)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _spread(values: Sequence[float], scale: float, digits: int) -> str:
    if any(math.isnan(v) for v in values):
        return "-"
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _signed(value: float, scale: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{scale * value:+.{digits}f}"


def _span(interval: Sequence[float], scale: float, digits: int) -> str:
    low, high = (scale * x for x in interval)
    return "-" if math.isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"
