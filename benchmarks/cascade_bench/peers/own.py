"""The bundle itself, and its own engines with every image run to the end and answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cascade_bench.comparison import full_network
from cascade_bench.peers.contender import Contender, Given, Labels, Logits, decoding
from cascade_runtime.cascade import Cascade
from cascade_runtime.preprocess import Pixels

CASCADE, ALWAYS_FULL = "cascade", "always full"


def cascade_itself(cascade: Cascade) -> Contender:
    """What ships: `Cascade.classify`, deferring what it may not answer."""

    def classify(files: Sequence[Path], batch: int) -> Labels:
        return np.array([r.label for r in cascade.classify(files, batch)], dtype=np.int8)

    def forward(pixels: Pixels) -> object:
        return cascade.stages.forward(pixels, cascade.decision)

    return Contender(CASCADE, f"the bundle on {cascade.target}", classify, forward)


def always_full(cascade: Cascade, given: Given) -> Contender:
    """The same engines without early exits, every image answered by the last of them."""
    stages, decision = full_network(cascade)

    def forward(pixels: Pixels) -> Logits:
        margin = stages.forward(pixels, decision).margin
        return np.stack([np.zeros_like(margin), margin], axis=1)

    note = "the bundle's engines, every image run to the end and answered"
    return Contender(ALWAYS_FULL, note, decoding(given, forward), forward)
