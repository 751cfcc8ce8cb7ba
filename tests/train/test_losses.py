"""What each head learns from, what it must not touch, and that no batch breaks the loss."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError, DataError
from cascade_train.exits import CascadeModel, ExitLogits
from cascade_train.losses import LossConfig, joint_loss, loss_parts, with_class_weights

LABELS = torch.tensor([0, 1, 1, 0])


def outputs(exits: int = 2, images: int = 4) -> list[ExitLogits]:
    torch.manual_seed(0)
    return [
        ExitLogits(torch.randn(images, 2), torch.randn(images), torch.randn(images, 2))
        for _ in range(exits)
    ]


def learning(out: ExitLogits) -> ExitLogits:
    """The same numbers as leaves that collect a gradient."""
    return ExitLogits(*(t.clone().requires_grad_() for t in (out.logits, out.gate, out.auxiliary)))


def classifier_only(**settings: object) -> LossConfig:
    return LossConfig(auxiliary=0.0, gate=0.0, **settings)  # type: ignore[arg-type]


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
    have = joint_loss([out], LABELS, LossConfig(auxiliary=0.5, gate=0.25))
    torch.testing.assert_close(have, wanted)


def test_gradients_equal_those_of_torchs_own_losses_to_the_bit() -> None:
    ours, theirs = learning(outputs(1)[0]), learning(outputs(1)[0])
    joint_loss([ours], LABELS, LossConfig()).backward()
    right = (theirs.logits.detach().argmax(1) == LABELS).float()
    loss = F.cross_entropy(theirs.logits, LABELS)
    loss = loss + 0.3 * F.cross_entropy(theirs.auxiliary, LABELS)
    (loss + 0.3 * F.binary_cross_entropy_with_logits(theirs.gate, right)).backward()
    for name in ("logits", "gate", "auxiliary"):
        assert torch.equal(getattr(ours, name).grad, getattr(theirs, name).grad)


def test_smoothing_is_torchs_and_leaves_the_auxiliary_head_alone() -> None:
    [out] = outputs(1)
    wanted = F.cross_entropy(out.logits, LABELS, label_smoothing=0.2)
    torch.testing.assert_close(joint_loss([out], LABELS, classifier_only(smoothing=0.2)), wanted)
    parts = [loss_parts([out], LABELS, LossConfig(smoothing=s))["auxiliary"] for s in (0.0, 0.2)]
    torch.testing.assert_close(*parts)


def test_gate_is_rewarded_for_trusting_right_answers_only() -> None:
    [out] = outputs(1)
    right = (out.logits.argmax(1) == LABELS).float()
    assert 0 < right.sum() < 4  # both kinds are there
    honest = replace(out, gate=10 * (2 * right - 1))
    assert joint_loss([honest], LABELS, LossConfig()) < joint_loss([out], LABELS, LossConfig())
    boastful = replace(out, gate=torch.full((4,), 10.0))
    assert joint_loss([boastful], LABELS, LossConfig()) > joint_loss([honest], LABELS, LossConfig())


def test_exit_weights_are_shares_of_one() -> None:
    first, second = outputs(2)
    ones = [joint_loss([out], LABELS, LossConfig()) for out in (first, second)]
    have = joint_loss([first, second], LABELS, LossConfig(exits=(1.0, 3.0)))
    torch.testing.assert_close(have, (ones[0] + 3 * ones[1]) / 4)
    equal = joint_loss([first, second], LABELS, LossConfig())
    torch.testing.assert_close(equal, (ones[0] + ones[1]) / 2)
    linear = joint_loss([first, second], LABELS, LossConfig(exits="linear"))
    torch.testing.assert_close(linear, (ones[0] + 2 * ones[1]) / 3)


def test_exit_weights_must_match_the_exits() -> None:
    with pytest.raises(ConfigError, match="gives 1 weights, but the network has 2 exits"):
        joint_loss(outputs(2), LABELS, LossConfig(exits=(1.0,)))


@pytest.mark.parametrize("objective", ["ce", "selective"])
def test_loss_is_taken_in_float32_whatever_the_network_computed_in(objective: str) -> None:
    low = [
        ExitLogits(o.logits.bfloat16(), o.gate.bfloat16(), o.auxiliary.bfloat16())
        for o in outputs()
    ]
    high = [ExitLogits(o.logits.float(), o.gate.float(), o.auxiliary.float()) for o in low]
    config = LossConfig(objective=objective, distillation=1.0, focal_gamma=1.5)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        loss = joint_loss(low, LABELS, config)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, joint_loss(high, LABELS, config), rtol=0, atol=0)


def test_parts_sum_to_the_loss_and_name_what_the_objective_has() -> None:
    for config, names in (
        (LossConfig(), {"classifier", "auxiliary", "gate"}),
        (
            LossConfig(objective="selective", distillation=0.5),
            {"classifier", "coverage", "auxiliary", "distillation"},
        ),
    ):
        parts = loss_parts(outputs(), LABELS, config)
        assert set(parts) == names
        torch.testing.assert_close(sum(parts.values()), joint_loss(outputs(), LABELS, config))


# SelectiveNet


def test_selective_loss_is_the_papers_with_the_division_by_coverage() -> None:
    [out] = outputs(1)
    g = out.gate.sigmoid()
    each = F.cross_entropy(out.logits, LABELS, reduction="none")
    risk = (g * each).mean() / g.mean()
    penalty = 32 * (0.9 - g.mean()).clamp(min=0) ** 2
    assert penalty > 0
    wanted = 0.5 * (risk + penalty) + 0.5 * F.cross_entropy(out.auxiliary, LABELS)
    config = LossConfig(objective="selective", coverage=0.9)
    torch.testing.assert_close(joint_loss([out], LABELS, config), wanted)


def test_selective_risk_cannot_be_lowered_by_trusting_less_of_everything() -> None:
    [out] = outputs(1)
    config = LossConfig(objective="selective")
    some, little = (
        loss_parts([replace(out, gate=torch.full((4,), z))], LABELS, config) for z in (0.0, -8.0)
    )
    torch.testing.assert_close(some["classifier"], little["classifier"])
    assert little["coverage"] > some["coverage"]


def test_coverage_above_the_target_costs_nothing() -> None:
    [out] = outputs(1)
    config = LossConfig(objective="selective", coverage=0.7)
    trusting = replace(out, gate=torch.full((4,), 3.0))
    assert loss_parts([trusting], LABELS, config)["coverage"] == 0.0


def test_selective_gate_learns_to_trust_what_the_classifier_gets_right() -> None:
    logits = torch.tensor([[4.0, -4.0], [4.0, -4.0], [-4.0, 4.0], [-4.0, 4.0]])  # rows 1, 3 wrong
    gate = torch.zeros(4, requires_grad=True)
    config = LossConfig(objective="selective", coverage=0.5)
    optimizer = torch.optim.Adam([gate], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        joint_loss([ExitLogits(logits, gate, logits)], LABELS, config).backward()
        optimizer.step()
    wrong = logits.argmax(1) != LABELS
    assert gate[~wrong].min() > 1 > -1 > gate[wrong].max()
    assert abs(float(gate.detach().sigmoid().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("gate", [-500.0, -90.0, 0.0, 90.0, 500.0])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
@pytest.mark.parametrize("objective", ["ce", "selective"])
def test_extreme_gates_and_one_class_give_finite_losses_and_gradients(
    gate: float, labels: list[int], objective: str
) -> None:
    config = LossConfig(
        objective=objective,  # type: ignore[arg-type]
        focal_gamma=0.5,
        distillation=1.0,
        class_weights=(0.5, 5.0),
    )
    outs = [
        learning(replace(out, gate=torch.full((4,), gate), logits=40 * out.logits))
        for out in outputs()
    ]
    loss = joint_loss(outs, torch.tensor(labels), config)
    loss.backward()
    assert torch.isfinite(loss)
    for out in outs:
        assert all(torch.isfinite(t.grad).all() for t in (out.logits, out.auxiliary))
        assert torch.isfinite(out.gate.grad).all()


def test_nan_output_gives_a_nan_loss_that_the_loop_can_see() -> None:
    [out] = outputs(1)
    for objective in ("ce", "selective"):
        broken = replace(out, gate=torch.tensor([0.0, float("nan"), 0.0, 0.0]))
        config = LossConfig(objective=objective)  # type: ignore[arg-type]
        assert torch.isnan(joint_loss([broken], LABELS, config))


# distillation


def test_earlier_exits_follow_the_last_which_is_not_moved_by_them() -> None:
    first, last = (learning(out) for out in outputs())
    config = LossConfig(distillation=1.0, distillation_temperature=3.0)
    loss = loss_parts([first, last], LABELS, config)["distillation"]
    led, followed = ((out.logits / 3).softmax(1) for out in (last, first))
    wanted = 9 * (led * (led / followed).log()).sum(1).mean() / 2  # two exits share the weight
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert first.logits.grad.abs().sum() > 0
    assert last.logits.grad is None


def test_an_exit_that_agrees_with_the_last_pays_nothing() -> None:
    [out] = outputs(1)
    assert loss_parts([out, out], LABELS, LossConfig(distillation=1.0))["distillation"] == 0


# imbalance and cost


def test_focal_loss_is_the_papers_and_forgets_easy_images() -> None:
    [out] = outputs(1)
    p = out.logits.softmax(1).gather(1, LABELS[:, None])[:, 0]
    wanted = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(joint_loss([out], LABELS, classifier_only(focal_gamma=2.0)), wanted)


def test_class_weights_and_false_negative_cost_scale_their_class_alone() -> None:
    [out] = outputs(1)
    each = F.cross_entropy(out.logits, LABELS, reduction="none")
    scale = torch.where(LABELS == 1, 3.0 * 5.0, 0.5)
    config = classifier_only(class_weights=(0.5, 3.0), false_negative_cost=5.0)
    torch.testing.assert_close(joint_loss([out], LABELS, config), (scale * each).mean())


def test_balanced_weights_give_both_classes_the_same_total() -> None:
    labels = torch.tensor([0] * 97 + [1] * 3)
    config = with_class_weights(LossConfig(class_weights="balanced"), labels)
    assert config.class_weights == (100 / 194, 100 / 6)
    assert 97 * config.class_weights[0] == pytest.approx(3 * config.class_weights[1])


def test_weighted_loss_of_a_batch_is_the_mean_over_its_halves() -> None:
    [out] = outputs(1, images=8)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    config = LossConfig(class_weights=(0.6, 4.0), focal_gamma=1.0)
    halves = [
        joint_loss([ExitLogits(out.logits[s], out.gate[s], out.auxiliary[s])], labels[s], config)
        for s in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(joint_loss([out], labels, config), sum(halves) / 2)


def test_balanced_needs_both_classes_and_the_training_labels() -> None:
    with pytest.raises(DataError, match="4 of class 0 and 0 of class 1"):
        with_class_weights(LossConfig(class_weights="balanced"), [0, 0, 0, 0])
    with pytest.raises(ConfigError, match="with_class_weights"):
        joint_loss(outputs(1), LABELS, LossConfig(class_weights="balanced"))


# soft labels


@pytest.mark.parametrize("objective", ["ce", "selective"])
def test_hard_labels_written_as_soft_ones_give_the_same_loss(objective: str) -> None:
    config = LossConfig(objective=objective, focal_gamma=1.0, class_weights=(1.0, 2.0))  # type: ignore[arg-type]
    hard = joint_loss(outputs(), LABELS, config)
    soft = joint_loss(outputs(), F.one_hot(LABELS, 2).float(), config)
    assert torch.equal(hard, soft)


def test_mixed_image_is_right_by_the_share_of_the_answered_class() -> None:
    out = ExitLogits(torch.tensor([[2.0, 0.0]]), torch.tensor([0.3]), torch.zeros(1, 2))
    parts = loss_parts([out], torch.tensor([[0.75, 0.25]]), LossConfig(gate=1.0))
    wanted = F.binary_cross_entropy_with_logits(out.gate, torch.tensor([0.75]))
    torch.testing.assert_close(parts["gate"], wanted)


# configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auxiliary", -0.1),
        ("gate", float("nan")),
        ("coverage", 0.0),
        ("coverage", 1.1),
        ("lam", -1.0),
        ("alpha", 0.0),
        ("exits", ()),
        ("exits", (0.0, 0.0)),
        ("exits", (1.0, -1.0)),
        ("exits", "rising"),
        ("smoothing", 1.0),
        ("distillation", float("inf")),
        ("distillation_temperature", 0.0),
        ("class_weights", (1.0,)),
        ("class_weights", "auto"),
        ("focal_gamma", -1.0),
        ("false_negative_cost", 0.0),
        ("objective", "hinge"),
    ],
)
def test_bad_setting_is_named_with_its_value_and_what_is_expected(
    field: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.{field} is .*; (expected|choose) "):
        LossConfig(**{field: value})  # type: ignore[arg-type]


def test_config_survives_json() -> None:
    config = LossConfig(objective="selective", exits=(1.0, 2.0), class_weights=(1.0, 9.0))
    assert msgspec.json.decode(msgspec.json.encode(config), type=LossConfig) == config
    with pytest.raises(msgspec.ValidationError, match="focal"):
        msgspec.json.decode(b'{"focal": 2}', type=LossConfig)
