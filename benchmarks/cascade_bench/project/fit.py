"""Efficiency from stages that were timed here, and how wrong predicting them would have been.

In: rooflines of bundles on this machine. Out: a `Fit`. Each group of samples is predicted by what
is fitted to the others, so the error stated is that of bundles (or, of one bundle, stages) that the
fit had not seen. Where the machine was uneven, ceilings and stages are by processor time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cascade_bench.project.devices import Device
from cascade_bench.project.predict import Efficiency, stage_seconds
from cascade_bench.project.work import Work, of_stages
from cascade_bench.roofline.measure import Roofline
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Manifest

MEMORY = 0.9  # of the copy or triad that was measured: weights are only read
_LAUNCHES = np.array([0, 1, 2, 5, 10, 20, 50, 100]) * 1e-6
_PRODUCTS = np.geomspace(0.02, 1.2, 180)


@dataclass(frozen=True)
class Sample:
    """One stage at one batch, timed: seconds a batch."""

    bundle: str
    stage: int
    batch: int
    precision: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Compared:
    """A sample and its prediction by a fit that had not seen its group."""

    sample: Sample
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.sample.seconds - 1


@dataclass(frozen=True)
class Fit:
    """What was fitted to all samples, and what `held_out` says of it.

    held_out: in words, what each prediction had not seen.
    """

    device: Device
    efficiency: Efficiency
    compared: tuple[Compared, ...]
    held_out: str

    @property
    def mean_error(self) -> float:
        """The mean of the errors' sizes."""
        return float(np.mean([abs(x.error) for x in self.compared]))

    @property
    def largest_factor(self) -> float:
        """How many times too slow or too fast the worst prediction was: half the time is 2."""
        return float(np.exp(max(abs(np.log1p(x.error)) for x in self.compared)))

    @property
    def largest_error(self) -> float:
        """The largest of the errors' sizes."""
        return max(abs(x.error) for x in self.compared)


def uneven(found: Sequence[Roofline]) -> bool:
    """Whether processor time is to be used, of all of them then."""
    return any(roofline.noisy for roofline in found)


def this_machine(found: Sequence[Roofline]) -> Device:
    """The ceilings of the rooflines, each the highest that was seen."""
    peaks: dict[str, float] = {}
    for roofline in found:
        for precision, peak in (roofline.cpu_peaks if uneven(found) else roofline.peaks).items():
            peaks[precision] = max(peak, peaks.get(precision, 0.0))
    first = found[0]
    return Device(
        name="here",
        title=f"{first.cpu}, {first.threads} threads",
        peaks=peaks,
        bandwidth=max(roofline.bandwidth for roofline in found),
        sources=(),
        note=f"ceilings measured in this run, by {_clock(uneven(found))}",
        measured=True,
    )


def _clock(processor: bool) -> str:
    return "processor time, the machine being uneven" if processor else "the clock on the wall"


def samples(found: Roofline, manifest: Manifest, processor: bool) -> list[Sample]:
    """Every stage and batch of a roofline, by the clock that `processor` says."""
    work = of_stages(manifest.stages)
    return [
        Sample(
            bundle=found.bundle,
            stage=x.stage,
            batch=x.batch,
            precision=found.precision,
            work=work[x.stage],
            seconds=(x.cpu_ms_per_image if processor else x.ms_per_image) * x.batch / 1000,
        )
        for x in found.stages
    ]


def fit(device: Device, timed: Sequence[Sample]) -> Fit:
    """Fit to all, and predict each group from the others.

    Raises:
        ConfigError: a single stage, from which nothing can be held out.
    """
    by_bundle = len({sample.bundle for sample in timed}) > 1
    groups = [sample.bundle if by_bundle else sample.stage for sample in timed]
    if len(set(groups)) < 2:
        raise ConfigError(
            "--here: one bundle of one stage leaves nothing to hold out; give another --bundle"
        )
    compared = []
    for group in dict.fromkeys(groups):
        rest = [x for x, own in zip(timed, groups, strict=True) if own != group]
        held = efficiency_of(device, rest)
        compared += [
            Compared(x, _seconds(device, x, held))
            for x, own in zip(timed, groups, strict=True)
            if own == group
        ]
    held_out = "its bundle" if by_bundle else "its stage"
    return Fit(device, efficiency_of(device, timed), tuple(compared), held_out)


def efficiency_of(device: Device, timed: Sequence[Sample]) -> Efficiency:
    """The efficiency whose predictions are nearest: least squares of the logarithms, by a grid."""
    measured = np.log([sample.seconds for sample in timed])
    best, nearest = Efficiency(1.0, MEMORY, 0.0), np.inf
    for launch in _LAUNCHES:
        for products in _PRODUCTS:
            tried = Efficiency(float(products), MEMORY, float(launch))
            predicted = np.log([_seconds(device, sample, tried) for sample in timed])
            away = float(np.square(predicted - measured).sum())
            if away < nearest:
                best, nearest = tried, away
    return best


def _seconds(device: Device, sample: Sample, efficiency: Efficiency) -> float:
    return stage_seconds(sample.work, device, sample.precision, efficiency, sample.batch, 1.0)
