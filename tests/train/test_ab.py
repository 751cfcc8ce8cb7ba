"""Two configurations compared: what the interval does not carry is not claimed."""

from __future__ import annotations

import io
import json
import math
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from cascade_calib.metrics import augrc, coverage_at_risk
from cascade_calib.splits_file import content_hash
from cascade_runtime.errors import ConfigError
from cascade_train import ab
from cascade_train.ab import AbResult, run_ab, run_folder
from cascade_train.ab_arm import OUTCOME, OUTPUTS, Outcome, measure, read_outcome, save_outputs
from cascade_train.ab_report import conclusion, tables, write_plot
from cascade_train.config import TrainConfig, train_config
from cascade_train.data.splits import (
    DEFAULT_FRACTIONS,
    SPLITS,
    Entry,
    Splits,
    read_splits,
    write_splits,
)
from cascade_train.paired import Outputs, at_once, figures, holm, image_variances, paired_estimate

N = 300
A = train_config(sets=["data=somewhere", "fit.lr=0.001"])
B = train_config(sets=["data=somewhere", "fit.lr=0.002"])


def outputs(skill: float, seed: int, n: int = N, blocks: tuple[int, ...] = (2, 6)) -> Outputs:
    """Answers to the same n images, right more often with more skill; scores with ties."""
    labels = (np.arange(n) % 2).astype(np.int8)
    hardness = np.random.default_rng(0).normal(size=n)
    noise = np.random.default_rng(1000 + seed).normal(size=(len(blocks), n))
    toward = skill - hardness + noise
    logits = np.zeros((len(blocks), n, 2), np.float32)
    logits[:, np.arange(n), labels] = np.round(toward, 1)
    return Outputs(blocks, logits, np.abs(logits[..., 1] - logits[..., 0]), labels)


# The figures and their intervals.


def test_figures_are_those_of_the_metrics_also_when_weighted() -> None:
    out = outputs(1.0, 3)
    weights = np.random.default_rng(1).integers(0, 3, (4, N)).astype(float)
    found = figures(out, weights)
    for row, weight in enumerate(weights.astype(int)):
        score = np.repeat(out.score[-1], weight)
        wrong = np.repeat(out.logits[-1].argmax(1) != out.labels, weight)
        labels = np.repeat(out.labels, weight)
        assert found["augrc"][row] == pytest.approx(augrc(score, wrong), abs=1e-12)
        for risk in (0.01, 0.02, 0.05):
            exact = coverage_at_risk(score, wrong, risk).coverage
            assert found[f"coverage_at_{risk:g}"][row] == pytest.approx(exact, abs=1e-12)
        assert found["accuracy_6"][row] == pytest.approx(1 - wrong.mean())
        assert found["fnr"][row] == pytest.approx(wrong[labels == 1].mean())
        right = np.where(wrong, 1 - labels, labels)
        assert found["mcc"][row] == pytest.approx(np.corrcoef(right, labels)[0, 1])


def test_constant_answers_have_an_mcc_of_0() -> None:
    out = outputs(1.0, 0)
    constant = Outputs(out.blocks, np.zeros_like(out.logits), out.score, out.labels)
    assert at_once(constant)["mcc"] == 0.0
    assert at_once(constant)["fnr"] == 1.0


def test_seeds_alone_give_students_interval() -> None:
    gaps = [0.3, 1.1, -0.2, 0.9, 0.4]
    found, exact = paired_estimate(gaps), stats.ttest_1samp(gaps, 0)
    assert found.interval == pytest.approx(tuple(exact.confidence_interval()))
    assert found.p == pytest.approx(exact.pvalue)


def test_new_images_never_make_the_interval_narrower() -> None:
    gaps = [0.3, 1.1, -0.2]
    widths = [np.diff(paired_estimate(gaps, v).interval)[0] for v in (0.0, 0.01, 0.1, 1.0)]
    assert widths == sorted(widths)
    assert paired_estimate(gaps, 1.0).p > paired_estimate(gaps).p


def test_one_seed_has_no_interval_and_equal_seeds_have_no_width() -> None:
    assert math.isnan(paired_estimate([0.5], 0.1).p)
    assert math.isnan(paired_estimate([], 0.1).difference)
    assert math.isnan(paired_estimate([0.5, math.nan]).interval.low)
    assert paired_estimate([0.0, 0.0]).p == 1.0
    assert tuple(paired_estimate([0.5, 0.5]).interval) == (0.5, 0.5)


