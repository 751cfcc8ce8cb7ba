"""The projection as a picture: throughput over exit rate, with the rate that is wanted.

In: a `Projection`. Out: a PNG. One line a device and network, at the largest batch; the band is
from slow to fast.
"""

from __future__ import annotations

import numpy as np

from cascade_bench.pictures import GRID, drawing, encoded
from cascade_bench.project.predict import batch_seconds
from cascade_bench.project.report import Projection, exits_of
from cascade_bench.project.work import of_preset
from cascade_calib.plots import COLOURS, LIMIT
from cascade_train.presets import preset

_POINTS = 51
_DASHES = ("-", "--", ":")


def draw(found: Projection) -> bytes:
    """The picture of `--plot`."""
    asked = found.asked
    batch = max(asked.batches)
    along = np.linspace(0, 1, _POINTS)
    lines = [(each, preset(name)) for name in asked.presets for each in found.devices]
    title = f"Predicted throughput at batch {batch}, engines alone; bands: slow to fast"
    with drawing(9.6, 4.8, title) as figure:
        axes = figure.subplots()
        for index, (each, network) in enumerate(lines):
            size = asked.image_size or network.image_size
            work = of_preset(network, size, exits_of(asked, network))
            slow, likely, fast = (
                [
                    batch
                    / batch_seconds(work, each.device, each.precision, x, batch, [rate] * len(work))
                    for rate in along
                ]
                for x in each.efficiency
            )
            colour = COLOURS[index % len(COLOURS)]
            if len(lines) <= len(COLOURS):
                axes.fill_between(100 * along, slow, fast, color=colour, alpha=0.12, linewidth=0)
            dashes = _DASHES[index // len(COLOURS) % len(_DASHES)]
            label = f"{each.device.name}, {network.name}, {each.precision}"
            axes.plot(100 * along, likely, dashes, color=colour, linewidth=2, label=label)
        axes.axhline(asked.min_rate, color=LIMIT, linewidth=1.2)
        axes.text(
            100,
            asked.min_rate,
            f"{asked.min_rate:g} images/s",
            color=LIMIT,
            va="bottom",
            ha="right",
        )
        axes.set_yscale("log")
        axes.set_xlim(0, 100)
        axes.set(xlabel="images that leave at each early exit, %", ylabel="images a second")
        axes.grid(axis="y", **GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return encoded(figure)
