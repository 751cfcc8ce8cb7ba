"""`cascade-bench roofline`: ceilings and stages timed in the same rounds, then layer by layer.

In: a `Plan`. Out: a `Roofline`. Ceilings are rates of matrix products in each precision that the
target's library has here, run by the engines that run the stages, and of memory traffic by as many
threads. A rate is that of the fastest call over all rounds: what other programs take of a machine
only ever slows, and a stage's share is of the fastest of both. `paired` is the same by another way,
the stage's rate over that of the ceiling right before and after it, median over the rounds; where
the two differ the machine was uneven. A third way is by processor time, which other programs do not
take: what the share would be had this one its cores to itself and waited for nothing. Layers have
their part of the stage's time, as the profiler shares it out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade_bench import machine, timing
from cascade_bench.on_processor import open_on_processor
from cascade_bench.roofline import gemm, layers
from cascade_bench.roofline.gemm import Gemm, MemoryTraffic
from cascade_bench.roofline.layers import Layer
from cascade_bench.timing import SPREAD_LIMIT, Seconds, in_rounds
from cascade_bench.workload import SEED, bundle_sha256
from cascade_calib.progress import Progress
from cascade_calib.provenance import cpu_name, made_by
from cascade_runtime import engines
from cascade_runtime.cascade import Cascade
from cascade_runtime.engines.processor import usable_cores
from cascade_runtime.manifest import MadeBy

BATCHES = (1, 8, 16)
LEAST_ROUNDS = 3
LEAST_CPU_S = 1e-6  # what the clock of processor time can tell
CHOICE_SHARE = 0.3  # of the seconds, to find each precision's best shape
PRECISIONS = ("fp32", "bf16", "int8")
GOALS = {"fp32": 0.85, "bf16": 0.85, "int8": 0.65}
"""The share of its precision's ceiling that a ViT-S stage is to reach at its best batch."""


@dataclass(frozen=True)
class Plan:
    """What to measure; `seconds` for all rounds together, profiles apart."""

    bundle: Path
    target: str = "auto"
    threads: int | None = None
    batches: tuple[int, ...] = BATCHES
    seconds: float = 30.0
    memory_mib: float = gemm.MIB_A_THREAD


@dataclass(frozen=True)
class Ceiling:
    """The rate of one chain of products; `best`: the highest of its precision, which counts."""

    precision: str
    shape: str
    flops_per_s: float
    best: bool


@dataclass(frozen=True)
class Reached:
    """One stage at one batch size, by its fastest call; `paired`, with the lowest and the highest,
    by the calls of the ceiling beside each; and both by processor time, median over the rounds.

    intensity: FLOPs a byte of input, weights and output.
    """

    stage: int
    batch: int
    rounds: int
    ms_per_image: float
    flops_per_image: float
    intensity: float
    flops_per_s: float
    share: float
    paired: float
    paired_low: float
    paired_high: float
    cpu_share: float
    cpu_ms_per_image: float
    best: bool


@dataclass(frozen=True)
class Profile:
    """The layers of one stage over one batch, as the library's own profiler timed them."""

    stage: int
    batch: int
    layers: tuple[Layer, ...]

    @property
    def ms_per_image(self) -> float:
        return 1000 * layers.total(self.layers) / self.batch


@dataclass(frozen=True)
class Roofline:
    """Everything that was found. `peaks`: FLOP/s by precision; `memory`: bytes/s by what moved.

    spread: of the same products (see `timing`); it says how uneven the machine was.
    """

    made_by: MadeBy
    bundle: str
    bundle_sha256: str
    target: str
    cpu: str
    threads: int
    load_before: float | None
    load_after: float | None
    spread: float
    ceilings: tuple[Ceiling, ...]
    peaks: dict[str, float]
    cpu_peaks: dict[str, float]
    memory: dict[str, float]
    stages: tuple[Reached, ...]
    profiles: tuple[Profile, ...]

    @property
    def noisy(self) -> bool:
        """Whether the machine was too uneven for its clock on the wall to be trusted."""
        return self.spread > SPREAD_LIMIT

    @property
    def precision(self) -> str:
        """The target's."""
        return self.target.split("/")[1]

    @property
    def bandwidth(self) -> float:
        """The higher of copy and triad, bytes/s."""
        return max(self.memory.values())

    @property
    def best(self) -> tuple[Reached, ...]:
        """Each stage at the batch size at which it is fastest an image."""
        return tuple(reached for reached in self.stages if reached.best)

    @property
    def ceiling(self) -> dict[str, float]:
        """FLOP/s by precision, by the clock that can be trusted here."""
        return self.cpu_peaks if self.noisy else self.peaks

    def share_of(self, x: Reached) -> float:
        """A stage's share, by the clock that can be trusted here."""
        return x.cpu_share if self.noisy else x.share

    def rate_of(self, x: Reached) -> float:
        """A stage's FLOP/s, likewise."""
        return self.share_of(x) * self.ceiling[self.precision]

    def share(self, layer: Layer) -> float | None:
        """Of the ceiling of the layer's own precision; None where it computes no products."""
        peak = self.ceiling.get(layer.precision)
        return layer.flops / layer.seconds / peak if peak and layer.flops else None

    def lost(self, layer: Layer) -> float:
        """Seconds beyond what its products would take at the ceiling of their precision."""
        peak = self.ceiling.get(layer.precision)
        return layer.seconds - (layer.flops / peak if peak else 0.0)


