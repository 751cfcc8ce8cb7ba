"""The loss over all exits: what each head of the cascade is trained for.

In: every exit's raw outputs for one batch and its labels, hard int64 [B] or soft float32 [B, 2]
(mixup, cutmix). Out: one scalar, and its parts for the log. Two objectives:

`ce`: cross-entropy of the classifier, of the auxiliary head (weight `auxiliary`), and of the gate
against "this exit's classifier is right" (weight `gate`).

`selective`: SelectiveNet (Geifman and El-Yaniv, arXiv 1901.09192). With trust g = sigmoid(gate),
losses l and coverage mean(g), the exit's loss is

    alpha * (sum(g l) / sum(g) + lam * max(0, coverage - mean(g))^2) + (1 - alpha) * auxiliary loss

The division by sum(g) is the paper's; without it, trusting nothing would cost nothing. It makes
the loss of a batch another thing than the mean over its parts: give it whole batches.

All of it is computed in float32, whatever type the network computed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError, DataError
from cascade_train.exits import ExitLogits


class LossConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to train for. A part that the chosen objective does not have is ignored.

    objective: "ce" or "selective".
    auxiliary, gate: weights of those heads under "ce".
    coverage, lam, alpha: target coverage, weight of missing it, and share of the selective part
        under "selective".
    joint_gate: whether the gate's gradient also shapes the features that it reads.
    exits: weight of each exit, "equal", or "linear": rising with depth. Only their ratio counts.
    smoothing: label smoothing of the classifier.
    distillation, distillation_temperature: weight and temperature of following the last exit.
    class_weights: "none", "balanced" (n / (2 n_c), see `with_class_weights`), or two numbers.
    focal_gamma: exponent of the focal loss (Lin et al., arXiv 1708.02002); 0 is cross-entropy.
    false_negative_cost: a factor on the loss of class 1.
    """

    objective: Literal["ce", "selective"] = "ce"
    auxiliary: float = 0.3
    gate: float = 0.3
    coverage: float = 0.7
    lam: float = 32.0
    alpha: float = 0.5
    joint_gate: bool = False
    exits: tuple[float, ...] | Literal["equal", "linear"] = "equal"
    smoothing: float = 0.0
    distillation: float = 0.0
    distillation_temperature: float = 2.0
    class_weights: tuple[float, float] | Literal["none", "balanced"] = "none"
    focal_gamma: float = 0.0
    false_negative_cost: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in ("ce", "selective"):
            raise ConfigError(f"loss.objective is {self.objective!r}; choose ce or selective")
        limits = {
            "auxiliary": (0 <= self.auxiliary < math.inf, "0 or more"),
            "gate": (0 <= self.gate < math.inf, "0 or more"),
            "coverage": (0 < self.coverage <= 1, "above 0 and at most 1"),
            "lam": (0 <= self.lam < math.inf, "0 or more"),
            "alpha": (0 < self.alpha <= 1, "above 0 and at most 1"),
            "exits": (
                self.exits in ("equal", "linear") or _usable(self.exits),
                "equal, linear, or numbers of which none is below 0 and one is above",
            ),
            "smoothing": (0 <= self.smoothing < 1, "from 0 to below 1"),
            "distillation": (0 <= self.distillation < math.inf, "0 or more"),
            "distillation_temperature": (0 < self.distillation_temperature < math.inf, "above 0"),
            "class_weights": (
                self.class_weights in ("none", "balanced")
                or (_usable(self.class_weights) and len(self.class_weights) == 2),
                "none, balanced, or two numbers of which none is below 0 and one is above",
            ),
            "focal_gamma": (0 <= self.focal_gamma < math.inf, "0 or more, such as 2"),
            "false_negative_cost": (0 < self.false_negative_cost < math.inf, "above 0, such as 5"),
        }
        for field, (good, expected) in limits.items():
            if not good:
                value = getattr(self, field)
                raise ConfigError(f"loss.{field} is {value!r}; expected {expected}")


def _usable(weights: object) -> bool:
    """Whether these are finite numbers, none below 0 and not all 0."""
    numbers = weights if isinstance(weights, tuple) else ()
    return all(0 <= x < math.inf for x in numbers) and sum(numbers) > 0


def with_class_weights(config: LossConfig, labels: npt.ArrayLike) -> LossConfig:
    """The config with "balanced" replaced by the numbers for these training labels.

    Args:
        labels: [N], 0 or 1, of the whole training set, so that every batch is weighted alike.

    Raises:
        DataError: one of the classes is empty.
    """
    if config.class_weights != "balanced":
        return config
    y = np.asarray(labels)
    counts = [int((y == c).sum()) for c in (0, 1)]
    if not all(counts):
        raise DataError(
            f"the training images are {counts[0]} of class 0 and {counts[1]} of class 1; "
            "class_weights=balanced needs both, so add images of the empty class"
        )
    weights = (len(y) / (2 * counts[0]), len(y) / (2 * counts[1]))
    return msgspec.structs.replace(config, class_weights=weights)


