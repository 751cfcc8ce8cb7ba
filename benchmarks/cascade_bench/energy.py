"""What the work costs in energy, where the machine says: one module for every meter there is.

In: something to call. Out: an `Energy`, of the whole device that the meter is about and not of this
process: measure on a machine that does nothing else. Meters, the first that answers is taken:

    nvml         a GPU's own counter (pynvml, NVIDIA), for targets on cuda and tensorrt
    rapl         the processors' packages, /sys/class/powercap (Linux; often root only)
    tegrastats   a Jetson's power rails, sampled by its own command

A meter that stops on the way is a reason and no figure.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cascade_bench.timing import Call

POWERCAP = Path("/sys/class/powercap")
LEAST_CALLS = 3
_SAMPLE_MS = 100
_SILENT_S = 2.0
_RAIL = re.compile(r"\b(\w+) (\d+)(?:mW)?/\d+(?:mW)?")

BOARDS = (("VDD_IN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""The rails that make up a board: one for all of it, or, on AGX Orin, which has no such rail, those
of its module (github.com/rbonghi/jetson_stats/issues/344). VDDQ_VDD2_1V8AO is left out there, as by
most who add them up: it may be fed from VIN_SYS_5V0, and would then count twice."""


@dataclass(frozen=True)
class Energy:
    """source: the meter, "" where there is none, and `reason` then says why; figures are NaN.

    joules over `seconds` for `images`, idle power included. watts, joules_per_image: of these.
    """

    source: str
    reason: str
    seconds: float
    images: int
    joules: float
    watts: float
    joules_per_image: float


class MeterError(Exception):
    """A meter that answered does so no longer."""


class Meter(Protocol):
    """A running count of joules, of which only differences mean something."""

    @property
    def name(self) -> str: ...

    def joules(self) -> float:
        """Raises MeterError when the count has stopped."""
        ...


