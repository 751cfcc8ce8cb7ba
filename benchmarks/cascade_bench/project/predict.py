"""Seconds from work: the roofline with an efficiency, and what early exits take off it.

In: `Work` a stage, a `Device`, an `Efficiency`. Out: seconds a batch, images a second, and the exit
rate that reaches a wanted one. A stage takes as long as its products or its memory traffic,
whichever is longer, and the launches of its layers on top:

    max(products / (efficiency x peak), bytes / (share of bandwidth)) + layers x launch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_bench.project.devices import Device
from cascade_bench.project.work import Work
from cascade_bench.roofline.roof import Roof

_WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
_HANDED = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "fp8": 2}  # between layers
_STEPS = 60  # of the bisection


@dataclass(frozen=True)
class Efficiency:
    """products: share of the peak that a network's products reach, everything between them
    included; memory: share of the bandwidth; launch: seconds a layer."""

    products: float
    memory: float
    launch: float


ASSUMED = {
    "low": Efficiency(0.20, 0.60, 10e-6),
    "middle": Efficiency(0.35, 0.75, 5e-6),
    "high": Efficiency(0.50, 0.90, 2e-6),
}
"""For machines that were not measured: assumptions, and no more than that."""


def stage_seconds(
    work: Work, device: Device, precision: str, efficiency: Efficiency, images: float, any_: float
) -> float:
    """One stage, expected.

    Args:
        images: how many arrive, expected; any_: the probability that one arrives at all.
    """
    roof = Roof(device.peak(precision), device.bandwidth * efficiency.memory)
    # Products of another precision are counted as so many more at the peak of this one.
    slower = device.peak(precision) / device.attention(precision)
    products = images * (work.linear + slower * work.attention) / efficiency.products
    traffic = any_ * work.weights * _WIDTH[precision] + images * work.values * _HANDED[precision]
    return roof.least_seconds(products, traffic) + any_ * work.layers * efficiency.launch


def batch_seconds(
    stages: Sequence[Work],
    device: Device,
    precision: str,
    efficiency: Efficiency,
    batch: int,
    exit_rates: Sequence[float] = (),
) -> float:
    """A batch through all stages, expected.

    Args:
        exit_rates: for each exit but the last, the share of the images reaching it that leave
            there; none for a network that is always run to its end.
    """
    seconds, reach = 0.0, 1.0
    for index, work in enumerate(stages):
        some = 1 - (1 - reach) ** batch
        seconds += stage_seconds(work, device, precision, efficiency, batch * reach, some)
        reach *= 1 - (exit_rates[index] if index < len(exit_rates) else 0.0)
    return seconds


def needed_exit_rate(
    stages: Sequence[Work],
    device: Device,
    precision: str,
    efficiency: Efficiency,
    batch: int,
    rate: float,
) -> float | None:
    """The lowest exit rate, the same at every exit, at which `rate` images a second are reached.

    0.0 where none has to leave early; None where even the first stage alone is too slow.
    """

    def reached(exit_rate: float) -> bool:
        rates = [exit_rate] * (len(stages) - 1)
        return batch / batch_seconds(stages, device, precision, efficiency, batch, rates) >= rate

    if reached(0.0):
        return 0.0
    if not reached(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
