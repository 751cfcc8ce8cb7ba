"""Golden vectors: a strict reader, and a self-test that notices another cascade."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from cascade_runtime import engines
from cascade_runtime.bundle import GOLDEN
from cascade_runtime.decision import ExitOutputs, decide
from cascade_runtime.errors import BundleError, TargetError
from cascade_runtime.golden import TOLERANCES, load_golden, read_safetensors, self_test
from cascade_runtime.manifest import Decision
from cascade_runtime.stages import Stages, load_stages

from .conftest import ONNX, OPENVINO, SIDE, Sample


def tensors_of(sample: Sample) -> dict[str, np.ndarray]:
    return dict(read_safetensors((sample.path / GOLDEN).read_bytes(), GOLDEN))


@pytest.fixture(scope="module")
def stages(template: Sample) -> Stages:
    def read(path: str) -> bytes:
        return (template.path / path).read_bytes()

    return load_stages(template.manifest, ONNX, read, threads=1)


def test_reader_agrees_with_the_safetensors_library() -> None:
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b/c": np.array([[1, 255]], np.uint8),
        "none": np.zeros((0, 4), np.float32),
        "one": np.array(-3, np.int8),
    }
    found = read_safetensors(save(tensors, metadata={"made": "here"}), "x")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def raw(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype: str = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header length"),
        (b"\0" * 7, "header length"),
        (raw({}, length=1 << 40), "header length"),
        (raw(b"{"), "not a JSON object"),
        (raw(b"\xff{}"), "not a JSON object"),
        (raw(b"[" * 100_000), "not a JSON object"),
        (raw([]), "not a JSON object"),
        (raw(b" {}"), "not a JSON object"),
        (raw(b'{"a": {}, "a": {}}'), "repeated"),
        (raw({"a": 3}), "needs dtype"),
        (raw({"a": {"dtype": "U8"}}, b"xx"), "needs dtype"),
        (raw({"a": entry("F64")}, b"xx"), "needs dtype"),
        (raw({"a": entry(offsets=(0, 1, 2))}, b"xx"), "needs dtype"),
        (raw({"a": entry(shape=(-2,))}, b"xx"), "no count"),
        (raw({"a": entry(shape=(2.0,))}, b"xx"), "no count"),
        (raw({"a": entry(shape=(True,), offsets=(0, 1))}, b"x"), "no count"),
        (raw({"a": entry(offsets=(0, 3))}, b"xx"), "outside the file"),
        (raw({"a": entry(offsets=(2, 0))}, b"xx"), "outside the file"),
        (raw({"a": entry(shape=(1 << 52, 4))}, b"xx"), "2 bytes for shape"),
        (raw({"a": entry(shape=[1] * 100, offsets=(0, 1))}, b"x"), "beyond what an array"),
        (raw({"a": entry(shape=(1 << 53, 1 << 53, 0), offsets=(0, 0))}), "beyond what an array"),
        (raw({"a": entry(shape={}, offsets=(0, 1))}, b"x"), "needs dtype"),
        (raw({"a": entry()}, b"xxx"), "1 bytes after the last tensor"),
        (raw({"a": entry(offsets=(1, 3))}, b"xxx"), "hole at byte 0"),
        (raw({"a": entry(), "b": entry(offsets=(1, 3))}, b"xxx"), "overlap"),
    ],
)
def test_damaged_safetensors_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=f"vectors: .*{message}"):
        read_safetensors(data, "vectors")


@pytest.mark.parametrize("name", ["images", f"{ONNX}/gate", f"{ONNX}/label", f"{ONNX}/stage"])
def test_missing_or_misshapen_tensor_is_refused_by_name(template: Sample, name: str) -> None:
    tensors = tensors_of(template)
    value = tensors.pop(name)
    with pytest.raises(BundleError, match=f"'{name}' is missing"):
        load_golden(save(tensors))
    with pytest.raises(BundleError, match=f"'{name}' is "):
        load_golden(save({**tensors, name: value[..., :-1].copy()}))


def test_file_that_claims_very_many_stages_is_refused_at_once() -> None:
    """Of no images they cost it no byte."""
    many = 1 << 40
    empty = np.empty(0, np.int8)
    tensors = {
        "images": np.empty((0, SIDE, SIDE, 3), np.uint8),
        f"{ONNX}/logits": np.empty((many, 0, 2), np.float32),
        f"{ONNX}/gate": np.empty((many, 0), np.float32),
        **{f"{ONNX}/{kind}": empty for kind in ("label", "stage")},
    }
    with pytest.raises(BundleError, match=f"has {many} stages, more than 127"):
        load_golden(save(tensors))


def test_machine_that_answers_as_recorded_passes(template: Sample, stages: Stages) -> None:
    golden = load_golden((template.path / GOLDEN).read_bytes())
    assert {int(s) for s in golden.stage[ONNX]} == {0, 1}, "the vectors must reach both exits"
    self_test(stages, template.decision, golden, ONNX)
    with pytest.raises(BundleError, match="no vectors of 'tensorrt/fp16/sm87'"):
        self_test(stages, template.decision, golden, "tensorrt/fp16/sm87")


@pytest.mark.parametrize(("kind", "stage"), [("logits", 0), ("gate", 0), ("gate", 1)])
def test_engine_that_drifts_is_refused(
    template: Sample, stages: Stages, kind: str, stage: int
) -> None:
    tensors = tensors_of(template)
    drifted = tensors[f"{ONNX}/{kind}"].copy()
    drifted[stage] += 0.002
    golden = load_golden(save({**tensors, f"{ONNX}/{kind}": drifted}))
    with pytest.raises(TargetError, match=f"{kind} of stage {stage} .* differ by 0.002"):
        self_test(stages, template.decision, golden, ONNX)


def test_recorded_decision_that_its_outputs_do_not_give_is_refused(
    template: Sample, stages: Stages
) -> None:
    tensors = tensors_of(template)
    label = tensors[f"{ONNX}/label"].copy()
    label[2] = 1 - max(label[2], 0)
    golden = load_golden(save({**tensors, f"{ONNX}/label": label}))
    with pytest.raises(BundleError, match=r"recorded for image 2 .* do not decide"):
        self_test(stages, template.decision, golden, ONNX)


def with_threshold(decision: Decision, tau: float) -> Decision:
    first = msgspec.structs.replace(decision.exits[0], tau_logit=tau)
    return msgspec.structs.replace(decision, exits=(first, decision.exits[1]))


class Shifted:
    """An engine whose gate is off by a constant."""

    def __init__(self, engine: Any, by: float) -> None:
        self.engine, self.by = engine, np.float32(by)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = self.engine.run(batch)
        return {**found, "gate": found["gate"] + self.by}


def test_decision_may_flip_next_to_its_threshold(template: Sample, stages: Stages) -> None:
    """An engine 0.0005 low: image 0 sits on the threshold, so its answer may move."""
    golden = load_golden((template.path / GOLDEN).read_bytes())
    gate = golden.exits[ONNX][0].gate
    rule = template.decision.exits[0]
    score = np.float32(rule.platt_a) * gate + np.float32(rule.platt_b)
    decision = with_threshold(template.decision, float(score[0]))
    verdict = decide(golden.exits[ONNX], decision)
    golden.label[ONNX], golden.stage[ONNX] = verdict.label, verdict.stage
    low = Stages([Shifted(stages.engines[0], -0.0005), stages.engines[1]])
    flipped = low.forward(golden.images, decision)
    assert flipped.stage[0] != verdict.stage[0]
    self_test(low, decision, golden, ONNX)


def test_decision_that_flips_elsewhere_is_refused(template: Sample, stages: Stages) -> None:
    """Every output within the tolerance, and yet other decisions: early exit must agree too."""
    golden = load_golden((template.path / GOLDEN).read_bytes())

    class Late(Stages):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            verdict = super().forward(*args, **kwargs)
            verdict.stage[:] = 1
            return verdict

    with pytest.raises(TargetError, match="does not run the certified cascade"):
        self_test(Late(stages.engines), template.decision, golden, ONNX)


def test_not_a_number_is_compared_as_itself(template: Sample, stages: Stages) -> None:
    golden = load_golden((template.path / GOLDEN).read_bytes())
    first = golden.exits[ONNX][0]
    gate = first.gate.copy()
    gate[0] = math.nan
    golden.exits[ONNX][0] = ExitOutputs(first.logits, gate)
    with pytest.raises(TargetError):
        self_test(stages, template.decision, golden, ONNX)


def test_every_precision_that_an_engine_runs_can_be_self_tested() -> None:
    runnable = {pair[0] for name in engines.BACKENDS for pair in engines.backend(name).TARGETS}
    assert runnable >= {"fp32", "int8"} and runnable <= TOLERANCES.keys()


def test_both_targets_of_the_sample_are_recorded(template: Sample) -> None:
    golden = load_golden((template.path / GOLDEN).read_bytes())
    assert set(golden.exits) == {ONNX, OPENVINO}
