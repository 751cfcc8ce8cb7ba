"""`cascade-bench soak`: hours of mixed traffic with faults, every answer checked, and resumable.

In: a bundle, images, and a state file. Out: a `Soak`. The state gains a line a minute; a run that
was killed, or whose power went, goes on where it was with the same command. Every process says
there that it begins and how it ends, so that one that could not is counted.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cascade_bench import machine
from cascade_bench.journal import Journal
from cascade_bench.soak_record import (
    ANSWERS,
    BEGAN,
    DONE,
    HUNG,
    STOPPED,
    Limits,
    Minute,
    Process,
    Soak,
    Start,
    State,
    drifts,
    marked,
    read,
)
from cascade_bench.soak_traffic import SEED, Request, Traffic
from cascade_bench.timing import percentile
from cascade_bench.workload import Runtime, bundle_sha256, split_read
from cascade_calib.labelled import read_labelled
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import ConfigError, DataError, TargetError

MOST_EXAMPLES = 5
_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Plan:
    """What to run; see the options of the command.

    max_wait: seconds; a call without an answer for so long hangs.
    """

    bundle: Path
    data: str
    hours: float
    state: Path
    split: str | None = None
    target: str = "auto"
    runtime: Runtime = "python"
    threads: int | None = None
    clients: int = 2
    corrupt: float = 0.02
    row_seconds: float = 60.0
    max_wait: float = 600.0
    limits: Limits = field(default_factory=Limits)


@dataclass
class Tally:
    """What one client has seen in one row, and what it asked last."""

    asked: Request | None = None
    requests: int = 0
    images: int = 0
    damaged: int = 0
    wrong: int = 0
    failed: int = 0
    examples: list[str] = field(default_factory=list)
    single_ms: list[float] = field(default_factory=list)


def soak(plan: Plan, progress: Progress | None = None) -> Soak:
    """Run, or go on, until the state holds `plan.hours` of traffic, or a call hangs.

    A thread that hangs is left behind: only the end of the process ends it.

    Raises:
        BundleError, TargetError, DataError: the bundle or the images cannot be used; TargetError
            also when this process answers otherwise than the one that began.
        ConfigError: the state is another soak's, or is being written.
    """
    with Journal(plan.state) as journal:
        state = read(journal.entries, plan.state)
        cascade = Cascade.open(plan.bundle, plan.target, threads=plan.threads, engine=plan.runtime)
        images = read_labelled(plan.data, split=split_read(plan.data, plan.split))
        traffic = Traffic(cascade, images, progress)
        start = _start(plan, cascade, traffic)
        began = state.start or start
        check_same(began, start, plan.state)
        if not len(traffic):
            raise DataError(f"{images.root}: no image has one answer at every batch size")
        if state.start is None:
            journal.append(marked(start))
        if _hours(state.rows) < plan.hours:
            _go_on(plan, cascade, traffic, journal, state, progress)
    return sum_up(plan, began, state)


def check_same(began: Start, start: Start, path: Path) -> None:
    """Raises when the state at `path` is of something else than what runs now."""
    differs = began.differs(start)
    asked = [name for name in differs if name not in ANSWERS]
    words = ", ".join(
        f"{n} {getattr(began, n)!r}, now {getattr(start, n)!r}" for n in asked or differs
    )
    if asked:
        raise ConfigError(f"{path} was begun with {words}; give another --state, or delete it")
    if differs:
        raise TargetError(
            f"{path}: this process gives other answers than the one that began the soak, to the "
            f"same images with the same bundle and target: {words}"
        )


def _go_on(
    plan: Plan,
    cascade: Cascade,
    traffic: Traffic,
    journal: Journal,
    state: State,
    progress: Progress | None,
) -> None:
    """Add this process and its rows to the state and its file."""
    segment = 1 + len(state.ends())

    def note(event: str) -> None:
        state.processes.append(Process(segment, event, _now()))
        journal.append(marked(state.processes[-1]))

    note(BEGAN)
    end = STOPPED
    try:
        while (hours := _hours(state.rows)) < plan.hours:
            seconds = min(plan.row_seconds, 3600 * (plan.hours - hours))
            row, hung = minute(cascade, traffic, plan, segment, len(state.rows), hours, seconds)
            journal.append(marked(row))
            state.rows.append(row)
            if hung:
                end = HUNG
                return
            if progress is not None:
                done, total = round(3600 * row.hours), max(1, round(3600 * plan.hours))
                progress("soaking, seconds", min(done, total), total)
        end = DONE
    finally:
        with suppress(OSError):  # no space for it either: the row's error says so
            note(end)


def minute(
    cascade: Cascade,
    traffic: Traffic,
    plan: Plan,
    segment: int,
    number: int,
    hours: float,
    seconds: float,
) -> tuple[Minute, bool]:
    """One row: `plan.clients` threads for `seconds`, each with its own requests; did one hang?"""
    tallies = [Tally() for _ in range(plan.clients)]
    started = time.perf_counter()

    def client(index: int) -> None:
        rng = np.random.default_rng((SEED, segment, number, index))
        while time.perf_counter() - started < seconds or not tallies[index].requests:
            _ask(cascade, traffic, plan.corrupt, rng, tallies[index])

    threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(plan.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, started + seconds + plan.max_wait - time.perf_counter()))
    hung = [tally for tally, thread in zip(tallies, threads, strict=True) if thread.is_alive()]
    took = time.perf_counter() - started
    for tally in hung:
        tally.failed += 1
        tally.examples.insert(0, f"no answer within {plan.max_wait:g} s: {_what(tally.asked)}")
    return _row(tallies, segment, hours + took / 3600, took), bool(hung)


def _what(asked: Request | None) -> str:
    if asked is None:
        return "no request was made"
    more = len(asked.names) - 1
    return asked.names[0] + (f" and {more} more in the batch" if more else "")


def _ask(
    cascade: Cascade, traffic: Traffic, corrupt: float, rng: np.random.Generator, tally: Tally
) -> None:
    request = tally.asked = traffic.request(rng, corrupt)
    started = time.perf_counter()
    try:
        results = cascade.classify(list(request.images), batch_size=len(request.images))
        wrong = request.wrong(results)
    except Exception as error:  # whatever it is, it is a finding, and the soak goes on
        tally.failed += 1
        wrong = []
        tally.examples.append(f"{type(error).__name__}: {error}")
    took = time.perf_counter() - started
    tally.requests += 1
    tally.images += len(request.images)
    tally.damaged += request.expected.count(None)
    tally.wrong += len(wrong)
    tally.examples += wrong[:MOST_EXAMPLES]
    del tally.examples[MOST_EXAMPLES:]
    if len(request.images) == 1:
        tally.single_ms.append(1000 * took)


def _row(tallies: list[Tally], segment: int, hours: float, seconds: float) -> Minute:
    def total(count: Callable[[Tally], int]) -> int:
        return sum(count(tally) for tally in tallies)

    single = np.array([ms for tally in tallies for ms in tally.single_ms])
    return Minute(
        segment=segment,
        hours=hours,
        seconds=seconds,
        requests=total(lambda t: t.requests),
        images=total(lambda t: t.images),
        damaged=total(lambda t: t.damaged),
        wrong=total(lambda t: t.wrong),
        failed=total(lambda t: t.failed),
        examples=tuple([x for tally in tallies for x in tally.examples][:MOST_EXAMPLES]),
        singles=len(single),
        p50_ms=percentile(single, 50) if len(single) else None,
        p95_ms=percentile(single, 95) if len(single) else None,
        p99_ms=percentile(single, 99) if len(single) else None,
        max_ms=float(single.max()) if len(single) else None,
        memory_mib=resident_mib(),
        open_files=_count(_PROC / "fd"),
        threads=_count(_PROC / "task"),
        load=machine.load(),
    )


def sum_up(plan: Plan, start: Start, state: State) -> Soak:
    """The rows of all processes together.

    Raises:
        ConfigError: there are none.
    """
    rows = state.rows
    if not rows:
        raise ConfigError(f"--hours {plan.hours:g} is too short for a single row")
    return Soak(
        made_by=made_by(SEED),
        bundle=str(plan.bundle),
        start=start,
        wanted_hours=plan.hours,
        hours=rows[-1].hours,
        ends=state.ends(),
        rows=len(rows),
        requests=sum(row.requests for row in rows),
        images=sum(row.images for row in rows),
        damaged=sum(row.damaged for row in rows),
        wrong=sum(row.wrong for row in rows),
        failed=sum(row.failed for row in rows),
        examples=tuple([text for row in rows for text in row.examples][:MOST_EXAMPLES]),
        first=rows[0],
        last=rows[-1],
        drifts=drifts(rows, plan.limits),
    )


def resident_mib() -> float | None:
    """Resident memory of this process, None where /proc does not tell."""
    file = _PROC / "statm"
    if not file.exists():
        return None
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _count(folder: Path) -> int | None:
    return len(list(folder.iterdir())) if folder.is_dir() else None


def _start(plan: Plan, cascade: Cascade, traffic: Traffic) -> Start:
    return Start(
        bundle_sha256=bundle_sha256(plan.bundle),
        target=cascade.target,
        runtime=plan.runtime,
        threads=plan.threads,
        corrupt=plan.corrupt,
        clients=plan.clients,
        data_sha256=traffic.data_sha256,
        images=len(traffic),
        unreadable=traffic.unreadable,
        unsteady=traffic.unsteady,
        reference_sha256=traffic.reference_sha256(),
        created=_now(),
    )


def _hours(rows: list[Minute]) -> float:
    return rows[-1].hours if rows else 0.0


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
