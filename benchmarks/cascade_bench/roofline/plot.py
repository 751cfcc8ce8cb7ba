"""The roofline as a picture: arithmetic intensity against FLOP/s, stages and layers below roofs.

In: a `Roofline`. Out: a PNG.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cascade_bench.pictures import GRID, drawing, encoded
from cascade_bench.roofline.layers import Layer
from cascade_bench.roofline.measure import Profile, Roofline
from cascade_bench.roofline.roof import Roof
from cascade_calib.plots import COLOURS, FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = {"fp32": ":", "bf16": "--", "int8": "-"}
_MARKS = "oDs^v"
_LEAST_DOT = 6.0
_LEAST_SHARE = 0.001  # of a stage's time, for a layer to be drawn
_BELOW = 300  # the lowest rate drawn is so many times below the highest ceiling


def draw(found: Roofline) -> bytes:
    """The picture of `--plot`."""
    name = Path(found.bundle).name
    title = f"{name} on {found.target}; {found.cpu}, {found.threads} threads"
    title += "; by processor time, the machine being uneven" if found.noisy else ""
    with drawing(9.6, 5.2, title) as figure:
        axes = figure.subplots()
        _roofs(axes, found)
        _layers(axes, found)
        _stages(axes, found)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        top = max(found.ceiling.values()) / 1e9
        axes.set_ylim(top / _BELOW, 2 * top)
        axes.set(xlabel="arithmetic intensity, FLOP a byte", ylabel="GFLOP/s")
        axes.grid(**GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", ncols=2)
        return encoded(figure)


def _roofs(axes: Axes, found: Roofline) -> None:
    intensities = [x.intensity for x in found.stages]
    intensities += [x.flops / x.traffic for p in found.profiles for x in _drawn(p)]
    right = 2 * max(intensities)
    for precision, peak in found.ceiling.items():
        roof = Roof(peak, found.bandwidth)
        along = np.geomspace(1, right, 200)
        rates = [roof.attainable(float(x)) / 1e9 for x in along]
        own = precision == found.precision
        axes.plot(
            along,
            rates,
            _DASHES[precision],
            color=INK,
            linewidth=1.8 if own else 1.0,
            label=f"{precision} ceiling, {peak / 1e9:,.0f} GFLOP/s",
        )
    axes.plot([], [], " ", label=f"memory, {found.bandwidth / 1e9:.1f} GB/s")


def _drawn(profile: Profile) -> list[Layer]:
    """The layers with products that take any time."""
    least = _LEAST_SHARE * sum(layer.seconds for layer in profile.layers)
    return [x for x in profile.layers if x.flops and x.traffic and x.seconds >= least]


def _layers(axes: Axes, found: Roofline) -> None:
    """A dot a layer with products, its area the time that it takes."""
    for profile in found.profiles:
        whole = sum(layer.seconds for layer in profile.layers)
        dots = _drawn(profile)
        axes.scatter(
            [layer.flops / layer.traffic for layer in dots],
            [layer.flops / layer.seconds / 1e9 for layer in dots],
            s=[_LEAST_DOT + 900 * layer.seconds / whole for layer in dots],
            color=COLOURS[profile.stage % len(COLOURS)],
            alpha=0.35,
            linewidths=0,
            label=f"layers of stage {profile.stage}; area: time",
        )


def _stages(axes: Axes, found: Roofline) -> None:
    for stage in dict.fromkeys(x.stage for x in found.stages):
        own = [x for x in found.stages if x.stage == stage]
        colour = COLOURS[stage % len(COLOURS)]
        axes.plot(
            [x.intensity for x in own],
            [found.rate_of(x) / 1e9 for x in own],
            _MARKS[stage % len(_MARKS)] + "-",
            color=colour,
            markeredgecolor="white",
            linewidth=1.2,
            label=f"stage {stage}, batch {' '.join(str(x.batch) for x in own)}",
        )
        best = next(x for x in own if x.best)
        axes.annotate(
            f"{100 * found.share_of(best):.0f} %",
            (best.intensity, found.rate_of(best) / 1e9),
            xytext=(0, 7 if stage % 2 else -14),
            textcoords="offset points",
            ha="center",
            color=colour,
            fontsize=9,
        )
    axes.axvline(
        found.ceiling[found.precision] / found.bandwidth, color=FAINT, linewidth=1, zorder=0
    )
