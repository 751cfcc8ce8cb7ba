"""The joint loss over all exits.

Per exit: cross-entropy of the classifier, cross-entropy of the auxiliary head (weight `auxiliary`),
and binary cross-entropy of the gate against "the classifier is right" (weight `gate`; its features
are detached, so the gate never trades accuracy for trust).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_train.exits import ExitLogits


@dataclass(frozen=True)
class LossWeights:
    """Shares of the parts; `exits` are the exits' own weights, default 1 each."""

    auxiliary: float = 0.3
    gate: float = 0.3
    smoothing: float = 0.0
    exits: tuple[float, ...] = ()


def joint_loss(outputs: list[ExitLogits], labels: Tensor, weights: LossWeights) -> Tensor:
    """Scalar loss. Args: outputs of every exit, labels int64 [B]."""
    shares = weights.exits or (1.0,) * len(outputs)
    total = labels.new_zeros((), dtype=torch.float32)
    for share, out in zip(shares, outputs, strict=True):
        logits = out.logits.float()
        right = (logits.detach().argmax(dim=1) == labels).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=weights.smoothing)
        loss = loss + weights.auxiliary * F.cross_entropy(out.auxiliary.float(), labels)
        loss = loss + weights.gate * F.binary_cross_entropy_with_logits(out.gate.float(), right)
        total = total + share * loss
    return total / sum(shares)