def test_interval_holds_what_it_says_and_counting_images_as_trainings_does_not() -> None:
    """Differences share the draw of the images (sd 0.5) and have a spread of their own (sd 1)."""
    rng = np.random.default_rng(5)
    draws, seeds, images = 1000, 3, 200
    held = pooled = 0
    for _ in range(draws):
        gaps = 0.5 * rng.normal() + rng.normal(size=seeds)
        found = paired_estimate(gaps, 0.25)
        held += found.interval.low <= 0 <= found.interval.high
        assert (found.p < 0.05) == (not found.interval.low <= 0 <= found.interval.high)
        each = gaps[:, None] + 5 * rng.normal(size=(seeds, images))
        pooled += abs(each.mean()) <= 1.96 * each.std() / math.sqrt(each.size)
    limit = 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)
    assert held / draws >= limit
    assert pooled / draws < limit


def test_image_variance_is_that_of_the_resampled_mean() -> None:
    pairs = [(outputs(1.0, s), outputs(1.0, 50 + s)) for s in range(2)]
    found = image_variances(pairs, resamples=2000)["accuracy_6"]
    wrong = [[(o.logits[-1].argmax(1) != o.labels) for o in pair] for pair in pairs]
    per_image = np.mean([a.astype(float) - b for a, b in wrong], axis=0)
    assert found == pytest.approx(per_image.var() / N, rel=0.15)


def test_groups_of_alike_images_widen_the_variance() -> None:
    first, second = outputs(0.5, 0, 50), outputs(1.0, 1, 50)

    def repeat(o: Outputs) -> Outputs:
        arrays = (np.repeat(x, 6, axis=1) for x in (o.logits, o.score))
        return Outputs(o.blocks, *arrays, np.repeat(o.labels, 6))

    pair = [(repeat(first), repeat(second))]
    groups = [f"video {i // 6}" for i in range(N)]
    alone, whole = image_variances(pair), image_variances(pair, groups)
    assert whole["accuracy_6"] > 3 * alone["accuracy_6"]


def test_holm_is_step_down() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert found["a"] == pytest.approx(0.04)
    assert found["b"] == found["c"] == pytest.approx(0.09)
    assert math.isnan(found["d"])


# The comparison, with trainings that are finished already.


def split_of(given: Outputs, split: str = "val_test", groups: bool = False) -> Splits:
    """A splits file in which the images of `given` are all in one split."""
    entries = tuple(
        Entry(
            path=f"{i:04d}.png",
            label=int(y),
            split=split,
            sha256=f"{i:064x}",
            group=f"g{i // 10}" if groups else None,
        )
        for i, y in enumerate(given.labels)
    )
    parts = {name: [e for e in entries if e.split == name] for name in SPLITS}
    return Splits(
        source="somewhere",
        root=".",
        classes=("no", "yes"),
        seed=0,
        fractions=dict(DEFAULT_FRACTIONS),
        content_sha256={
            name: content_hash([e.sha256 for e in part], [e.label for e in part])
            for name, part in parts.items()
        },
        entries=entries,
        skipped=(),
    )


def finished(out: Path, arm: str, seed: int, given: Outputs, groups: bool = False) -> None:
    """Write what a training leaves."""
    run = run_folder(out, arm, seed)
    run.mkdir()
    splits = split_of(given, groups=groups)
    write_splits(splits, run / "splits.json")
    outcome = Outcome(
        blocks=given.blocks,
        scores=("softmax",) * len(given.blocks),
        trainable=100,
        parameters=1000,
        seconds=10.0 + seed + (arm == "B"),
        peak_memory=2**29,
        content_sha256=splits.content_sha256["val_test"],
    )
    save_outputs(run, given)
    (run / OUTCOME).write_bytes(msgspec.json.encode(outcome))


def compared(
    out: Path, skills: tuple[float, float], seeds: int = 5, blocks: tuple[int, ...] = (2, 6)
) -> AbResult:
    run_ab(A, B, out, seeds=0, say=lambda _: None)
    for seed in range(seeds):
        finished(out, "A", seed, outputs(skills[0], seed))
        finished(out, "B", seed, outputs(skills[1], 100 + seed, blocks=blocks))
    return run_ab(A, B, out, seeds=seeds, names=("slow", "fast"), say=lambda _: None)