@dataclass(frozen=True)
class _Timed:
    """Something to time, and how much one call of it is: FLOPs, or bytes."""

    name: str
    amount: float
    call: Callable[[int], object]


class _Spent:
    """A call that notes the processor time of each time it is made, on all threads together."""

    def __init__(self, call: Callable[[int], object]) -> None:
        self._call = call
        self.seconds: list[float] = []

    def __call__(self, index: int) -> None:
        started = time.process_time()
        self._call(index)
        self.seconds.append(max(time.process_time() - started, LEAST_CPU_S))


def run(plan: Plan, progress: Progress | None = None) -> Roofline:
    """Measure all of it.

    Raises:
        BundleError, TargetError: the bundle cannot be opened or run here, is to run on a GPU, or
            its library has no profiler that we read.
    """
    load_before = machine.load()
    cascade = open_on_processor(plan.bundle, plan.target, plan.threads, "ceilings")
    target = cascade.manifest.targets[cascade.target]
    layers.library(target.backend)  # says so now where there is none
    threads = plan.threads or len(usable_cores())
    told = _Told(progress, plan.seconds)
    ceilings, chosen = _choose(cascade, plan, CHOICE_SHARE * plan.seconds)
    told.behind(CHOICE_SHARE)
    traffic = MemoryTraffic(threads, plan.memory_mib)
    moved = [
        _Timed("copy", traffic.bytes["copy"], lambda _: traffic.copy()),
        _Timed("triad", traffic.bytes["triad"], lambda _: traffic.triad()),
    ]
    own = chosen[target.precision]
    paired = [own]  # the target's ceiling before and after every stage
    for stage in range(len(target.stages)):
        for batch in plan.batches:
            paired += [_stage(cascade, stage, batch), own]
    timed = [*chosen.values(), *moved, *paired]
    spent = [_Spent(each.call) for each in timed]
    times = in_rounds(spent, seconds=(1 - CHOICE_SHARE) * plan.seconds, least=LEAST_ROUNDS)
    traffic.close()
    told.behind(1.0)
    amounts = np.array([each.amount for each in timed])
    rates = amounts / times
    cpu = threads * amounts / np.array([float(np.median(each.seconds[1:])) for each in spent])
    kinds, beside = len(chosen), len(chosen) + len(moved)
    ceiling, reaching = rates[:, beside::2], rates[:, beside + 1 :: 2]
    peaks = {name: float(rates[:, k].max()) for k, name in enumerate(chosen)}
    peaks[target.precision] = float(ceiling.max())
    cpu_peaks = {name: float(cpu[k]) for k, name in enumerate(chosen)}
    cpu_peaks[target.precision] = float(np.median(cpu[beside::2]))
    memory = {each.name: float(rates[:, kinds + k].max()) for k, each in enumerate(moved)}
    spread = timing.spread(ceiling.ravel())
    noisy = spread > SPREAD_LIMIT
    shares = 2 * reaching / (ceiling[:, :-1] + ceiling[:, 1:])
    reached = _reached(
        cascade,
        plan.batches,
        reaching.max(axis=0),
        shares,
        cpu[beside + 1 :: 2],
        (peaks[target.precision], cpu_peaks[target.precision]),
        noisy,
    )
    return Roofline(
        made_by=made_by(SEED),
        bundle=str(plan.bundle),
        bundle_sha256=bundle_sha256(plan.bundle),
        target=cascade.target,
        cpu=cpu_name().rsplit(",", 1)[0],
        threads=threads,
        load_before=load_before,
        load_after=machine.load(),
        spread=spread,
        ceilings=ceilings,
        peaks=peaks,
        cpu_peaks=cpu_peaks,
        memory=memory,
        stages=reached,
        profiles=tuple(_profile(cascade, x, noisy) for x in reached if x.best),
    )


def _choose(
    cascade: Cascade, plan: Plan, seconds: float
) -> tuple[tuple[Ceiling, ...], dict[str, _Timed]]:
    """Every precision's chains, and the fastest of each."""
    backend = cascade.manifest.targets[cascade.target].backend
    module = layers.library(backend)
    precisions = [x for x in PRECISIONS if engines.backend(backend).unavailable(x, "cpu") is None]
    wanted = [(x, shape) for x in precisions for shape in gemm.shapes(cascade.manifest.stages)]
    timed = [
        _Timed(
            shape.name,
            shape.flops,
            _chain(module.gemm_files(shape, precision), backend, precision, shape, plan.threads),
        )
        for precision, shape in wanted
    ]
    times = in_rounds([each.call for each in timed], seconds=seconds, least=LEAST_ROUNDS)
    rates = np.array([each.amount for each in timed]) / times.min(axis=0)
    ceilings: list[Ceiling] = []
    chosen: dict[str, _Timed] = {}
    for precision in precisions:
        own = [k for k, (name, _) in enumerate(wanted) if name == precision]
        first = max(own, key=lambda k: float(rates[k]))
        chosen[precision] = timed[first]
        ceilings += [
            Ceiling(precision, wanted[k][1].name, float(rates[k]), k == first) for k in own
        ]
    return tuple(ceilings), chosen


