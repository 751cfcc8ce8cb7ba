"""Two models in one bundle: what the small one does not answer goes to the big one, as pixels."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from cascade_bench.compare.run import given_of
from cascade_calib.recertify import RecertifyRequest, recertify
from cascade_compile import targets
from cascade_compile.bundle import BundleRequest, build
from cascade_runtime.bundle import MANIFEST, Bundle, seal
from cascade_runtime.cascade import Cascade
from cascade_runtime.decision import decide, score_logit
from cascade_runtime.errors import BundleError, ConfigError
from cascade_runtime.manifest import Decision, Manifest, encode, stage_inputs
from cascade_train.augment_config import AugmentConfig
from cascade_train.checkpoint import load_network
from cascade_train.fit import FitRequest, run_fit
from cascade_train.join import join
from cascade_train.loop import FitConfig, predict

from .conftest import ONNX, SIDE, Trained, promise


@dataclass(frozen=True)
class Pair:
    """A bundle of two models, its manifest, and the run that it was made from."""

    run: Path
    path: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def pair(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One block with one exit, trained for two epochs, then the two blocks of `trained`."""
    root = tmp_path_factory.mktemp("pair")
    config = FitConfig(
        epochs=2, batch_size=32, lr=2e-3, ema=0.8, amp="none", augment=AugmentConfig(policy="none")
    )
    data = json.loads((trained.run / "config.json").read_text())["data"]
    small = FitRequest(data=data, out=root / "small", exits=(1,), image_size=SIDE, threads=1)
    run_fit(small, config, say=lambda line: None)
    join(root / "small", trained.run, root / "joined")
    asked = BundleRequest(
        run=root / "joined",
        out=root / "pair.cascade",
        targets=(targets.parse(ONNX),),
        promise=promise("0.2"),
        threads=1,
    )
    return Pair(asked.run, asked.out, build(asked, say=lambda line: None))


@pytest.fixture(scope="module")
def cascade(pair: Pair) -> Cascade:
    return Cascade.open(pair.path, ONNX, threads=1, self_test=True, warm_up=False)


@pytest.fixture(scope="module")
def images(trained: Trained) -> np.ndarray:
    """uint8 [N, 32, 32, 3], of both splits."""
    return np.concatenate([trained.select.pixels, trained.calib.pixels])


def halving(cascade: Cascade, images: np.ndarray) -> Decision:
    """The bundle's decision with thresholds at which about half of the images pass each exit on."""
    rules = [
        msgspec.structs.replace(rule, tau_logit=float(np.median(score_logit(out, rule))))
        for out, rule in zip(
            cascade.stages.forward_all(images), cascade.decision.exits, strict=True
        )
    ]
    return msgspec.structs.replace(cascade.decision, exits=tuple(rules))


def test_second_model_takes_pixels_and_no_tokens_lead_to_it(pair: Pair) -> None:
    stages = pair.manifest.stages
    assert stage_inputs(stages) == ("pixels", "pixels", "tokens")
    assert [stage.blocks for stage in stages] == [(0, 1), (0, 1), (1, 2)]
    assert [stage.name for stage in stages] == ["stage0", "stage1", "stage2"]
    assert pair.manifest.model.exits == (1, 1, 2)
    assert pair.manifest.model.preset == "tiny + tiny"
    assert pair.manifest.model.parameters == sum(stage.parameters for stage in stages)
    outputs = []
    for stage in pair.manifest.targets[ONNX].stages:
        graph = onnx.load(pair.path / stage.files[0]).graph
        outputs.append((graph.input[0].name, [value.name for value in graph.output]))
    assert outputs == [
        ("pixels", ["logits", "gate"]),
        ("pixels", ["logits", "gate", "tokens"]),
        ("tokens_in", ["logits", "gate"]),
    ]


