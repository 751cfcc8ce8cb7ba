"""The devices whose figures are published, and the one that is here.

In: devices.toml beside this file. Out: `Device`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from cascade_runtime.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """What limits a device: dense peaks by precision, FLOP/s, and bandwidth, bytes/s.

    measured: by `cascade-bench roofline`, not by a data sheet.
    """

    name: str
    title: str
    peaks: dict[str, float]
    bandwidth: float
    sources: tuple[str, ...]
    note: str
    measured: bool

    def peak(self, precision: str) -> float:
        """FLOP/s in a precision.

        Raises:
            ConfigError: none is known.
        """
        if precision not in self.peaks:
            raise ConfigError(
                f"--precision {precision!r}: {self.name} has figures for {', '.join(self.peaks)}"
            )
        return self.peaks[precision]

    def attention(self, precision: str) -> float:
        """FLOP/s inside attention, which 8-bit networks keep in 16 bits, or 32 where none is."""
        if precision not in ("int8", "fp8"):
            return self.peak(precision)
        self.peak(precision)
        wide = next(name for name in ("fp16", "bf16", "fp32") if name in self.peaks)
        return self.peaks[wide]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    title: str
    bandwidth: float
    peak: dict[str, float]
    sources: tuple[str, ...]
    note: str


@cache
def published() -> dict[str, Device]:
    """Every device of the table, by name."""
    text = (files("cascade_bench.project") / "devices.toml").read_bytes()
    entries = msgspec.toml.decode(text, type=dict[str, _Entry])
    return {
        name: Device(
            name=name,
            title=entry.title,
            peaks={precision: 1e12 * peak for precision, peak in entry.peak.items()},
            bandwidth=1e9 * entry.bandwidth,
            sources=entry.sources,
            note=entry.note,
            measured=False,
        )
        for name, entry in entries.items()
    }


def device(name: str) -> Device:
    """Look a device up.

    Raises:
        ConfigError: no such device; the message lists them.
    """
    if name not in published():
        raise ConfigError(f"--device {name!r} is unknown; choose one of {', '.join(published())}")
    return published()[name]
