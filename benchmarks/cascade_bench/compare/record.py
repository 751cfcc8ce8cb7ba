"""A comparison as one record, and its JSON form.

`--json` prints one object, `"format": "cascade-edge.compare"`, `"version": 1`; fields are only ever
added within a version. Rates are images a second, shares are 0..1, a ratio is how many times as
fast the cascade is (value: median over the rounds, low, high), and what is undefined is null.

    format, version, made_by      which form this is; versions, command, commit, machine, time
    bundle, run, target           what ran, and where the peers' weights come from
    machine                       cpu, cores, threads, system, load_before, load_after, versions
    noisy                         at some batch size the machine was too uneven
    sample                        drawn, images, mean_file_bytes
    contenders                    a list: name, note, certified; coverage, risk, right, agreement
                                  as value, part, of, low, high
    batches                       a list: batch, rounds, images, spread, noisy, best_peer, speeds:
                                  name, files, engine, over_files, over_engine
    absent                        a list: name, reason
    certificate                   status, alpha, delta, coverage_floor, risk_upper, coverage_lower
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from cascade_bench.compare.quality import Quality
from cascade_bench.compare.speed import Batch
from cascade_bench.machine import Machine
from cascade_bench.peers.contender import Absent
from cascade_bench.peers.own import CASCADE
from cascade_bench.record import PROVEN
from cascade_calib.evaluate import json_safe
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
class Record:
    """Everything that one comparison found. notes: how each contender is run, in their order."""

    made_by: MadeBy
    bundle: str
    run: str
    target: str
    machine: Machine
    sample: SampleRecord
    notes: dict[str, str]
    quality: tuple[Quality, ...]
    batches: tuple[Batch, ...]
    absent: tuple[Absent, ...]
    certificate: Certificate

    @property
    def noisy(self) -> bool:
        """Whether any batch size met too uneven a machine."""
        return any(batch.noisy for batch in self.batches)

    def certified(self, name: str) -> bool:
        """Whether a promise holds for a contender: for the bundle, if it has one."""
        return name == CASCADE and self.certificate.status == "CERTIFIED"

    def of(self, name: str) -> Quality:
        """One contender's quality."""
        return next(quality for quality in self.quality if quality.name == name)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the module's text."""
        contenders = [
            {**asdict(q), "note": self.notes[q.name], "certified": self.certified(q.name)}
            for q in self.quality
        ]
        batches = [
            asdict(batch) | {"noisy": batch.noisy, "best_peer": batch.best_peer}
            for batch in self.batches
        ]
        found: dict[str, Any] = json_safe(
            {
                "format": FORMAT,
                "version": VERSION,
                "made_by": msgspec.to_builtins(self.made_by),
                "bundle": self.bundle,
                "run": self.run,
                "target": self.target,
                "machine": asdict(self.machine),
                "noisy": self.noisy,
                "sample": asdict(self.sample),
                "contenders": contenders,
                "batches": batches,
                "absent": [asdict(one) for one in self.absent],
                "certificate": {name: getattr(self.certificate, name) for name in PROVEN},
            }
        )
        return found
