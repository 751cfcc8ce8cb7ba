"""Which score ships: softmax unless another is proven better, and what is proven is what runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cascade_calib.arrays import Float64
from cascade_calib.bootstrap import bootstrap_ci
from cascade_calib.labelled import Loaded
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError, DataError
from cascade_train.exits import CascadeModel
from cascade_train.gates import ExitReadout, ExitScore, attach_scores, new_scores, read_exits
from cascade_train.posthoc import Rows, cross_fit, exit_rows, fit_scores, folds_of
from cascade_train.score_choice import (
    ScoreChoice,
    ScoreConfig,
    choose_scores,
    resampled_augrc,
)

SMALL = ScoreConfig(folds=3, components=4, resamples=400)
WIDTH = 6


def exit_of(
    n: int, seed: int, *, feature: float = 0.0, gate: float = 0.0
) -> tuple[ExitReadout, np.ndarray]:
    """An exit whose margin does not show which images are hard; `feature` and `gate` may.

    Half of the images are hard: their margin is as large, but mostly noise. 0: feature or gate is
    noise alone; the larger, the plainer it says so.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    hard = rng.integers(0, 2, n)
    signal = (2 * labels - 1) * np.where(hard, 0.3, 2.0)
    margin = signal + rng.normal(size=n) * np.where(hard, 1.8, 1.0)
    features = rng.normal(size=(n, WIDTH))
    features[:, 0] += feature * hard
    trained = rng.normal(size=n) - gate * hard + (0.5 * np.abs(margin) if gate else 0.0)
    readout = ExitReadout(
        features.astype(np.float32),
        np.stack([-margin / 2, margin / 2], axis=1).astype(np.float32),
        trained.astype(np.float32),
    )
    return readout, labels


def shipped(score: nn.Module, out: ExitReadout) -> Float64:
    parts = (torch.from_numpy(a) for a in (out.features, out.logits, out.gate))
    with torch.no_grad():
        return score(*parts).double().numpy()


def softmax(out: ExitReadout) -> Float64:
    return np.abs(out.logits[:, 1] - out.logits[:, 0]).astype(np.float64)


def wrong(out: ExitReadout, labels: np.ndarray) -> np.ndarray:
    return (out.logits.argmax(axis=1) != labels).astype(float)


def rows_of(out: ExitReadout, labels: np.ndarray, group: np.ndarray | None = None) -> Rows:
    group = np.arange(len(labels)) if group is None else group
    return exit_rows(out, labels, group, 4)[0]


# the choice


def test_scores_that_know_nothing_do_not_replace_softmax() -> None:
    chosen = []
    for seed in range(12):
        out, labels = exit_of(400, seed)
        chosen.append(choose_scores([out], labels, None, SMALL).choice.exits[0].chosen)
    assert chosen.count("softmax") >= 11


@pytest.mark.parametrize(
    ("knows", "winners"), [("feature", {"posthoc", "blend"}), ("gate", {"gate", "blend"})]
)
def test_score_that_sees_the_hard_images_ships_and_ranks_better_on_new_ones(
    knows: str, winners: set[str]
) -> None:
    out, labels = exit_of(1200, 1, **{knows: 4.0})
    made = choose_scores([out], labels, None, SMALL)
    [choice], [score] = made.choice.exits, made.scores
    assert choice.chosen in winners
    assert choice.gain > 0
    fresh, truth = exit_of(6000, 2, **{knows: 4.0})
    assert augrc(shipped(score, fresh), wrong(fresh, truth)) < 0.95 * augrc(
        softmax(fresh), wrong(fresh, truth)
    )


def test_chosen_score_has_the_lowest_augrc_of_the_proven_ones() -> None:
    out, labels = exit_of(1200, 3, feature=4.0, gate=2.0)
    [choice] = choose_scores([out], labels, None, SMALL).choice.exits
    proven = {c.name: c.augrc for c in choice.candidates if c.gain_low > 0}
    assert len(proven) >= 2
    assert choice.chosen == min(proven, key=lambda name: proven[name])


