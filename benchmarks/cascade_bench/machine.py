"""Where and with what a benchmark ran, and how busy the machine was.

In: the open cascade. Out: a `Machine` for the record; figures without it cannot be compared.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata

from cascade_calib.provenance import cpu_name
from cascade_runtime import __version__, engines
from cascade_runtime.cascade import Cascade

PACKAGES = ("numpy", "pillow", "msgspec")


@dataclass(frozen=True)
class Machine:
    """`threads` is what was asked for, None for every core; load is tasks over the last minute."""

    cpu: str
    cores: int
    threads: int | None
    system: str
    load_before: float | None
    load_after: float | None
    versions: dict[str, str]


def load() -> float | None:
    """The load average of the last minute, None where the system keeps none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(cascade: Cascade, load_before: float | None) -> Machine:
    """The record, at the end of the measurements."""
    backend = cascade.manifest.targets[cascade.target].backend
    versions = {"cascade-edge": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    library, _, version = engines.backend(backend).version().partition(" ")
    return Machine(
        cpu=cpu_name().rsplit(",", 1)[0],
        cores=usable_cores(),
        threads=cascade.threads,
        system=f"{platform.system()} {platform.machine()}",
        load_before=load_before,
        load_after=load(),
        versions=versions | {library: version},
    )


def usable_cores() -> int:
    """The cores that this process may use, which can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
