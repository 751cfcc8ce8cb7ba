"""What this processor can compute in, as far as its engines do not say it themselves.

In: /proc/cpuinfo. Out: its fields and flags, the cores that may be used, and why int8 would be
wrong here.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@cache
def fields() -> Mapping[str, str]:
    """What Linux says of the first processor, by its names; empty where it cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


@cache
def flags() -> frozenset[str]:
    """The processor's flags as Linux names them; empty where they cannot be read."""
    return frozenset(fields().get("flags", fields().get("Features", "")).split())


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on, in rising order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def no_int8() -> str | None:
    """Why 8-bit products go wrong here, or None: where that is not known, None.

    x86 without these instructions adds pairs of 8-bit products in 16 bits, where they saturate:
    another answer than the one that was certified, and no faster.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not flags() or flags() & _DOT_PRODUCTS:
        return None
    return "this processor has no 8-bit dot products (AVX512_VNNI, AVX_VNNI or AMX_INT8)"
