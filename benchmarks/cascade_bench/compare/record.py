"""A comparison as one record, and its JSON form.

`--json` prints one object, `"format": "cascade-edge.compare"`, `"version": 1`; fields are only ever
added within a version. Rates are images a second, shares are 0..1, a ratio is how many times as
fast the cascade is (value: of totals; low, high, confidence), and what is undefined is null. Its
JSON Schema is that of `cascade-bench schema compare`.

    format, version, made_by      which form this is; versions, command, commit, machine, time
    bundle, bundle_sha256         what ran, and the hash of its SHA256SUMS
    run, target, runtime          where the peers' weights come from, what ran of the bundle, and
                                  who asked its engines (python, native)
    exits, peers_exit             the blocks after which the bundle may answer, and after which the
                                  peers do, which are more where exits were chosen of a run's
    machine                       cpu, cores, threads, system, load_before, load_after, versions
    noisy                         at some batch size the machine was too uneven
    sample                        drawn, images, mean_file_bytes
    contenders                    a list: name, note (how it is run), certified; coverage, risk,
                                  right, agreement as value, part, of, low, high
    batches                       a list: batch, rounds, images, spread, noisy, best_peer, speeds:
                                  name, files, engine, over_files, over_engine, and the seconds of
                                  each round: files_s, engine_s
    absent                        a list: name, reason
    certificate                   the bundle's own, of this target
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cascade_bench.compare.quality import Quality
from cascade_bench.compare.speed import Batch
from cascade_bench.forms import plain
from cascade_bench.machine import Machine
from cascade_bench.peers.contender import Absent
from cascade_bench.workload import Runtime
from cascade_runtime.manifest import Certificate, MadeBy

FORMAT = "cascade-edge.compare"
VERSION = 1


@dataclass(frozen=True)
class SampleRecord:
    """What everybody classified."""

    drawn: str
    images: int
    mean_file_bytes: float


@dataclass(frozen=True)
class Judged(Quality):
    """Who took part: how it is run, and whether a promise holds for it, which is the bundle's."""

    note: str
    certified: bool


@dataclass(frozen=True)
class Record:
    """Everything that one comparison found, the bundle first of the contenders."""

    made_by: MadeBy
    bundle: str
    bundle_sha256: str
    run: str
    target: str
    runtime: Runtime
    machine: Machine
    sample: SampleRecord
    contenders: tuple[Judged, ...]
    batches: tuple[Batch, ...]
    absent: tuple[Absent, ...]
    certificate: Certificate
    exits: tuple[int, ...] = ()  # records before these were added have none
    peers_exit: int = 0

    @property
    def noisy(self) -> bool:
        """Whether any batch size met too uneven a machine."""
        return any(batch.noisy for batch in self.batches)

    def of(self, name: str) -> Judged:
        """One contender."""
        return next(each for each in self.contenders if each.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the module's text."""
        return {"format": FORMAT, "version": VERSION, **plain(self)}
