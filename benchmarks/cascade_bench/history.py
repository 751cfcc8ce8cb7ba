"""`cascade-bench history`: is a commit slower than a baseline? Asked of pairs, never of a clock.

In: two commits and a bundle. Out: an `Entry`, for a JSONL file. Fresh processes of both runtimes
take turns, ABBA, on the same images and the same engines, so that whatever the machine does, it
does to both; an absolute time of another day is never looked at.

A metric is a regression when the whole interval of its ratio lies beyond the allowed slowdown. The
intervals share one error among the metrics (Bonferroni): commits whose true ratios are just what is
allowed raise an alarm in at most half of `ERROR` of all runs, and equal ones hardly ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from cascade_bench import fresh, machine
from cascade_bench.forms import parse, plain
from cascade_bench.fresh import Order, Run, used
from cascade_bench.machine import Machine
from cascade_bench.ratios import Ratio, ratio_of
from cascade_bench.revisions import RUNTIME, Revision, checked_out, own_checkout, revision
from cascade_bench.workload import SEED, bundle_sha256, open_workload, split_read
from cascade_calib.labelled import read_labelled
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import ConfigError, TargetError
from cascade_runtime.manifest import MadeBy

FORMAT = "cascade-edge.bench-history"
VERSION = 1
ERROR = 0.05
METRICS: dict[str, tuple[str, Callable[[Run], float]]] = {
    "latency, batch 1": ("ms", lambda run: 1000 * median(run.single_s)),
    "files in one batch": ("ms", lambda run: 1000 * median(run.whole_s)),
    "first decision": ("s", lambda run: run.first_decision_s),
    "peak memory": ("MiB", lambda run: run.peak_memory_mib),
}
"""By name, the unit and what a process says of it; of all of them less is better."""


@dataclass(frozen=True)
class Finding:
    """One metric: the medians of both sides, and the ratio, revision over baseline.

    allowed: the ratio up to which nothing is said.
    """

    metric: str
    unit: str
    baseline: float
    revision: float
    ratio: Ratio
    allowed: float

    @property
    def verdict(self) -> str:
        """`regression`; `within`, which the interval shows; or `undecided`, for want of pairs."""
        if self.ratio.low > self.allowed:
            return "regression"
        return "within" if self.ratio.high <= self.allowed else "undecided"


@dataclass(frozen=True)
class Entry:
    """One comparison; `warm_up` processes of each side came first and were not counted."""

    made_by: MadeBy
    bundle: str
    bundle_sha256: str
    target: str
    machine: Machine
    baseline: Revision
    revision: Revision
    pairs: int
    warm_up: int
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.verdict != "regression" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **plain(self)}


@dataclass(frozen=True)
class Plan:
    """What to compare; see the options of the command."""

    bundle: Path
    baseline: str
    revision: str = "HEAD"
    repository: Path | None = None
    data: str | None = None
    split: str | None = None
    target: str = "auto"
    threads: int | None = None
    pairs: int = 20
    seconds: float = 1.0
    max_slowdown: float = 0.05


def compare(plan: Plan, progress: Progress | None = None) -> Entry:
    """Run both sides in turns.

    Raises:
        ConfigError: the revisions cannot be had.
        BundleError, TargetError: the bundle cannot be opened here, by either of them.
        DataError: the images cannot be used.
    """
    load_before = machine.load()
    repository = plan.repository or own_checkout()
    sides = [revision(repository, name) for name in (plan.baseline, plan.revision)]
    cascade = Cascade.open(plan.bundle, plan.target, threads=plan.threads, warm_up=False)
    images = None
    if plan.data is not None:
        images = read_labelled(plan.data, split=split_read(plan.data, plan.split))
    with open_workload(cascade, images) as work, checked_out(repository, sides) as folders:
        order = Order(
            bundle=str(plan.bundle.resolve()),
            target=cascade.target,
            threads=plan.threads,
            files=tuple(str(Path(file).resolve()) for file in used(work.files)),
            seconds=plan.seconds,
        )
        runs = take_turns(order, folders, plan.pairs, progress)
    return Entry(
        made_by=made_by(SEED),
        bundle=plan.bundle.name,
        bundle_sha256=bundle_sha256(plan.bundle),
        target=cascade.target,
        machine=machine.describe(cascade, load_before),
        baseline=sides[0],
        revision=sides[1],
        pairs=plan.pairs,
        warm_up=1,
        seconds=plan.seconds,
        findings=judge(*runs, allowed=1 + plan.max_slowdown, images=len(order.files)),
    )


def take_turns(
    order: Order, folders: Sequence[Path], pairs: int, progress: Progress | None = None
) -> tuple[list[Run], list[Run]]:
    """ABBA ABBA ...: the runs of each side, the k-th of both next to each other in time."""
    for folder in folders:
        start(order, folder)  # byte code is compiled, files are read from the disk
    runs: tuple[list[Run], list[Run]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            runs[side].append(start(order, folders[side]))
        if progress is not None:
            progress("pairs of processes", pair + 1, pairs)
    return runs


def start(order: Order, folder: Path) -> Run:
    """One process on the runtime in `folder`, and no other.

    Raises:
        TargetError: it fails, or another runtime than that one was imported.
    """
    run = fresh.run(order, path=str(folder / RUNTIME))
    if not Path(run.runtime).resolve().is_relative_to(folder.resolve()):
        raise TargetError(f"{run.runtime} was imported instead of the one in {folder}")
    return run


def judge(
    baseline: Sequence[Run], revised: Sequence[Run], *, allowed: float, images: int
) -> tuple[Finding, ...]:
    """A finding a metric, the intervals of all holding at once with 1 - `ERROR`."""
    found = []
    for metric, (unit, value) in METRICS.items():
        was, now = [value(run) for run in baseline], [value(run) for run in revised]
        ratio = ratio_of(now, was, images, level=1 - ERROR / len(METRICS))
        found.append(Finding(metric, unit, median(was), median(now), ratio, allowed))
    return tuple(found)


def entries(lines: Sequence[dict[str, Any]], path: Path) -> list[Entry]:
    """The lines of a history.

    Raises:
        ConfigError: they are of something else.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if (line.get("format"), line.get("version")) != (FORMAT, VERSION):
            raise ConfigError(f"{path}: line {number} is no line of a history, version {VERSION}")
        try:
            found.append(parse(line, Entry))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from error
    return found
