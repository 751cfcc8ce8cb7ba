"""Known populations: what the exits of a cascade say about images whose true risk is a formula."""

from __future__ import annotations

import hashlib

import numpy as np

from cascade_calib.collect import Collected
from cascade_runtime.decision import ExitOutputs


def from_margins(
    margins: list[np.ndarray], labels: np.ndarray, gates: list[np.ndarray] | None = None
) -> Collected:
    """A `Collected` whose exits give these class-1 logit differences; gates default to |margin|."""
    gates = gates or [np.abs(m) for m in margins]
    exits = [
        ExitOutputs(
            np.stack([-m / 2, m / 2], axis=1).astype(np.float32), np.asarray(g, dtype=np.float32)
        )
        for m, g in zip(margins, gates, strict=True)
    ]
    names = tuple(f"{i}.png" for i in range(len(labels)))
    content = b"".join([labels.tobytes(), *(out.logits.tobytes() for out in exits)])
    stamp = hashlib.sha256(content).hexdigest()
    return Collected(exits, labels.astype(np.int8), names, stamp)


def honest(n: int, rng: np.random.Generator, stages: int = 1) -> Collected:
    """Each exit has its own confidence c ~ U(.5, 1) and is wrong with probability 1 - c.

    At an exit that answers where c >= t, coverage is 2(1 - t) and risk (1 - t)/2.
    """
    labels = rng.integers(0, 2, n)
    margins = []
    for _ in range(stages):
        c = rng.uniform(0.5, 1, n)
        said = np.where(rng.random(n) < c, labels, 1 - labels)
        margins.append((2 * said - 1) * np.log(c / (1 - c)))
    return from_margins(margins, labels)


def confidence_threshold(tau: float | None, temperature: float) -> float:
    """The c at which an `honest` exit's softmax score reaches tau; 1 where it never answers."""
    return 1.0 if tau is None else float(1 / (1 + np.exp(-tau * temperature)))


def true_risk(thresholds: list[float]) -> tuple[float, float]:
    """(coverage, risk) of an `honest` cascade with these confidence thresholds."""
    pending, accepted, wrong = 1.0, 0.0, 0.0
    for t in thresholds:
        share = pending * 2 * (1 - max(t, 0.5))
        accepted += share
        wrong += share * (1 - max(t, 0.5)) / 2
        pending -= share
    return accepted, wrong / accepted if accepted else 0.0
