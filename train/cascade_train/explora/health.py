"""Has the representation collapsed? Two numbers over a fixed set of images.

In: features [N, D]. Out: their spread and their effective rank. Self-distillation can agree with
itself by answering the same for every image (DINO, arXiv 2104.14294, section 5.3), and masked
autoencoding can push everything into a few directions; the loss shows neither.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DINOv3ViTModel

from cascade_train.exits import normalize
from cascade_train.explora.masking import encode

COLLAPSED = 0.1  # of what the backbone had before


class Health(msgspec.Struct, frozen=True):
    """`feature_std`: 0 when all images look the same, 1 when features fill the sphere evenly.
    `effective_rank`: in how many directions they differ, from 1 to min(N - 1, D)."""

    feature_std: float
    effective_rank: float

    def collapsed(self, before: Health) -> bool:
        """Whether next to nothing is left of either."""
        return (
            self.feature_std < COLLAPSED * before.feature_std
            or self.effective_rank < COLLAPSED * before.effective_rank
        )


def measure(features: Tensor) -> Health:
    """Health of features [N, D], N at least 2.

    The standard deviation of unit-length features times the root of D (Chen & He, arXiv 2011.10566,
    section 4.1), and the exponential of the entropy of the normalised singular values of the
    centred ones (Roy & Vetterli, EUSIPCO 2007).
    """
    features = features.double()
    spread = F.normalize(features, dim=1).std(dim=0, correction=0).mean() * features.shape[1] ** 0.5
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    shares = values / values.sum().clamp_min(1e-12)
    entropy = torch.special.entr(shares).sum()
    return Health(float(spread), float(entropy.exp()))


@torch.no_grad()
def examine(backbone: DINOv3ViTModel, pixels: Tensor, batch_size: int) -> Health:
    """Health of the class tokens of uint8 [N, H, W, 3], in eval mode; the mode is put back."""
    training = backbone.training
    backbone.eval()
    parts = [encode(backbone, normalize(part))[:, 0] for part in pixels.split(batch_size)]
    backbone.train(training)
    return measure(torch.cat(parts))