def printed(result: AbResult) -> str:
    text = io.StringIO()
    for table in tables(result):
        Console(width=200, file=text).print(table)
    return text.getvalue() + conclusion(result)


def test_clear_difference_has_a_winner_and_says_by_how_much(tmp_path: Path) -> None:
    result = compared(tmp_path / "ab", (0.3, 2.0))
    assert result.winner == "B"
    primary = result.figures[0]
    assert (primary.name, primary.kind, primary.better) == ("augrc", "primary", "B")
    assert primary.interval.high < 0
    said = printed(result)
    assert "B (fast) is better" in said
    assert "fit.lr" in said
    assert "named beforehand" in said
    assert "torch model" in said
    assert "report it on others" in said
    better = {f.name: f.better for f in result.figures}
    assert better["accuracy_6"] == better["mcc"] == better["fnr"] == "B"
    assert better["seconds"] == better["peak_memory"] == "neither"
    assert primary.interval.high - primary.interval.low > np.diff(primary.of_seeds)[0]


def test_same_skill_has_no_winner(tmp_path: Path) -> None:
    result = compared(tmp_path / "ab", (1.0, 1.0))
    assert result.winner == "neither"
    assert {f.better for f in result.figures} == {"neither"}
    assert "The data cannot tell A (slow) from B (fast)" in conclusion(result)
    assert "is better" not in conclusion(result)


def test_one_seed_is_no_verdict_however_large_the_difference(tmp_path: Path) -> None:
    result = compared(tmp_path / "ab", (0.0, 3.0), seeds=1)
    assert result.winner == "neither"
    assert conclusion(result).startswith("No verdict")
    write_plot(result, tmp_path / "ab.png")


