"""How long an OpenMP thread spins before it sleeps (docs/decisions/0003)."""

from __future__ import annotations

import os

SPINS = "20000"  # some ten microseconds


def spin_briefly() -> None:
    """Bound the spinning of GNU OpenMP, before torch is imported; what the user set stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