def test_fitted_scores_are_judged_on_images_they_have_not_seen() -> None:
    rng = np.random.default_rng(0)
    out, labels = exit_of(150, 4)
    noise = rng.normal(size=(150, 60)).astype(np.float32)  # enough to learn 150 answers by heart
    out = ExitReadout(noise, out.logits, out.gate)
    config = msgspec.structs.replace(SMALL, components=60)
    [choice] = choose_scores([out], labels, None, config).choice.exits
    rows, basis = exit_rows(out, labels, np.arange(150), 60)
    by_heart = augrc(shipped(basis.module(fit_scores(rows, 3, 0).posthoc), out), 1 - rows.right)
    judged = {c.name: c.augrc for c in choice.candidates}
    assert by_heart < judged["softmax"] - 0.005  # it does learn them by heart
    assert judged["posthoc"] > by_heart + 0.005
    assert choice.chosen == "softmax"


def test_copies_of_an_image_in_one_group_prove_nothing_more() -> None:
    out, labels = exit_of(300, 5, gate=1.5)
    copies = np.repeat(np.arange(300), 8)
    many = ExitReadout(out.features[copies], out.logits[copies], out.gate[copies])
    config = msgspec.structs.replace(SMALL, candidates=("gate",))
    [one] = choose_scores([out], labels, None, config).choice.exits
    groups = [f"film {i:03d}" for i in copies]
    [grouped] = choose_scores([many], labels[copies], groups, config).choice.exits
    [loose] = choose_scores([many], labels[copies], None, config).choice.exits
    single, together, apart = (
        c.candidates[1].gain_high - c.candidates[1].gain_low for c in (one, grouped, loose)
    )
    assert together == pytest.approx(single, rel=0.02)
    assert apart < 0.5 * single


@pytest.mark.parametrize("errors", [0, 1, 19])
def test_softmax_ships_where_too_few_errors_could_tell(errors: int) -> None:
    out, _ = exit_of(300, 6, gate=4.0)
    labels = out.logits.argmax(axis=1)
    labels[:errors] = 1 - labels[:errors]
    [choice] = choose_scores([out], labels, None, SMALL).choice.exits
    assert (choice.chosen, choice.candidates, choice.errors) == ("softmax", (), errors)
    assert f"{errors} errors among 300 images" in choice.sentence
    assert "too few" in choice.sentence


def test_errors_of_one_group_count_once() -> None:
    out, labels = exit_of(300, 7, gate=4.0)
    missed = wrong(out, labels).astype(bool)
    groups = ["film" if bad else f"photo {i}" for i, bad in enumerate(missed)]
    [choice] = choose_scores([out], labels, groups, SMALL).choice.exits
    assert choice.errors > 20 and choice.candidates == ()
    assert "(1 independent)" in choice.sentence


def test_degenerate_exits_get_softmax() -> None:
    for n, right in ((1, True), (30, True), (30, False)):
        out, _ = exit_of(n, 8)
        said = out.logits.argmax(axis=1)
        [choice] = choose_scores([out], said if right else 1 - said, None, SMALL).choice.exits
        assert choice.chosen == "softmax"
    out, labels = exit_of(200, 9)
    flat = ExitReadout(np.ones_like(out.features), np.zeros_like(out.logits), 0 * out.gate)
    made = choose_scores([flat], labels, None, SMALL)
    assert made.choice.exits[0].chosen == "softmax"
    assert np.array_equal(shipped(made.scores[0], flat), np.zeros(200))


def test_nothing_to_compare_with_says_so() -> None:
    out, labels = exit_of(300, 6)
    config = msgspec.structs.replace(SMALL, candidates=("softmax",))
    [choice] = choose_scores([out], labels, None, config).choice.exits
    assert choice.sentence == "Exit 0 ships the softmax margin: nothing was compared with it."


def test_same_seed_gives_the_same_choice_and_the_same_weights() -> None:
    out, labels = exit_of(400, 10, feature=4.0)
    first, second = (choose_scores([out], labels, None, SMALL) for _ in range(2))
    assert first.choice == second.choice
    for name, tensor in first.scores[0].state_dict().items():
        assert torch.equal(tensor, second.scores[0].state_dict()[name])


