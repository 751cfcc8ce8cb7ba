"""The records of `performance.py`, read back, and what was asked of them.

In: a folder of records. Out: a `Measured` a network, and a `Verdict` for each limit, reached or not
by the record's own figure. Limits are of the project; a record knows none of them but the goals of
`roofline` and the checks of `run`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from cascade_bench.compare import record as compare
from cascade_bench.compare.tables import times
from cascade_bench.forms import parse
from cascade_bench.limits import Check
from cascade_bench.peers.transformers import NAME as PIPELINE
from cascade_bench.record import Record as Run
from cascade_bench.roofline.measure import Reached
from cascade_bench.roofline.record import Record as Roofline
from cascade_bench.timing import SPREAD_LIMIT
from cascade_calib.words import percent
from cascade_runtime.errors import DataError

T = TypeVar("T")

TITLES = {
    "tiny": "tiny, 64 px: the network of make demo, with exits chosen by measured cost",
    "vits16": "ViT-S/16, 224 px: trained like tiny, first on small images",
    "vitb16": "ViT-B/16, 224 px: a random backbone with trained heads",
}
PIPELINE_LIMITS = {"tiny": 10.0, "vits16": 6.0}  # times the transformers pipeline, from files
PEER_LIMIT = 2.0  # times the best peer
OWN_LIMIT = 0.05  # of the time from files to decisions, at batch 8 and larger
ROOFLINE_JUDGED = {"vits16": ("bf16", "int8")}  # the goals are of a ViT-S stage


@dataclass
class Measured:
    """What there is of one network; every part may be missing."""

    name: str
    runs: dict[str, Run] = field(default_factory=dict)  # by runtime
    compare: compare.Record | None = None
    rooflines: list[Roofline] = field(default_factory=list)

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def bundles(self) -> set[str]:
        """The hashes of what its records are of."""
        compared = [] if self.compare is None else [self.compare]
        return {x.bundle_sha256 for x in [*self.runs.values(), *compared, *self.rooflines]}


@dataclass(frozen=True)
class Verdict:
    """One limit of one network, what was found, and whether that reaches it."""

    network: str
    what: str
    limit: str
    found: str
    reached: bool


def read(folder: Path) -> list[Measured]:
    """Every network that has a record.

    Raises:
        DataError: a file is no record of the verb that its name says, or those of a network are of
            more than one bundle.
    """
    found = []
    for name in TITLES:
        one = Measured(name)
        for runtime in ("python", "native"):
            for path in folder.glob(f"{name}-run-{runtime}.json"):
                one.runs[runtime] = _parsed(path, Run)
        for path in folder.glob(f"{name}-compare.json"):
            one.compare = _parsed(path, compare.Record)
        for path in sorted(folder.glob(f"{name}-roofline-*.json")):
            one.rooflines.append(_parsed(path, Roofline))
        if len(one.bundles) > 1:
            raise DataError(
                f"{folder}/{name}-*.json are of {len(one.bundles)} bundles; measure makes those of "
                "older ones anew; remove what it leaves"
            )
        if one.bundles:
            found.append(one)
    return found


def _parsed(path: Path, kind: type[T]) -> T:
    try:
        return parse(msgspec.json.decode(path.read_bytes()), kind)
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: not such a record ({error}); measure it --again") from error


def verdicts(one: Measured) -> Iterator[Verdict]:
    """Every limit that is asked of this network, in the order of the page."""
    if one.compare is not None:
        yield from _over_peers(one.name, one.compare)
    if "python" in one.runs:
        yield from _of_run(one.name, one.runs["python"])
    for roofline in one.rooflines:
        precision = roofline.target.split("/")[1]
        if precision in ROOFLINE_JUDGED.get(one.name, ()):
            yield _of_roofline(one.name, roofline, precision)


def _over_peers(name: str, record: compare.Record) -> Iterator[Verdict]:
    limit = PIPELINE_LIMITS.get(name)
    for batch in record.batches:
        pipeline = f"{PIPELINE} fp32"
        asked = []
        if limit is not None and any(speed.name == pipeline for speed in batch.speeds):
            asked.append((pipeline, pipeline, limit))
        if batch.best_peer is not None:
            asked.append((batch.best_peer, f"the best peer, {batch.best_peer}", PEER_LIMIT))
        for peer, title, least in asked:
            x = batch.of(peer).over_files
            yield Verdict(
                name,
                f"over {title}, batch {batch.batch}, files to decisions",
                f"at least {least:g} times",
                times(x),
                x.value >= least,
            )


def _of_run(name: str, record: Run) -> Iterator[Verdict]:
    for own in record.own or ():
        yield Verdict(
            name,
            f"the Python runtime's own share, batch {own.batch}",
            f"under {percent(OWN_LIMIT)}",
            f"{percent(own.own)} ({percent(own.low)} to {percent(own.high)})",
            own.own < OWN_LIMIT,
        )
    limits = {check.name: check.limit for check in record.checks}
    promised = record.certificate.alpha <= limits["exit error"]
    for check in record.checks:
        if check.unit == "share" and not promised:
            continue  # heads on random features: nobody promised as much of this bundle
        yield Verdict(
            name,
            f"{check.name}: {check.of}",
            f"{'at most' if check.at_most else 'at least'} {_in_its_unit(check, check.limit)}",
            _in_its_unit(check, check.value),
            check.passed,
        )


def _in_its_unit(check: Check, value: float) -> str:
    if math.isnan(value):
        return "-"
    return percent(value) if check.unit == "share" else f"{value:.4g} {check.unit}"


def _of_roofline(name: str, record: Roofline, precision: str) -> Verdict:
    goal, lowest = record.goals[precision], min(best(record), key=lambda x: share(record, x))
    return Verdict(
        name,
        f"{record.target}: the lowest stage's share of the ceiling, batch {lowest.batch}",
        f"at least {percent(goal)}",
        percent(share(record, lowest)),
        share(record, lowest) >= goal,
    )


def best(record: Roofline) -> list[Reached]:
    """Every stage at its best batch size."""
    return [x for x in record.stages if x.best]


def noisy(record: Roofline) -> bool:
    return record.spread > SPREAD_LIMIT


def share(record: Roofline, x: Reached) -> float:
    """Of its ceiling: by processor time where the machine was uneven, as `roofline` says it."""
    return x.cpu_share if noisy(record) else x.share
