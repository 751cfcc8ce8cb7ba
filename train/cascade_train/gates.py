"""What an exit exports as `gate`: one small module that holds whichever score was chosen.

In: an exit's features [B, F], its logits [B, 2] and its trained gate [B]. Out: one score [B],
higher is more trusted. The softmax margin, the trained gate, the post-hoc gate and their blend are
all of one form, so that the engine, the bundle and the runtime know a single `gate` output:

    score = m |l1 - l0| + t gate + u . f + b + side (v . f + c),    side = sign(l1 - l0)

`score_choice` decides the numbers. The module has buffers, no parameters: nothing trains it on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade_runtime.errors import DataError
from cascade_train.exits import ExitHeads, Network

Float32 = npt.NDArray[np.float32]


class ExitScore(nn.Module):
    """The score in the form above; new, it is the trained gate as it is.

    Args:
        width: F, the width of the features that classifier and gate read.
    """

    mix: Tensor  # [2]: m, t
    weight: Tensor  # [2, F]: u, v
    bias: Tensor  # [2]: b, c

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mix", torch.tensor([0.0, 1.0]))
        self.register_buffer("weight", torch.zeros(2, width))
        self.register_buffer("bias", torch.zeros(2))

    def forward(self, features: Tensor, logits: Tensor, gate: Tensor) -> Tensor:
        """features [B, F], logits [B, 2], gate [B] to the score [B]."""
        margin = logits[:, 1] - logits[:, 0]
        linear = F.linear(features, self.weight, self.bias)
        score = self.mix[0] * margin.abs() + self.mix[1] * gate
        return score + linear[:, 0] + margin.sign() * linear[:, 1]


def new_scores(model: Network) -> nn.ModuleList:
    """One `ExitScore` an exit, to load saved ones into."""
    return nn.ModuleList(ExitScore(head.classifier.in_features) for head in _heads(model))


def attach_scores(model: Network, scores: Iterable[nn.Module] | None) -> None:
    """Make the exits answer with these scores; None: with their trained gates again.

    Detach before training goes on: the loss is about the trained gate.
    """
    heads = _heads(model)
    wanted: list[nn.Module | None] = [None] * len(heads) if scores is None else list(scores)
    for head, score in zip(heads, wanted, strict=True):
        head.score = score


def _heads(model: Network) -> list[ExitHeads]:
    heads = [head for part in model.parts for head in part.exits.heads]
    return [head for head in heads if isinstance(head, ExitHeads)]


@dataclass(frozen=True)
class ExitReadout:
    """What one exit computed for N images, float32: features [N, F], logits [N, 2], gate [N]."""

    features: Float32
    logits: Float32
    gate: Float32

    def __post_init__(self) -> None:
        for name, array in vars(self).items():
            good = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
            if not good.all():
                raise DataError(
                    f"an exit's {name} are not finite for {int((~good).sum())} of {len(array)} "
                    "images of val_select; train again with a lower learning rate"
                )


@torch.no_grad()
def read_exits(
    model: Network, pixels: npt.NDArray[np.uint8], *, batch_size: int = 256
) -> list[ExitReadout]:
    """Features, logits and trained gates of every exit, in eval mode and float32.

    Args:
        model: merged, without attached scores.
        pixels: uint8 [N, H, W, 3].

    Raises:
        DataError: an output is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    seen: list[list[Tensor]] = []
    hooks = [
        head.classifier.register_forward_pre_hook(lambda _, args: seen[-1].append(args[0]))
        for head in _heads(model)
    ]
    outputs = []
    try:
        for start in range(0, len(pixels), batch_size):
            seen.append([])
            batch = torch.from_numpy(pixels[start : start + batch_size]).to(device)
            outputs.append(model(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        ExitReadout(
            features=_array([batch[i] for batch in seen]),
            logits=_array([batch[i].logits for batch in outputs]),
            gate=_array([batch[i].gate for batch in outputs]),
        )
        for i in range(len(hooks))
    ]


def _array(parts: list[Tensor]) -> Float32:
    return np.asarray(torch.cat(parts).float().cpu().numpy())