class Rapl:
    """The sum over packages of `energy_uj`, each of which wraps round at its own range.

    Zones whose `name` is package-N (package-N-die-M) alone: core and uncore are parts of them, and
    psys, a zone beside them, is of the whole platform and contains them. Memory (dram) has a count
    of its own, which is no part of theirs and is left out.
    Sources: docs.kernel.org/power/powercap/powercap.html; firefox-source-docs.mozilla.org,
    "Power profiling overview"; hubblo-org.github.io/scaphandre, "RAPL domains".
    """

    name = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        """Raises OSError where there is nothing to read, or no permission to."""
        zones = sorted(zone for zone in root.glob("*-rapl:*") if zone.name.count(":") == 1)
        self._zones = [z for z in zones if (z / "name").read_text().startswith("package-")]
        if not self._zones:
            raise OSError(f"{root} has no package's counter")
        self._ranges = [_integer(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [_integer(zone / "energy_uj") for zone in self._zones]
        self._total = 0

    def joules(self) -> float:
        try:
            now = [_integer(zone / "energy_uj") for zone in self._zones]
        except (OSError, ValueError) as error:
            raise MeterError(str(error)) from error
        for was, is_, span in zip(self._last, now, self._ranges, strict=True):
            self._total += (is_ - was) if is_ >= was else is_ + span - was
        self._last = now
        return self._total / 1e6


class Nvml:
    """The counter of the GPU in use since its driver was loaded (Volta, newer); `gpu` is its name.

    NVML counts all GPUs of the machine in an order of its own and does not look at
    CUDA_VISIBLE_DEVICES; it asks to look a GPU up by its place on the bus
    (docs.nvidia.com/deploy/nvml-api, nvmlDeviceGetHandleByIndex).
    """

    name = "nvml"

    def __init__(self) -> None:
        """Raises ImportError without pynvml, OSError where there is no GPU that counts."""
        import pynvml

        self._error = pynvml.NVMLError
        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByPciBusId(first_gpu())
            self.gpu = str(pynvml.nvmlDeviceGetName(self._gpu))
            self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
            self._read(self._gpu)
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    def joules(self) -> float:
        try:
            return float(self._read(self._gpu)) / 1000
        except self._error as error:
            raise MeterError(str(error)) from error


def first_gpu() -> str:
    """Where on the PCI bus CUDA's first GPU of this process is, which the engines use.

    The driver is asked itself, since it alone knows its order and what CUDA_VISIBLE_DEVICES leaves,
    by number or by UUID (docs.nvidia.com/cuda/cuda-driver-api, cuDeviceGetPCIBusId).

    Raises:
        OSError: no driver, or no GPU that this process may use.
    """
    cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    device, place = ctypes.c_int(), ctypes.create_string_buffer(32)
    status = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetPCIBusId(place, len(place), device)
    )
    if status:
        raise OSError(f"CUDA shows this process no GPU (error {status})")
    return place.value.decode()


class Tegrastats:
    """Power samples of the board, added up by a thread of its own as they come."""

    name = "tegrastats"

    def __init__(self) -> None:
        """Raises OSError where the command is not, or does not tell the power of the board."""
        command = shutil.which("tegrastats")
        if command is None:
            raise OSError("tegrastats is not here")
        self._process = subprocess.Popen(
            [command, "--interval", str(_SAMPLE_MS)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._lines, self._total, self._stopped = self._process.stdout, 0.0, ""
        try:
            board_watts(self._lines.readline())
        except OSError:
            self.close()
            raise
        self._latest = time.perf_counter()
        threading.Thread(target=self._add, daemon=True).start()

    def joules(self) -> float:
        if self._stopped or time.perf_counter() - self._latest > _SILENT_S:
            raise MeterError(self._stopped or f"no sample for {_SILENT_S:g} s")
        return self._total

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _add(self) -> None:
        try:
            for line in self._lines:
                now, watts = time.perf_counter(), board_watts(line)
                self._total += watts * (now - self._latest)
                self._latest = now
            self._stopped = "it has ended"
        except (OSError, ValueError) as error:
            self._stopped = str(error)


def board_watts(line: str) -> float:
    """The board's power in a line of tegrastats; raises OSError when it tells none."""
    rails = {name: int(milliwatts) for name, milliwatts in _RAIL.findall(line)}
    for names in BOARDS:
        if rails.keys() >= set(names):
            return sum(rails[name] for name in names) / 1000
    raise OSError("tegrastats names no rail of the whole board")


METERS: dict[str, Callable[[], Meter]] = {"nvml": Nvml, "rapl": Rapl, "tegrastats": Tegrastats}


@contextmanager
def meter(on_gpu: bool) -> Iterator[Meter | str]:
    """The meter for what runs on a GPU or a processor, or why there is none, in a sentence."""
    reasons = []
    for name, make in METERS.items():
        if name == ("rapl" if on_gpu else "nvml"):
            continue  # a GPU's counter says nothing of a processor's work, nor the other way
        try:
            found = make()
        except (OSError, ImportError) as error:
            reasons.append(f"{name}: {error}")
            continue
        try:
            yield found
        finally:
            getattr(found, "close", lambda: None)()
        return
    yield "; ".join(reasons)


def measure(call: Call, images: int, on_gpu: bool, seconds: float) -> Energy:
    """Call again and again for about `seconds`, with the meter running.

    Args:
        images: of one call.
    """
    with meter(on_gpu) as found:
        if isinstance(found, str):
            return _none(found)
        call(0)
        try:
            before, started = found.joules(), time.perf_counter()
            calls = 0
            while calls < LEAST_CALLS or time.perf_counter() - started < seconds:
                call(calls)
                calls += 1
            spent, took = found.joules() - before, time.perf_counter() - started
        except MeterError as error:
            return _none(f"{found.name} stopped: {error}")
    done = calls * images
    return Energy(found.name, "", took, done, spent, spent / took, spent / done)


def _none(reason: str) -> Energy:
    return Energy("", reason, 0.0, 0, math.nan, math.nan, math.nan)


def _integer(path: Path) -> int:
    return int(path.read_text())
