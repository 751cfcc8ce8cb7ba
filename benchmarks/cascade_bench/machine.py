"""Where and with what a benchmark ran, and how busy the machine was.

In: the open cascade. Out: a `Machine` for the record; figures without it cannot be compared.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cascade_bench.energy import Nvml
from cascade_calib.provenance import cpu_name
from cascade_runtime import __version__, engines
from cascade_runtime.cascade import Cascade
from cascade_runtime.engines.processor import usable_cores

PACKAGES = ("numpy", "pillow", "msgspec")
CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Clocks:
    """The processors' clocks, as cpufreq tells them; `reason` says why where it does not.

    mhz: of every usable core, at the end of the measurements. boost: may they go above max_mhz.
    """

    reason: str
    governors: tuple[str, ...] = ()
    mhz: tuple[float, ...] = ()
    min_mhz: float | None = None
    max_mhz: float | None = None
    boost: bool | None = None


@dataclass(frozen=True)
class Machine:
    """`threads` is what was asked for, None for every core; load is tasks over the last minute.

    device: what the engines run on. affinity: the cores that this process may use.
    """

    cpu: str
    device: str
    cores: int
    affinity: tuple[int, ...]
    clocks: Clocks
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
    target = cascade.manifest.targets[cascade.target]
    cpu = cpu_name().rsplit(",", 1)[0]
    versions = {"cascade-edge": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    library, _, version = engines.backend(target.backend).version().partition(" ")
    return Machine(
        cpu=cpu,
        device=cpu if target.device == "cpu" else f"{target.device}: {gpu_name()}",
        cores=len(usable_cores()),
        affinity=usable_cores(),
        clocks=clocks(),
        threads=cascade.threads,
        system=f"{platform.system()} {platform.machine()}",
        load_before=load_before,
        load_after=load(),
        versions=versions | {library: version},
    )


def gpu_name() -> str:
    """The own name of the GPU in use, where pynvml is there to ask for it."""
    try:
        return Nvml().gpu
    except (ImportError, OSError) as error:
        return f"name unknown ({error})"


def clocks(root: Path = CPU) -> Clocks:
    """What cpufreq says of the usable cores; virtual machines mostly have none."""
    folders = [root / f"cpu{core}" / "cpufreq" for core in usable_cores()]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        return Clocks("the system tells no clocks: no cpufreq")
    lowest, highest = (_mhz(folders[0], f"scaling_{end}_freq") for end in ("min", "max"))
    boost, no_turbo = _word(root / "cpufreq/boost"), _word(root / "intel_pstate/no_turbo")
    return Clocks(
        reason="",
        governors=tuple(sorted({_word(folder / "scaling_governor") for folder in folders})),
        mhz=tuple(mhz for f in folders if (mhz := _mhz(f, "scaling_cur_freq")) is not None),
        min_mhz=lowest,
        max_mhz=highest,
        boost=boost == "1" if boost else no_turbo == "0" if no_turbo else None,
    )


def _mhz(folder: Path, name: str) -> float | None:
    khz = _word(folder / name)
    return int(khz) / 1000 if khz.isdigit() else None


def _word(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
