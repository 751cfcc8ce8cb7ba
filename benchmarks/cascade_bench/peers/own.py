"""The bundle itself, and its own engines with every image run to the end and answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cascade_bench.comparison import full_network
from cascade_bench.peers.contender import Contender, Labels, Logits
from cascade_bench.workload import Runtime
from cascade_runtime.cascade import Cascade
from cascade_runtime.manifest import Decision
from cascade_runtime.preprocess import Pixels

CASCADE, IN_PYTHON, ALWAYS_FULL = "cascade", "cascade in Python", "always full"
OWN = (CASCADE, IN_PYTHON, ALWAYS_FULL)


def own(cascade: Cascade, runtime: Runtime) -> list[Contender]:
    """What ships, by the runtime asked for; `always_full`; and Python's where it is another."""
    python = _decides(cascade, cascade, CASCADE, f"the bundle on {cascade.target}")
    if runtime == "python":
        return [python, always_full(cascade)]
    native = Cascade.open(
        cascade.bundle.path, cascade.target, threads=cascade.threads, engine="native"
    )
    note = f"the bundle on {cascade.target}, by libcascade; its engines alone from Python"
    return [
        _decides(native, cascade, CASCADE, note),
        replace(python, name=IN_PYTHON, forward=None),
        always_full(cascade),
    ]


def _decides(answering: Cascade, cascade: Cascade, name: str, note: str) -> Contender:
    """`classify` of one runtime, deferring what it may not answer, and the engines of Python's."""

    def classify(files: Sequence[Path], batch: int) -> Labels:
        return np.array([r.label for r in answering.classify(files, batch)], dtype=np.int8)

    def forward(pixels: Pixels) -> object:
        return cascade.stages.forward(pixels, cascade.decision)

    return Contender(name, note, classify, forward)


class _ToTheEnd(Cascade):
    """An open cascade in which no image exits early; of a pair of networks the second alone."""

    def __init__(self, cascade: Cascade) -> None:
        vars(self).update(vars(cascade))
        self.stages, self._shut = full_network(cascade)

    @property
    def decision(self) -> Decision:
        return self._shut


def always_full(cascade: Cascade) -> Contender:
    """The same engines without early exits, every image answered by the last of them."""
    whole = _ToTheEnd(cascade)

    def classify(files: Sequence[Path], batch: int) -> Labels:
        return np.array([r.p > 0.5 for r in whole.classify(files, batch)], dtype=np.int8)

    def forward(pixels: Pixels) -> Logits:
        margin = whole.stages.forward(pixels, whole.decision).margin
        return np.stack([np.zeros_like(margin), margin], axis=1)

    note = "the bundle's engines, every image run to the end and answered"
    return Contender(ALWAYS_FULL, note, classify, forward)