def test_engines_say_what_the_two_networks_say(
    pair: Pair, cascade: Cascade, images: np.ndarray
) -> None:
    logits, gates = predict(load_network(pair.run)[0], images)
    for exit_, out in enumerate(cascade.stages.forward_all(images)):
        np.testing.assert_allclose(out.logits, logits[exit_], rtol=0, atol=1e-4)
        np.testing.assert_allclose(out.gate, gates[exit_], rtol=0, atol=1e-4)
    assert pair.manifest.targets[ONNX].parity["max_difference"] < 1e-4


def test_pair_is_compared_with_its_second_network(
    pair: Pair, cascade: Cascade, trained: Trained, tmp_path: Path
) -> None:
    given = given_of(pair.run, cascade, 1, tmp_path)
    assert given.network.exit_blocks == (1, 2)
    with pytest.raises(ConfigError, match="its preset is 'tiny', the bundle has 'tiny \\+ tiny'"):
        given_of(trained.run, cascade, 1, tmp_path)


def test_pair_is_certified_and_answers_as_it_was_certified(
    pair: Pair, cascade: Cascade, trained: Trained
) -> None:
    certificate = pair.manifest.certificates[ONNX]
    assert certificate.status == "CERTIFIED"
    results = cascade.classify(list(trained.calib.pixels))
    verdict = decide(cascade.stages.forward_all(trained.calib.pixels), cascade.decision)
    assert [r.label for r in results] == verdict.label.tolist()
    assert [r.stage for r in results] == verdict.stage.tolist()
    wrong = verdict.acted & (verdict.label != trained.calib.labels)
    assert (certificate.accepted, certificate.errors) == (verdict.acted.sum(), wrong.sum())
    by_stage = tuple(int((verdict.acted & (verdict.stage == s)).sum()) for s in range(3))
    assert certificate.exit_counts == by_stage


def test_early_exit_decides_as_every_exit_of_every_image_would(
    cascade: Cascade, images: np.ndarray
) -> None:
    decision = halving(cascade, images)
    verdict = cascade.stages.forward(images, decision)
    wanted = decide(cascade.stages.forward_all(images), decision)
    assert {0, 1, 2} == set(wanted.stage.tolist())
    np.testing.assert_array_equal(verdict.label, wanted.label)
    np.testing.assert_array_equal(verdict.stage, wanted.stage)
    np.testing.assert_array_equal(verdict.reason, wanted.reason)


def test_images_that_exit_at_the_first_model_never_reach_the_second(
    cascade: Cascade, images: np.ndarray
) -> None:
    decision = halving(cascade, images)
    seen: list[int] = []
    verdict = cascade.stages.forward(images, decision, lambda stage, count, _: seen.append(count))
    assert seen == [int((verdict.stage >= stage).sum()) for stage in range(3)]
    assert seen[0] == len(images) > seen[1] > seen[2] > 0


def test_pair_whose_second_model_is_said_to_take_tokens_is_refused(
    pair: Pair, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(pair.path, tmp_path / "x.cascade"))
    stages = [msgspec.structs.replace(stage, input=None) for stage in pair.manifest.stages]
    changed = msgspec.structs.replace(pair.manifest, stages=tuple(stages))
    (copy / MANIFEST).write_bytes(encode(changed))
    seal(copy)
    with pytest.raises(BundleError, match=r"inputs of .* are not what was certified"):
        Bundle.open(copy)


def test_pair_is_certified_again_on_the_device(pair: Pair, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair.path, tmp_path / "x.cascade"))
    request = RecertifyRequest(copy, data=str(pair.run / "splits.json"), threads=1)
    again = recertify(request, say=lambda line: None)
    assert again.certificates[ONNX].status == "CERTIFIED"
    assert Bundle.open(copy).manifest.stages == pair.manifest.stages


def test_report_sets_the_cost_beside_the_second_model_alone(pair: Pair) -> None:
    assert "of always running the last model" in (pair.path / "report.html").read_text("utf-8")