def _chain(
    files: dict[str, bytes], backend: str, precision: str, shape: Gemm, threads: int | None
) -> Callable[[int], object]:
    loaded = engines.load(
        backend, files, next(iter(files)), precision=precision, device="cpu", threads=threads
    )
    taken = shape.input()
    return lambda _: loaded.run(taken)


def _stage(cascade: Cascade, stage: int, batch: int) -> _Timed:
    """One stage's engine on its own input; the FLOPs are those of the manifest."""
    taken = stage_input(cascade, stage, batch)
    run_stage = cascade.stages.engines[stage].run
    flops = 2 * cascade.manifest.stages[stage].macs * batch
    return _Timed(f"stage {stage}", flops, lambda _: run_stage(taken))


def stage_input(cascade: Cascade, stage: int, batch: int) -> npt.NDArray[Any]:
    """What a stage takes, of its shape and type: noise, of which no time depends."""
    rng = np.random.default_rng(stage)
    size = cascade.preprocess
    if cascade.stages.inputs[stage] == "pixels":
        return rng.integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
    before = cascade.manifest.stages[stage - 1]
    return rng.standard_normal((batch, before.tokens, before.width), dtype=np.float32)


def _reached(
    cascade: Cascade,
    batches: Sequence[int],
    fastest: Seconds,
    paired: Seconds,
    cpu: Seconds,
    peaks: tuple[float, float],
    noisy: bool,
) -> tuple[Reached, ...]:
    """The stages at their batches, which are the last axis of all arrays.

    Args:
        fastest, cpu: FLOP/s, by the clock on the wall and by processor time; peaks: likewise.
        paired: shares [rounds, stages x batches].
        noisy: the best batch is the one of least processor time.
    """
    found: list[Reached] = []
    for stage, info in enumerate(cascade.manifest.stages):
        columns = range(stage * len(batches), (stage + 1) * len(batches))
        first = max(columns, key=lambda column: float((cpu if noisy else fastest)[column]))
        for column, batch in zip(columns, batches, strict=True):
            rate = float(fastest[column])
            found.append(
                Reached(
                    stage=stage,
                    batch=batch,
                    rounds=len(paired),
                    ms_per_image=1000 * 2 * info.macs / rate,
                    flops_per_image=2.0 * info.macs,
                    intensity=2 * info.macs * batch / _traffic(cascade, stage, batch),
                    flops_per_s=rate,
                    share=rate / peaks[0],
                    paired=float(np.median(paired[:, column])),
                    paired_low=float(paired[:, column].min()),
                    paired_high=float(paired[:, column].max()),
                    cpu_share=float(cpu[column]) / peaks[1],
                    cpu_ms_per_image=1000 * 2 * info.macs / float(cpu[column]),
                    best=column == first,
                )
            )
    return tuple(found)


def _traffic(cascade: Cascade, stage: int, batch: int) -> int:
    """Bytes that one call must move: its engine's files, what it takes, the tokens it gives."""
    files = cascade.manifest.targets[cascade.target].stages[stage].files
    weights = sum(len(cascade.bundle.read(file)) for file in files)
    info = cascade.manifest.stages[stage]
    given = cascade.stages.inputs[stage + 1 : stage + 2] == ("tokens",)
    tokens = 4 * batch * info.tokens * info.width if given else 0
    return weights + stage_input(cascade, stage, batch).nbytes + tokens


def _profile(cascade: Cascade, reached: Reached, noisy: bool) -> Profile:
    target = cascade.manifest.targets[cascade.target]
    names = target.stages[reached.stage].files
    runs = layers.library(target.backend).profile(
        {name: cascade.bundle.read(name) for name in names},
        names[0],
        stage_input(cascade, reached.stage, reached.batch),
        precision=target.precision,
        threads=cascade.threads,
    )
    ms = reached.cpu_ms_per_image if noisy else reached.ms_per_image
    return Profile(reached.stage, reached.batch, layers.over(ms * reached.batch / 1000, runs))


class _Told:
    """Says how many of the planned seconds are behind."""

    def __init__(self, progress: Progress | None, seconds: float) -> None:
        self._progress, self._seconds = progress, max(1, round(seconds))
        self.behind(0.0)

    def behind(self, share: float) -> None:
        if self._progress is not None:
            self._progress("planned seconds", round(share * self._seconds), self._seconds)
