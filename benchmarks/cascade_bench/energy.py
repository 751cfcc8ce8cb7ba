"""What the work costs in energy, where the machine says: one module for every meter there is.

In: something to call. Out: an `Energy`, of the whole device that the meter is about and not of this
process: measure on a machine that does nothing else. Meters, the first that answers is taken:

    nvml         a GPU's own counter (pynvml, NVIDIA), for targets on cuda and tensorrt
    rapl         the processors' packages, /sys/class/powercap (Linux; often root only)
    tegrastats   a Jetson's power rails, sampled by its own command
"""

from __future__ import annotations

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
_TOTAL_RAIL = re.compile(r"(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/")


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


class Meter(Protocol):
    """A running count of joules, of which only differences mean something."""

    @property
    def name(self) -> str: ...

    def joules(self) -> float: ...


class Rapl:
    """The sum over packages of `energy_uj`, each of which wraps round at its own range."""

    name = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        """Raises OSError where there is nothing to read, or no permission to."""
        self._zones = sorted(zone for zone in root.glob("*-rapl:*") if zone.name.count(":") == 1)
        if not self._zones:
            raise OSError(f"{root} has no package's counter")
        self._ranges = [_integer(zone / "max_energy_range_uj") for zone in self._zones]
        self._last = [_integer(zone / "energy_uj") for zone in self._zones]
        self._total = 0

    def joules(self) -> float:
        now = [_integer(zone / "energy_uj") for zone in self._zones]
        for was, is_, span in zip(self._last, now, self._ranges, strict=True):
            self._total += (is_ - was) if is_ >= was else is_ + span - was
        self._last = now
        return self._total / 1e6


class Nvml:
    """The first GPU's counter since its driver was loaded (Volta and newer); `gpu` is its name."""

    name = "nvml"

    def __init__(self) -> None:
        """Raises ImportError without pynvml, OSError where there is no GPU that counts."""
        import pynvml

        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            self.gpu = str(pynvml.nvmlDeviceGetName(self._gpu))
            self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
            self._read(self._gpu)
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    def joules(self) -> float:
        return float(self._read(self._gpu)) / 1000


class Tegrastats:
    """Power samples of the board's input, added up by a thread of its own as they come."""

    name = "tegrastats"

    def __init__(self) -> None:
        """Raises OSError where the command is not, or names no rail of the whole board."""
        command = shutil.which("tegrastats")
        if command is None:
            raise OSError("tegrastats is not here")
        self._process = subprocess.Popen(
            [command, "--interval", str(_SAMPLE_MS)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._lines, self._total = self._process.stdout, 0.0
        try:
            board_watts(self._lines.readline())
        except OSError:
            self.close()
            raise
        self._adding = threading.Thread(target=self._add, daemon=True)
        self._adding.start()

    def joules(self) -> float:
        return self._total

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _add(self) -> None:
        then = time.perf_counter()
        for line in self._lines:
            now = time.perf_counter()
            self._total += board_watts(line) * (now - then)
            then = now


def board_watts(line: str) -> float:
    """The board's power in a line of tegrastats; raises OSError when it tells none."""
    found = _TOTAL_RAIL.search(line)
    if found is None:
        raise OSError("tegrastats names no rail of the whole board")
    return int(found[1]) / 1000


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
    nothing = float("nan")
    with meter(on_gpu) as found:
        if isinstance(found, str):
            return Energy("", found, 0.0, 0, nothing, nothing, nothing)
        call(0)
        before, started = found.joules(), time.perf_counter()
        calls = 0
        while calls < LEAST_CALLS or time.perf_counter() - started < seconds:
            call(calls)
            calls += 1
        spent, took = found.joules() - before, time.perf_counter() - started
    done = calls * images
    return Energy(found.name, "", took, done, spent, spent / took, spent / done)


def _integer(path: Path) -> int:
    return int(path.read_text())