def test_record_names_scores_gain_and_interval_and_survives_json() -> None:
    out, labels = exit_of(600, 11, gate=4.0)
    choice = choose_scores([out, out], labels, None, SMALL).choice
    assert msgspec.json.decode(msgspec.json.encode(choice), type=ScoreChoice) == choice
    second = choice.exits[1]
    assert second.sentence.startswith("Exit 1 ships the ")
    assert f"{second.candidates[0].augrc:.5f} of the softmax margin" in second.sentence
    assert [c.name for c in second.candidates] == ["softmax", "gate", "posthoc", "blend"]
    for candidate in second.candidates:
        assert candidate.low <= candidate.augrc <= candidate.high
        assert candidate.gain == pytest.approx(second.candidates[0].augrc - candidate.augrc)


# folds and intervals


def test_folds_keep_groups_whole_and_spread_the_errors() -> None:
    out, labels = exit_of(400, 12)
    group = np.random.default_rng(0).integers(0, 80, 400)
    fold = folds_of(rows_of(out, labels, group), 5, seed=0)
    assert all(len(np.unique(fold[group == g])) == 1 for g in np.unique(group))
    single = rows_of(out, labels)
    errors = np.bincount(folds_of(single, 5, seed=0), weights=1 - single.right)
    assert errors.max() - errors.min() <= 1
    assert not np.array_equal(folds_of(single, 5, seed=0), folds_of(single, 5, seed=1))


def test_cross_fit_never_shows_a_fit_the_groups_it_scores() -> None:
    out, labels = exit_of(200, 13)
    rows = rows_of(out, labels, np.arange(200) // 4)
    seen: list[set[int]] = []

    class Unseen:
        def __init__(self, fitted: Rows) -> None:
            self.groups = set(fitted.group)

        def of(self, held: Rows) -> Float64:
            seen.append(self.groups & set(held.group))
            return held.margin

    found = cross_fit(rows, 5, 0, lambda part: [Unseen(part)])  # type: ignore[list-item]
    assert seen == [set()] * 5
    assert np.array_equal(found[0], rows.margin)  # every image, in its place


def test_resampled_augrc_is_that_of_the_drawn_images() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, 40).astype(float)  # tied
    error = rng.integers(0, 2, 40).astype(float)
    drawn = resampled_augrc(np.stack([score, score]), error, np.arange(40), 3, seed=7)
    weights = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=3)
    for row, weight in zip(drawn, weights, strict=True):
        wanted = augrc(np.repeat(score, weight), np.repeat(error, weight))
        np.testing.assert_allclose(row, [wanted, wanted], rtol=1e-12)


def test_interval_of_a_score_agrees_with_the_calibrations() -> None:
    out, labels = exit_of(500, 14)
    bad = wrong(out, labels)
    drawn = resampled_augrc(softmax(out)[None], bad, np.arange(500), 2000, seed=0)
    wanted = bootstrap_ci(softmax(out), bad, "augrc")
    np.testing.assert_allclose(np.quantile(drawn, [0.025, 0.975]), wanted, rtol=0.03)


# what runs


def test_new_score_is_the_trained_gate_as_it_is() -> None:
    out, _ = exit_of(50, 15)
    assert np.array_equal(shipped(ExitScore(WIDTH), out), out.gate)


def test_softmax_and_gate_ship_to_the_bit() -> None:
    out, labels = exit_of(300, 16)
    _, basis = exit_rows(out, labels, np.arange(300), 4)
    margin = np.abs(out.logits[:, 1] - out.logits[:, 0])
    assert np.array_equal(shipped(basis.plain(softmax=True), out), margin)
    assert np.array_equal(shipped(basis.plain(softmax=False), out), out.gate)


def test_module_computes_the_fitted_formula_from_raw_outputs() -> None:
    out, labels = exit_of(400, 17, feature=3.0, gate=2.0)
    shifted = ExitReadout(out.features * 5 + 3, out.logits, out.gate * 7 - 2)
    rows, basis = exit_rows(shifted, labels, np.arange(400), 4)
    fitted = fit_scores(rows, 3, 0)
    assert np.abs(fitted.posthoc.weight).max() > 0.01 and fitted.blend.gate != 0
    for formula in fitted:
        np.testing.assert_allclose(
            shipped(basis.module(formula), shifted), formula.of(rows), rtol=1e-4, atol=1e-4
        )


