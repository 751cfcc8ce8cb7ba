"""`cascade-bench project`: every prediction that was asked for, and what stands behind it.

In: an `Asked`. Out: a `Projection`. Of devices that were not measured each figure is three: what
the low, the middle and the high of the assumed efficiencies give. Of this machine the three are the
fit, and as many times slower and faster as the worst prediction was off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cascade_bench.project import fit as fitting
from cascade_bench.project.devices import Device, device, published
from cascade_bench.project.fit import Fit
from cascade_bench.project.predict import ASSUMED, Efficiency, batch_seconds, needed_exit_rate
from cascade_bench.project.work import Work, of_preset
from cascade_bench.roofline import measure
from cascade_bench.workload import SEED
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_runtime.bundle import Bundle
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import MadeBy
from cascade_train.presets import Preset, preset

PRECISION = "fp16"  # of the plans that are built for NVIDIA devices


@dataclass(frozen=True)
class Asked:
    """What to predict. devices: none named is every one, unless `bundles` are measured here.

    image_size, exits: None takes the preset's own. exit_rates: one for all exits, or one for each.
    precision: None is fp16, and here that of the bundles.
    """

    devices: tuple[str, ...] = ()
    presets: tuple[str, ...] = ("vits16",)
    image_size: int | None = None
    batches: tuple[int, ...] = (1, 8)
    exits: tuple[int, ...] | None = None
    exit_rates: tuple[float, ...] = (0.7,)
    precision: str | None = None
    min_rate: float = 100.0
    bundles: tuple[Path, ...] = ()
    target: str = "auto"
    threads: int | None = None
    seconds: float = 20.0


@dataclass(frozen=True)
class Three:
    """A figure by the low, the middle and the high efficiency; None: out of reach."""

    slow: float | None
    likely: float | None
    fast: float | None

    def each(self) -> tuple[float | None, float | None, float | None]:
        """All of them, the slow one first."""
        return self.slow, self.likely, self.fast


@dataclass(frozen=True)
class Row:
    """One network on one device at one batch size: milliseconds a batch, images a second."""

    device: str
    preset: str
    image_size: int
    precision: str
    exits: tuple[int, ...]
    batch: int
    always_full_ms: Three
    cascade_ms: Three
    always_full_rate: Three
    cascade_rate: Three
    needed_exit_rate: Three


@dataclass(frozen=True)
class Projected:
    """A device with the three efficiencies that its figures are computed with."""

    device: Device
    precision: str
    efficiency: tuple[Efficiency, Efficiency, Efficiency]


@dataclass(frozen=True)
class Projection:
    """Every row, the devices behind them, and how well this machine was predicted."""

    made_by: MadeBy
    asked: Asked
    devices: tuple[Projected, ...]
    rows: tuple[Row, ...]
    fit: Fit | None


def run(asked: Asked, progress: Progress | None = None) -> Projection:
    """Measure where bundles are given, and predict.

    Raises:
        ConfigError: an unknown device, preset, precision, or exits that the network does not have.
        BundleError, TargetError: a bundle cannot be opened or run here.
    """
    networks = [_network(asked, preset(name)) for name in asked.presets]
    projected = [_published(name, asked) for name in _names(asked)]
    found = None
    if asked.bundles:
        found, precision = _here(asked, progress)
        projected.append(Projected(found.device, precision, _around(found)))
    rows = [
        _row(asked, each, network, work, batch)
        for network, work in networks
        for each in projected
        for batch in asked.batches
    ]
    return Projection(made_by(SEED), asked, tuple(projected), tuple(rows), found)


def _network(asked: Asked, network: Preset) -> tuple[Preset, tuple[Work, ...]]:
    work = of_preset(network, asked.image_size or network.image_size, exits_of(asked, network))
    if len(asked.exit_rates) not in (1, len(work) - 1):
        raise ConfigError(
            f"--exit-rate has {len(asked.exit_rates)} values, {network.name} with --exits "
            f"{','.join(map(str, exits_of(asked, network)))} wants 1 or {len(work) - 1}"
        )
    return network, work


def exits_of(asked: Asked, network: Preset) -> tuple[int, ...]:
    """The early exits: those asked for, or the preset's own, its end left out."""
    exits = network.exits if asked.exits is None else asked.exits
    return tuple(block for block in exits if block != network.blocks)


def _names(asked: Asked) -> list[str]:
    if asked.devices or asked.bundles:
        return list(asked.devices)
    wanted = asked.precision or PRECISION
    return [name for name, each in published().items() if wanted in each.peaks]


def _published(name: str, asked: Asked) -> Projected:
    found, precision = device(name), asked.precision or PRECISION
    found.peak(precision)  # says so now where there is none
    return Projected(found, precision, (ASSUMED["low"], ASSUMED["middle"], ASSUMED["high"]))


def _here(asked: Asked, progress: Progress | None) -> tuple[Fit, str]:
    rooflines = [
        measure.run(
            measure.Plan(path, asked.target, asked.threads, asked.batches, asked.seconds), progress
        )
        for path in asked.bundles
    ]
    machine = fitting.this_machine(rooflines)
    precision = asked.precision or rooflines[0].precision
    machine.peak(precision)
    uneven = fitting.uneven(rooflines)
    timed = [
        sample
        for found in rooflines
        for sample in fitting.samples(found, Bundle.open(found.bundle).manifest, uneven)
    ]
    return fitting.fit(machine, timed), precision


def _around(found: Fit) -> tuple[Efficiency, Efficiency, Efficiency]:
    """The fit, and as many times slower and faster as its worst prediction was off."""
    x = found.efficiency

    def scaled(by: float) -> Efficiency:
        return Efficiency(x.products * by, x.memory * by, x.launch / by)

    off = found.largest_factor
    return scaled(1 / off), x, scaled(off)


def _row(asked: Asked, each: Projected, network: Preset, work: Sequence[Work], batch: int) -> Row:
    rates = asked.exit_rates * (len(work) - 1 if len(asked.exit_rates) == 1 else 1)

    def seconds(leaving: Sequence[float]) -> list[float]:
        return [
            batch_seconds(work, each.device, each.precision, x, batch, leaving)
            for x in each.efficiency
        ]

    full, early = seconds(()), seconds(rates)
    needed = [
        needed_exit_rate(work, each.device, each.precision, x, batch, asked.min_rate)
        for x in each.efficiency
    ]
    return Row(
        device=each.device.name,
        preset=network.name,
        image_size=asked.image_size or network.image_size,
        precision=each.precision,
        exits=exits_of(asked, network),
        batch=batch,
        always_full_ms=Three(*(1000 * s for s in full)),
        cascade_ms=Three(*(1000 * s for s in early)),
        always_full_rate=Three(*(batch / s for s in full)),
        cascade_rate=Three(*(batch / s for s in early)),
        needed_exit_rate=Three(*needed),
    )