def test_result_is_json_and_a_picture(tmp_path: Path) -> None:
    result = compared(tmp_path / "ab", (0.3, 2.0), seeds=3)
    saved = json.loads((tmp_path / "ab" / "result.json").read_text())
    assert saved == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (saved["primary"], saved["winner"], saved["seeds"]) == ("augrc", "B", [0, 1, 2])
    for name in ("a.png", "b.png"):
        write_plot(result, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").size[0] > 1000


def test_only_exits_after_the_same_block_are_compared(tmp_path: Path) -> None:
    result = compared(tmp_path / "ab", (1.0, 1.0), seeds=2, blocks=(3, 6))
    names = {f.name for f in result.figures if f.name.startswith("accuracy")}
    assert names == {"accuracy_6"}


def test_groups_are_resampled_whole(tmp_path: Path) -> None:
    run_ab(A, B, tmp_path / "ab", seeds=0, say=lambda _: None)
    for arm in "AB":
        for seed in range(2):
            finished(tmp_path / "ab", arm, seed, outputs(1.0, seed), groups=True)
    result = run_ab(A, B, tmp_path / "ab", seeds=2, say=lambda _: None)
    assert result.groups == N // 10
    assert "300 test images in 30 groups" in conclusion(result)


def test_growing_the_number_of_seeds_is_said(tmp_path: Path) -> None:
    compared(tmp_path / "ab", (0.3, 2.0), seeds=2)
    finished(tmp_path / "ab", "A", 2, outputs(0.3, 2))
    finished(tmp_path / "ab", "B", 2, outputs(2.0, 102))
    again = run_ab(A, B, tmp_path / "ab", seeds=3, say=lambda _: None)
    assert "growing number of seeds" in conclusion(again)
    same = run_ab(A, B, tmp_path / "ab", seeds=3, say=lambda _: None)
    assert same.looks == again.looks


def test_winner_that_failed_at_times_is_not_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(tmp_path / "ab", (0.3, 2.0), seeds=3)
    (run_folder(tmp_path / "ab", "B", 2) / OUTCOME).unlink()
    monkeypatch.setattr(ab.sys, "executable", "/bin/false")
    result = run_ab(A, B, tmp_path / "ab", seeds=3, say=lambda _: None)
    assert result.seeds == (0, 1)
    assert [(f.arm, f.seed, f.reason) for f in result.failures] == [("B", 2, "exit status 1")]
    assert result.figures[0].better == "B"
    assert result.winner == "neither"
    assert "1 of its trainings failed" in conclusion(result)


def test_process_that_was_killed_is_said_to_be() -> None:
    assert ab._reason(-signal.SIGKILL, []) == "killed by SIGKILL; out of memory, most likely"
    assert ab._reason(1, ["Traceback", "error: the loss is no number", "x"]) == (
        "the loss is no number"
    )
    assert ab._reason(1, ["Traceback", "ValueError: x"]) == "ValueError: x"


def test_arms_alternate() -> None:
    assert [arm for arm, _ in ab._order(3)] == ["A", "B", "B", "A", "A", "B"]


def test_folder_of_another_comparison_is_refused(tmp_path: Path) -> None:
    run_ab(A, B, tmp_path / "ab", seeds=0, say=lambda _: None)
    with pytest.raises(ConfigError, match=r"another comparison: B .*'lr: 0\.00"):
        run_ab(A, A, tmp_path / "ab", seeds=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        run_ab(A, B, tmp_path / "full", seeds=0)


def test_arms_about_other_images_are_refused(tmp_path: Path) -> None:
    for change in ("data=elsewhere", "fractions=[.5,.2,.2,.1]", "positive=yes", "split_seed=3"):
        other = train_config(sets=["data=somewhere", change.replace("=yes", "='yes'")])
        with pytest.raises(ConfigError, match="needs the same images"):
            run_ab(A, other, tmp_path / "ab", seeds=0)
    with pytest.raises(ConfigError, match="data is missing"):
        run_ab(TrainConfig(), TrainConfig(), tmp_path / "ab", seeds=0)
    assert not (tmp_path / "ab").exists()


def test_start_that_saw_the_test_images_is_refused(tmp_path: Path) -> None:
    run_ab(A, B, tmp_path / "ab", seeds=0, say=lambda _: None)
    finished(tmp_path / "ab", "A", 0, outputs(1.0, 0))
    run = run_folder(tmp_path / "ab", "A", 0)
    start = tmp_path / "day"
    start.mkdir()
    write_splits(split_of(outputs(1.0, 0)), start / "splits.json")
    config = msgspec.structs.replace(A, init=str(start))
    ab._refuse_seen(config, run)  # the same images were for testing there as well
    write_splits(split_of(outputs(1.0, 0), "train"), start / "splits.json")
    with pytest.raises(ConfigError, match="was trained on 300 of the 300 test images"):
        ab._refuse_seen(config, run)


def test_damaged_outcome_is_named(tmp_path: Path) -> None:
    compared(tmp_path / "ab", (1.0, 1.0), seeds=1)
    run = run_folder(tmp_path / "ab", "A", 0)
    (run / OUTPUTS).write_bytes(b"not tensors")
    with pytest.raises(ConfigError, match=r"A-seed0: its outcome is damaged"):
        read_outcome(run)


# With trainings.


def test_arm_that_crashes_is_reported_and_the_other_kept(
    tmp_path: Path, square_folder: Path
) -> None:
    quick = [
        f"data={square_folder}", "exits=[1,2]", "image_size=32", "threads=1", "fit.epochs=1",
        "fit.batch_size=32", "split_seed=7", "fit.amp=none", "fit.augment.policy=none",
    ]  # fmt: skip
    good, bad = train_config(sets=quick), train_config(sets=[*quick, "fit.lr=1e30"])
    said: list[str] = []
    out = tmp_path / "ab"
    result = run_ab(good, bad, out, seeds=1, say=said.append)
    assert [(f.arm, f.seed) for f in result.failures] == [("B", 0)]
    assert "no longer a number" in result.failures[0].reason
    assert result.seeds == ()
    assert any("B seed 0 failed" in line for line in said)
    assert "B failed with seed 0" in conclusion(result)
    kept = read_outcome(out / "A-seed0")
    assert kept is not None
    outcome, seen = kept
    measured, scores = measure(out / "A-seed0", "none")
    np.testing.assert_array_equal(seen.logits, measured.logits)
    assert (outcome.scores, outcome.blocks) == (scores, (1, 2))
    assert outcome.peak_memory is None or 100 * 2**20 < outcome.peak_memory < 2**33
    assert train_config(out / "A-seed0.yaml").fit.seed == 0
    assert read_splits(out / "A-seed0" / "splits.json").seed == 7