def joint_loss(outputs: Sequence[ExitLogits], labels: Tensor, config: LossConfig) -> Tensor:
    """The scalar to minimise: the sum of `loss_parts`.

    Args:
        outputs: of every exit, first exit first.
        labels: int64 [B], or float32 [B, 2] with rows that sum to 1.

    Raises:
        ConfigError: the exit weights are not one an exit, or "balanced" has no numbers yet.
    """
    return torch.stack(list(loss_parts(outputs, labels, config).values())).sum()


def loss_parts(
    outputs: Sequence[ExitLogits], labels: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """The loss by part, each already weighted and averaged over the exits.

    Keys: classifier, auxiliary, gate (under "ce") or classifier, coverage, auxiliary (under
    "selective"), where `classifier` is then the selective risk; and distillation where it is on.
    """
    target = soft_labels(labels)
    shares = exit_shares(config, len(outputs))
    teacher = outputs[-1].logits.detach().float()
    total: dict[str, Tensor] = {}
    for index, (share, out) in enumerate(zip(shares, outputs, strict=True)):
        part_losses = _selective if config.objective == "selective" else _cross_entropies
        parts = part_losses(out, target, config)
        if config.distillation:
            follows = index < len(outputs) - 1  # the last exit has nobody to follow
            followed = distilled(out.logits if follows else teacher, teacher, config)
            parts["distillation"] = config.distillation * followed
        for name, value in parts.items():
            total[name] = total.get(name, 0) + share * value
    return {name: value / sum(shares) for name, value in total.items()}


def exit_shares(config: LossConfig, count: int) -> tuple[float, ...]:
    """The weight of each of `count` exits.

    Raises:
        ConfigError: numbers were given, but not one an exit.
    """
    if config.exits == "equal":
        return (1.0,) * count
    if config.exits == "linear":
        return tuple(float(depth) for depth in range(1, count + 1))
    if len(config.exits) != count:
        raise ConfigError(
            f"loss.exits gives {len(config.exits)} weights, but the network has {count} exits; "
            "give one an exit, or equal or linear"
        )
    return tuple(float(share) for share in config.exits)


def soft_labels(labels: Tensor) -> Tensor:
    """Labels as float32 [B, 2]: what is soft already stays as it is."""
    return labels.float() if labels.ndim == 2 else F.one_hot(labels.long(), 2).float()


def _cross_entropies(out: ExitLogits, target: Tensor, config: LossConfig) -> dict[str, Tensor]:
    logits, gate = out.logits.float(), out.gate.float()
    answer = logits.detach().argmax(dim=1, keepdim=True)
    right = target.gather(1, answer)[:, 0]  # of a mixed image: the share of it that is right
    return {
        "classifier": class_losses(logits, target, config, config.smoothing).mean(),
        "auxiliary": config.auxiliary * class_losses(out.auxiliary, target, config).mean(),
        "gate": config.gate * F.binary_cross_entropy_with_logits(gate, right),
    }


def _selective(out: ExitLogits, target: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Selective risk, coverage penalty and auxiliary loss (SelectiveNet, section 3)."""
    gate = out.gate.float()
    losses = class_losses(out.logits, target, config, config.smoothing)
    trust = F.logsigmoid(gate).softmax(dim=0)  # g / sum(g), also where every g rounds to 0
    missing = F.relu(config.coverage - gate.sigmoid().mean())
    return {
        "classifier": config.alpha * (trust * losses).sum(),
        "coverage": config.alpha * config.lam * missing.square(),
        "auxiliary": (1 - config.alpha) * class_losses(out.auxiliary, target, config).mean(),
    }


def class_losses(
    logits: Tensor, target: Tensor, config: LossConfig, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each image, float32 [B], weighted by class, cost and difficulty.

    The weights scale each image's loss and are not divided out again, so that the mean over a
    batch is the mean over its parts however the classes fall.
    """
    log_p = logits.float().log_softmax(dim=1)
    wanted = (1 - smoothing) * target + smoothing / 2
    if config.focal_gamma:
        # 1 - p of one class is p of the other, so its power needs no subtraction near 0
        wanted = wanted * (config.focal_gamma * log_p.flip(1)).exp()
    if config.class_weights == "balanced":
        raise ConfigError("class_weights=balanced has no numbers yet; see with_class_weights")
    first, second = config.class_weights if config.class_weights != "none" else (1.0, 1.0)
    weights = (float(first), float(second) * config.false_negative_cost)
    return -(wanted * log_p * log_p.new_tensor(weights)).sum(dim=1)


def distilled(logits: Tensor, teacher: Tensor, config: LossConfig) -> Tensor:
    """T^2 KL(teacher || exit) at temperature T, mean over the batch (Hinton, arXiv 1503.02531)."""
    t = config.distillation_temperature
    followed = (logits.float() / t).log_softmax(dim=1)
    led = (teacher / t).log_softmax(dim=1)
    return t**2 * F.kl_div(followed, led, reduction="batchmean", log_target=True)