def test_score_exports_to_plain_onnx_that_answers_alike(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    out, labels = exit_of(400, 18, feature=3.0, gate=2.0)
    rows, basis = exit_rows(out, labels, np.arange(400), 4)
    score = basis.module(fit_scores(rows, 3, 0).blend).eval()
    example = tuple(torch.from_numpy(a[:3]) for a in (out.features, out.logits, out.gate))
    path = tmp_path / "score.onnx"
    torch.onnx.export(
        score,
        example,
        path,
        dynamo=True,
        opset_version=20,
        input_names=["features", "logits", "trained"],
        output_names=["gate"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * 3,
        external_data=False,
        verbose=False,
    )
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds <= {
        *("Abs", "Add", "Constant", "Gather", "Gemm", "Mul", "Sign", "Slice", "Squeeze", "Sub"),
        *("MatMul", "Reshape", "Transpose"),
    }
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"features": out.features, "logits": out.logits, "trained": out.gate}
    [gate] = session.run(["gate"], feed)
    assert gate.shape == (400,)
    np.testing.assert_allclose(gate, shipped(score, out), rtol=1e-4, atol=1e-5)


def test_nan_of_any_input_reaches_the_score() -> None:
    out, labels = exit_of(300, 19, feature=3.0)
    rows, basis = exit_rows(out, labels, np.arange(300), 4)
    score = basis.module(fit_scores(rows, 3, 0).blend)
    parts = [torch.from_numpy(a[:1].copy()) for a in (out.features, out.logits, out.gate)]
    for i in range(3):
        broken = [part.clone() for part in parts]
        broken[i].view(-1)[0] = float("nan")
        assert torch.isnan(score(*broken)).all()


def test_readout_is_what_the_heads_compute(
    model: CascadeModel, squares: Callable[..., Loaded]
) -> None:
    data = squares(10)
    model.train()
    found = read_exits(model, data.pixels, batch_size=4)
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(data.pixels))
    for out, head, wanted in zip(found, model.exits.heads, outputs, strict=True):
        np.testing.assert_allclose(out.logits, wanted.logits.numpy(), atol=1e-5)
        np.testing.assert_allclose(out.gate, wanted.gate.numpy(), atol=1e-5)
        np.testing.assert_allclose(
            head.classifier(torch.from_numpy(out.features)).detach(), out.logits, atol=1e-5
        )
        assert not head.classifier._forward_pre_hooks


def test_saved_scores_fit_the_network_they_were_made_for(model: CascadeModel) -> None:
    blank = new_scores(model)
    assert [score.weight.shape[1] for score in blank] == [256, 256]
    attach_scores(model, blank)
    assert [head.score for head in model.exits.heads] == list(blank)
    attach_scores(model, None)
    assert [head.score for head in model.exits.heads] == [None, None]
    with pytest.raises(ValueError, match="shorter"):
        attach_scores(model, list(blank)[:1])


@pytest.mark.parametrize("part", ["features", "logits", "gate"])
def test_output_that_is_not_finite_is_refused(part: str) -> None:
    out, _ = exit_of(5, 20)
    arrays = {name: array.copy() for name, array in vars(out).items()}
    arrays[part].reshape(-1)[0] = np.inf
    with pytest.raises(DataError, match=f"{part} are not finite for 1 of 5 images"):
        ExitReadout(**arrays)


def test_labels_and_groups_must_fit_the_images() -> None:
    out, labels = exit_of(30, 21)
    with pytest.raises(DataError, match="29 labels"):
        choose_scores([out], labels[1:])
    with pytest.raises(DataError, match="each 0 or 1"):
        choose_scores([out], labels + 1)
    with pytest.raises(DataError, match="1 groups for 30 images"):
        choose_scores([out], labels, ["a"])
    nothing = ExitReadout(out.features[:0], out.logits[:0], out.gate[:0])
    with pytest.raises(DataError, match="0 labels"):
        choose_scores([nothing], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("candidates", ("softmax", "entropy")),
        ("folds", 1),
        ("components", 0),
        ("resamples", 10),
        ("level", 1.0),
        ("least_errors", 1),
        ("seed", -1),
    ],
)
def test_bad_setting_is_named_with_what_is_expected(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"scores\.{field} is .*; expected "):
        ScoreConfig(**{field: value})  # type: ignore[arg-type]
