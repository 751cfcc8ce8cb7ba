"""What each head learns from, and what it must not touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_train.exits import CascadeModel, ExitLogits
from cascade_train.losses import LossWeights, joint_loss

LABELS = torch.tensor([0, 1, 1, 0])


def outputs(exits: int = 2) -> list[ExitLogits]:
    torch.manual_seed(0)
    return [ExitLogits(torch.randn(4, 2), torch.randn(4), torch.randn(4, 2)) for _ in range(exits)]


def test_gate_shapes_nothing_but_itself(model: CascadeModel, pixels: Tensor) -> None:
    for out in model(pixels):
        out.gate.sum().backward(retain_graph=True)
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched  # the gates themselves
    assert all(".gate." in name for name in touched)


@pytest.mark.parametrize("part", ["logits", "auxiliary"])
def test_classifier_and_auxiliary_head_do_shape_the_backbone(
    model: CascadeModel, pixels: Tensor, part: str
) -> None:
    getattr(model(pixels)[-1], part).square().sum().backward()
    assert model.backbone.embeddings.patch_embeddings.weight.grad.abs().sum() > 0


def test_loss_is_the_weighted_sum_of_its_three_parts() -> None:
    [out] = outputs(1)
    right = (out.logits.argmax(1) == LABELS).float()
    wanted = (
        F.cross_entropy(out.logits, LABELS)
        + 0.5 * F.cross_entropy(out.auxiliary, LABELS)
        + 0.25 * F.binary_cross_entropy_with_logits(out.gate, right)
    )
    have = joint_loss([out], LABELS, LossWeights(auxiliary=0.5, gate=0.25))
    torch.testing.assert_close(have, wanted)


def test_gate_is_rewarded_for_trusting_right_answers_only() -> None:
    [out] = outputs(1)
    right = (out.logits.argmax(1) == LABELS).float()
    assert 0 < right.sum() < 4  # both kinds are there
    honest = replace(out, gate=10 * (2 * right - 1))
    assert joint_loss([honest], LABELS, LossWeights()) < joint_loss([out], LABELS, LossWeights())
    boastful = replace(out, gate=torch.full((4,), 10.0))
    assert joint_loss([boastful], LABELS, LossWeights()) > joint_loss(
        [honest], LABELS, LossWeights()
    )


def test_exit_weights_are_shares_of_one() -> None:
    first, second = outputs(2)
    ones = [joint_loss([out], LABELS, LossWeights()) for out in (first, second)]
    have = joint_loss([first, second], LABELS, LossWeights(exits=(1.0, 3.0)))
    torch.testing.assert_close(have, (ones[0] + 3 * ones[1]) / 4)
    equal = joint_loss([first, second], LABELS, LossWeights())
    torch.testing.assert_close(equal, (ones[0] + ones[1]) / 2)


def test_exit_weights_must_match_the_exits() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        joint_loss(outputs(2), LABELS, LossWeights(exits=(1.0,)))


def test_loss_is_taken_in_float32_whatever_the_network_computed_in() -> None:
    low = [
        ExitLogits(o.logits.bfloat16(), o.gate.bfloat16(), o.auxiliary.bfloat16())
        for o in outputs()
    ]
    assert joint_loss(low, LABELS, LossWeights()).dtype == torch.float32
