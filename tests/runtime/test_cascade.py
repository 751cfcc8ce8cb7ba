"""The runtime as a user sees it: choose a target, classify a list, lose no image."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

import cascade_runtime
from cascade_runtime import bundle, engines
from cascade_runtime.cascade import Cascade, Result, choose_target, rate, share_of, sigmoid
from cascade_runtime.decision import decide
from cascade_runtime.errors import TargetError
from cascade_runtime.golden import read_safetensors
from cascade_runtime.manifest import Target

from .conftest import (
    ONNX,
    OPENVINO,
    Sample,
    make_images,
    make_infeasible,
)


@pytest.fixture(scope="module")
def cascade(template: Sample) -> Cascade:
    return Cascade.open(template.path, ONNX, threads=1)


def test_rate_of_a_large_network_is_not_shown_as_none() -> None:
    assert rate(0.3) == "0.30 images/s" and rate(358.6) == "359 images/s"


def test_open_says_what_it_runs(cascade: Cascade, template: Sample) -> None:
    assert cascade.target == ONNX
    assert cascade.why == f"{ONNX} was asked for"
    assert cascade.decision == template.decision
    assert cascade.certificate == template.manifest.certificates[ONNX]
    assert cascade.preprocess == template.manifest.preprocess


@pytest.mark.parametrize("name", [ONNX, OPENVINO])
def test_decisions_are_those_of_the_certified_rule(template: Sample, name: str) -> None:
    cascade = Cascade.open(template.path, name, threads=1, self_test=True, warm_up=False)
    images = make_images(70)
    verdict = decide(cascade.stages.forward_all(images), cascade.decision)
    results = cascade.classify(list(images), batch_size=16)
    assert [r.label for r in results] == verdict.label.tolist()
    assert [r.stage for r in results] == verdict.stage.tolist()
    assert len({(r.label, r.stage) for r in results}) >= 4, "the images must differ"
    for result, score, margin in zip(results, verdict.score_logit, verdict.margin, strict=True):
        assert result.score == pytest.approx(sigmoid(float(score)), abs=1e-5)
        assert result.p == pytest.approx(sigmoid(float(margin)), abs=1e-5)
        acted = result.reason == "acted"
        assert acted == (result.decision is not None) == (result.label >= 0)
        if acted:
            assert result.set == (result.decision,)
            assert result.decision == ("clear", "roadwork")[result.label]


def test_paths_bytes_and_arrays_mix_and_keep_their_order(
    cascade: Cascade, image_files: list[Path]
) -> None:
    path = image_files[0]
    array = np.asarray(Image.open(image_files[1]))
    results = cascade.classify([path, str(path), path.read_bytes(), array], batch_size=1)
    assert [r.name for r in results] == [str(path), str(path), "image 2", "image 3"]
    assert len({(r.label, r.p, r.score) for r in results[:3]}) == 1
    assert results[3].p == pytest.approx(cascade.classify([image_files[1]])[0].p, abs=1e-6)


def test_one_bad_image_fails_alone(cascade: Cascade, image_files: list[Path]) -> None:
    missing = image_files[0].with_name("missing.png")
    cut = image_files[1].read_bytes()[:60]
    everything: list[Any] = [image_files[0], missing, cut, image_files[2], np.zeros((2, 2))]
    results = cascade.classify(everything)
    bad = [results[1], results[2], results[4]]
    for result in bad:
        assert result.reason.startswith("unreadable: ")
        assert (result.decision, result.label, result.stage, result.set) == (None, -1, -1, ())
        assert math.isnan(result.p) and math.isnan(result.score)
    assert bad[0].reason.count("missing.png") == 0, "the name stands in `name`, once"
    alone = cascade.classify([image_files[0], image_files[2]])
    assert [results[0].label, results[3].label] == [r.label for r in alone]


@pytest.mark.parametrize("name", [ONNX, OPENVINO])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_threads_side_by_side_answer_as_one(template: Sample, name: str, batch_size: int) -> None:
    images: list[Any] = [*make_images(101), b"no image", *make_images(2, seed=9)]
    alone = Cascade.open(template.path, name, threads=1, warm_up=False)
    shared = Cascade.open(template.path, name, threads=3)
    for count in (1, 2, 3, 5, len(images)):
        expected = [tuple_of(r) for r in alone.classify(images[:count], batch_size)]
        assert [tuple_of(r) for r in shared.classify(images[:count], batch_size)] == expected


def tuple_of(result: Result) -> tuple[Any, ...]:
    """What is said of an image, to the digits that no size of a batch changes."""
    p, score = round(result.p, 5), round(result.score, 5)
    said = (result.name, result.decision, result.set, result.stage, result.reason)
    return (*said, str(p), str(score))


@given(images=st.integers(1, 5000), threads=st.integers(1, 64), most=st.integers(1, 128))
def test_every_thread_takes_its_share(images: int, threads: int, most: int) -> None:
    size = share_of(images, threads, most)
    turns = -(-images // (threads * size))
    assert 1 <= size <= most
    assert turns * most * threads >= images
    assert (turns - 1) * most * threads < images, "no more turns than are needed"
    assert size * threads * turns < images + threads * turns, "and none has more to do than all"


def test_callers_at_the_same_time_get_their_own_answers(template: Sample) -> None:
    cascade = Cascade.open(template.path, ONNX, threads=2)
    images = list(make_images(40))
    expected = [tuple_of(r)[1:] for r in cascade.classify(images, 1)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: cascade.classify([image])[0], images * 3))
    assert [tuple_of(r)[1:] for r in found] == expected * 3


def test_engine_that_fails_beside_others_fails_the_call(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = Cascade.open(template.path, ONNX, threads=2)
    beside = cascade.stages.side_by_side()
    assert beside is not None

    def fail(batch: Any) -> Any:
        raise RuntimeError("no memory left on the device")

    monkeypatch.setattr(beside.engines[0], "run", fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        cascade.classify(list(make_images(50)), 8)
    monkeypatch.undo()
    assert len(cascade.classify(list(make_images(50)), 8)) == 50


def test_batch_of_only_bad_images_and_empty_list(cascade: Cascade) -> None:
    assert [r.stage for r in cascade.classify([b"", b"x"])] == [-1, -1]
    assert cascade.classify([]) == []


@pytest.mark.parametrize(
    "one", ["a.jpg", Path("a.jpg"), b"bytes", np.zeros((4, 4, 3), np.uint8)], ids=type
)
def test_single_image_is_a_type_error(cascade: Cascade, one: Any) -> None:
    with pytest.raises(TypeError, match=r"pass a list, \[image\]"):
        cascade.classify(one)


def test_array_of_images_is_a_list_of_them(cascade: Cascade) -> None:
    assert len(cascade.classify(make_images(3))) == 3


def test_result_is_plain_json() -> None:
    result = Result("a", None, -1, (), math.nan, math.inf, -1, "unreadable: gone")
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["p"] is None and values["score"] is None
    assert values["name"] == "a" and values["set"] == []


def block(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str]) -> None:
    def unavailable(target: Target) -> str | None:
        return reasons.get(target.backend)

    monkeypatch.setattr(engines, "unavailable", unavailable)


def test_auto_takes_the_fastest_that_runs_here(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    block(monkeypatch, {})
    name, why = choose_target(template.manifest)
    assert name == OPENVINO and "fastest" in why and "200 images/s" in why
    block(monkeypatch, {"openvino": "openvino is not installed; pip install openvino"})
    name, why = choose_target(template.manifest)
    assert name == ONNX
    assert f"skipped {OPENVINO}: openvino is not installed; pip install openvino" in why


def test_auto_prefers_a_certified_target_to_a_faster_one_that_defers_everything(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    block(monkeypatch, {})
    replace = msgspec.structs.replace
    certificates = dict(template.manifest.certificates)
    certificates[OPENVINO] = replace(certificates[OPENVINO], status="INFEASIBLE")
    certificates[ONNX] = replace(certificates[ONNX], status="CERTIFIED")
    name, why = choose_target(replace(template.manifest, certificates=certificates))
    assert name == ONNX and "fastest certified one" in why


def test_target_that_cannot_run_is_refused_with_the_reason(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    block(monkeypatch, {"openvino": "no such processor", "onnxruntime": "not installed"})
    with pytest.raises(TargetError, match=f"'{OPENVINO}' cannot run here: no such processor"):
        Cascade.open(template.path, OPENVINO)
    with pytest.raises(TargetError, match=r"no target .* no such processor.* not installed"):
        Cascade.open(template.path)


def test_unknown_target_lists_the_known(template: Sample) -> None:
    with pytest.raises(TargetError, match=f"'tpu' is not in this bundle, which has: {ONNX}"):
        Cascade.open(template.path, "tpu")


def test_self_test_refuses_a_bundle_that_answers_otherwise(sample: Sample) -> None:
    path = sample.path / bundle.GOLDEN
    tensors = dict(read_safetensors(path.read_bytes(), bundle.GOLDEN))
    images = 255 - tensors["images"]
    save_file({**tensors, "images": images}, path)
    bundle.seal(sample.path)
    Cascade.open(sample.path, ONNX, threads=1, warm_up=False)
    with pytest.raises(TargetError, match="does not run the certified cascade"):
        Cascade.open(sample.path, ONNX, threads=1, self_test=True)


def test_infeasible_target_opens_and_defers_everything(sample: Sample) -> None:
    make_infeasible(sample)
    results = Cascade.open(sample.path, ONNX, threads=1).classify(make_images(5))
    assert {(r.decision, r.reason, r.stage) for r in results} == {(None, "below threshold", 1)}


@pytest.mark.parametrize("x", [-1e9, -745.2, -1.0, 0.0, 1.0, 1e9, math.inf, -math.inf])
def test_sigmoid_never_overflows(x: float) -> None:
    assert 0.0 <= sigmoid(x) <= 1.0
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1.0)


def test_sigmoid_keeps_not_a_number() -> None:
    assert math.isnan(sigmoid(math.nan))


def test_public_names_are_these() -> None:
    assert sorted(cascade_runtime.__all__) == [
        "BundleError",
        "Cascade",
        "CascadeError",
        "ImageError",
        "Result",
        "TargetError",
    ]
    assert all(getattr(cascade_runtime, name) for name in cascade_runtime.__all__)
