"""`cascade-bench run`: every measurement, one after the other, on one open bundle.

In: a bundle, perhaps labelled images, and the limits. Out: a `Record`. The order is from small to
large, so that a later measurement knows from an earlier one how much work fits its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cascade_bench import (
    comparison,
    energy,
    footprint,
    latency,
    load,
    machine,
    native,
    own_share,
    pinning,
    quality,
    stage_shares,
    throughput,
)
from cascade_bench.fresh import Order, used
from cascade_bench.limits import Check, Limits, judge
from cascade_bench.record import Record, WorkloadRecord
from cascade_bench.workload import (
    SEED,
    Runtime,
    Workload,
    bundle_sha256,
    open_workload,
    split_read,
)
from cascade_calib.evaluate import in_the_classes_of
from cascade_calib.labelled import LabelledImages, read_labelled
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_runtime.cascade import Cascade

T = TypeVar("T")
PLANNED_SHARES = 11  # of `Plan.seconds`, over the measurements of `_measure`
LOAD_SHARES = 6
SWEEP_SHARES = 6
OWN_SHARES = 1  # of the Python runtime: libcascade's is its overhead over the bare engine
NATIVE_SHARES = 3  # more, of libcascade beside the engine and the Python runtime


@dataclass(frozen=True)
class Plan:
    """What to run. `seconds` is for each measurement; the sweep has three times that, latency and
    the comparison twice, being two each.

    split: of a splits.json given as `data`; None takes `val_test`, which nothing was fitted to.
    load, thread_sweep: also measure these, which take long.
    runtime: who decides where files are timed; the engines alone are the same for both.
    """

    bundle: Path
    target: str = "auto"
    threads: int | None = None
    data: str | None = None
    split: str | None = None
    seconds: float = 4.0
    runtime: Runtime = "python"
    load: bool = False
    thread_sweep: bool = False
    limits: Limits = field(default_factory=Limits)


def run(plan: Plan, progress: Progress | None = None) -> Record:
    """Do all of it.

    Raises:
        BundleError, TargetError: the bundle cannot be opened or run here.
        DataError: the labelled images cannot be used.
    """
    load_before = machine.load()
    if plan.runtime == "native":
        native.command()  # says so now where it is not built
    cascade = Cascade.open(plan.bundle, plan.target, threads=plan.threads)
    images = labelled(plan, cascade)
    with open_workload(cascade, images, progress) as work:
        return _measure(plan, cascade, images, work, load_before, progress)


def _measure(
    plan: Plan,
    cascade: Cascade,
    images: LabelledImages | None,
    work: Workload,
    load_before: float | None,
    progress: Progress | None,
) -> Record:
    s = plan.seconds
    answering = cascade
    if plan.runtime == "native":
        answering = Cascade.open(plan.bundle, cascade.target, threads=plan.threads, engine="native")
    order = Order(str(plan.bundle), cascade.target, plan.threads, used(work.files))
    shares = PLANNED_SHARES + (OWN_SHARES if answering is cascade else NATIVE_SHARES)
    shares += LOAD_SHARES * plan.load + SWEEP_SHARES * plan.thread_sweep
    steps = _Steps(progress, shares * s)
    alone = steps.take(2 * s, lambda: latency.measure(cascade, answering, work, 2 * s))
    rates = steps.take(3 * s, lambda: throughput.sweep(cascade, work, 3 * s))
    best, largest = throughput.best(rates), rates[-1]
    files = steps.take(
        s, lambda: throughput.from_files(answering, work, largest.batch, largest.cascade, s)
    )
    against = steps.take(
        2 * s,
        lambda: comparison.compare(cascade, work, best.batch, best.always_full, 2 * s),
    )
    stages = steps.take(s, lambda: stage_shares.measure(cascade, work, best.batch, s))
    on_gpu = cascade.manifest.targets[cascade.target].device != "cpu"
    block = [work.files[index % len(work)] for index in range(largest.batch)]
    spent = steps.take(
        s,
        lambda: energy.measure(
            lambda _: answering.classify(block, len(block)), len(block), on_gpu, s
        ),
    )
    traffic = threads = None
    if plan.load:
        t = LOAD_SHARES * s
        traffic = steps.take(t, lambda: load.measure(answering, work, t))
    if plan.thread_sweep:
        u = SWEEP_SHARES * s
        threads = steps.take(u, lambda: pinning.measure(order, u))
    fresh = steps.take(s, lambda: footprint.measure(order, footprint.PROCESSES))
    own = beside = None
    if answering is cascade:
        own = steps.take(OWN_SHARES * s, lambda: own_share.measure(cascade, work, s))
    else:
        beside = steps.take(
            NATIVE_SHARES * s,
            lambda: native.measure(
                plan.bundle, cascade, answering, work, largest.batch, s, footprint.PROCESSES
            ),
        )
    steps.done()
    here = machine.describe(cascade, load_before)
    found = quality_of(plan, cascade, images, progress)
    return Record(
        made_by=made_by(SEED),
        bundle=str(plan.bundle),
        bundle_sha256=bundle_sha256(plan.bundle),
        runtime=plan.runtime,
        target=cascade.target,
        why=cascade.why,
        machine=here,
        workload=WorkloadRecord(work.description, len(work), work.distinct, work.mean_file_bytes()),
        latency=alone,
        throughput=rates,
        file_throughput=files,
        comparison=against,
        stages=stages,
        energy=spent,
        load=traffic,
        thread_sweep=threads,
        footprint=fresh,
        own=own,
        native=beside,
        quality=found,
        certificate=cascade.certificate,
        checks=checks_of(plan.limits, alone, files, found),
    )


def checks_of(
    limits: Limits, alone: latency.Latencies, files: throughput.FileRate, found: quality.Quality
) -> tuple[Check, ...]:
    """The targets, by what was measured of each."""
    return judge(
        limits,
        p95_ms=alone.decision.p95_ms,
        rate=files.images_per_s,
        batch=files.batch,
        quality=found,
    )


def labelled(plan: Plan, cascade: Cascade) -> LabelledImages | None:
    """The images of `plan.data`, in the classes of the bundle; None without."""
    if plan.data is None:
        return None
    images = read_labelled(plan.data, split=split_read(plan.data, plan.split))
    return in_the_classes_of(images, cascade.manifest.model.classes)


def quality_of(
    plan: Plan, cascade: Cascade, images: LabelledImages | None, progress: Progress | None
) -> quality.Quality:
    """Measured on `images`, or the certificate's where there are none."""
    if images is None:
        return quality.certified(cascade.certificate)
    name = split_read(plan.data, plan.split) or Path(str(plan.data)).name

    def told(what: str, done: int, total: int) -> None:
        if progress is not None:  # the same words were used for the images to be timed
            progress(f"{what} for quality", done, total)

    return quality.measured(cascade, images, f"measured on {name}", told)


class _Steps:
    """Tells how many of the planned seconds are behind; nothing is told while a clock runs."""

    def __init__(self, progress: Progress | None, planned: float) -> None:
        self._progress = progress
        self._planned = planned
        self._behind = 0.0
        self._tell()

    def take(self, seconds: float, measure: Callable[[], T]) -> T:
        result = measure()
        self._behind += seconds
        self._tell()
        return result

    def done(self) -> None:
        self._behind = self._planned
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            total = max(1, round(self._planned))
            self._progress("measuring, planned seconds", min(total, round(self._behind)), total)
