"""The manifest says what it means or is refused with the field's name."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime import bundle, manifest
from cascade_runtime.decision import ExitOutputs, Reason, decide
from cascade_runtime.errors import BundleError

from .conftest import ONNX, Sample, gate_rule, make_decision

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "bundle-format.md").read_text()
PREPROCESS = manifest.Preprocess(height=64, width=48)


def edited(sample: Sample, *path: str | int, value: Any = None, drop: bool = False) -> bytes:
    """The sample's manifest as JSON with one value replaced or dropped."""
    tree = json.loads(manifest.encode(sample.manifest))
    node = tree
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return json.dumps(tree).encode()


def test_encoding_reads_back_equal(template: Sample) -> None:
    assert manifest.decode(manifest.encode(template.manifest)) == template.manifest


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_threshold_reads_back_to_the_same_float32(value: float) -> None:
    rule = gate_rule(value)
    again = msgspec.json.decode(msgspec.json.encode(rule), type=manifest.ExitRule)
    assert again.tau_logit is not None
    assert np.float32(again.tau_logit).tobytes() == np.float32(value).tobytes()


def test_shortest_decimal_of_a_float32_reads_back(template: Sample) -> None:
    """What a writer may store, `0.1` for float32 0.1, binds and decides as the float32 does."""
    short, long = make_decision((0.1,)), make_decision((float(np.float32(0.1)),))
    assert manifest.binding(PREPROCESS, short, {}) == manifest.binding(PREPROCESS, long, {})


def test_unknown_fields_are_ignored(template: Sample) -> None:
    data = edited(template, "later", value={"a": 1})
    assert manifest.decode(data) == template.manifest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "zip", "format is 'zip'"),
        (("format",), None, "format is None"),
        (("format_version",), "2.0", "upgrade cascade-edge"),
        (("format_version",), 1.0, "upgrade cascade-edge"),
        (("targets",), {}, "targets is empty"),
        (("targets", ONNX, "backend"), "openvino", "does not match its own fields"),
        (("targets", ONNX, "stages"), [], "has 0 stages"),
        (("decision",), {}, "no decision or certificate"),
        (("certificates",), {}, "no decision or certificate"),
        (("decision", ONNX, "exits"), [], "does not cover every exit"),
        (("decision", ONNX, "policy"), "guess", "policy"),
        (("decision", ONNX, "policy"), "scrc-t", "accept goes with"),
        (("decision", ONNX, "policy"), "softmax", "every exit's score"),
        (("decision", ONNX, "accept"), {"tau_logit": 0, "set_logit_at": 0}, "accept goes with"),
        (("preprocess", "height"), 0, "must be >= 1"),
        (("preprocess", "color"), "BGR", "color"),
        (("model", "classes"), ["one"], "classes"),
        (("stages", 0, "input"), "tokens", r"stages\[0\].input is 'tokens'"),
        (("stages", 1, "input"), "images", "input"),
    ],
)
def test_wrong_field_is_refused_by_name(
    template: Sample, path: tuple[str | int, ...], value: Any, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        manifest.decode(edited(template, *path, value=value))


def test_later_minor_version_is_read(template: Sample) -> None:
    assert manifest.decode(edited(template, "format_version", value="1.7")).format_version == "1.7"


def test_missing_field_is_refused_by_name(template: Sample) -> None:
    with pytest.raises(BundleError, match="set_logit"):
        manifest.decode(edited(template, "decision", ONNX, "set_logit", drop=True))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"NaN", b'{"format": NaN}'])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        manifest.decode(data)


def test_binding_is_the_text_of_the_specification() -> None:
    """The example spelled out there: a second reader must arrive at the same bytes."""
    decision = make_decision((2.0, None))
    block = SPECIFICATION.split("### Binding")[1].split("```")[3]
    text = block.removeprefix("\n")
    assert text.startswith("preprocess 48 64 RGB ") and text.count("\n") == 6
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert manifest.binding(PREPROCESS, decision, {"b/x": "bb", "a/x": "aa"}) == expected


def test_binding_of_sets_is_the_text_of_the_specification() -> None:
    exits = make_decision((2.0, None)).exits
    accept = manifest.AcceptRule(tau_logit=0.5, set_logit_at=-1.0)
    decision = manifest.Decision(policy="scrc-t", exits=exits, set_logit=0.25, accept=accept)
    block = SPECIFICATION.split("### Binding")[1].split("```")[5].removeprefix("\n")
    example = SPECIFICATION.split("### Binding")[1].split("```")[3].removeprefix("\n")
    lines = example.splitlines(keepends=True)
    text = "".join([lines[0], block, *lines[2:]])
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert manifest.binding(PREPROCESS, decision, {"b/x": "bb", "a/x": "aa"}) == expected


def test_binding_of_two_models_is_the_text_of_the_specification() -> None:
    decision = make_decision((2.0, None))
    blocks = SPECIFICATION.split("### Binding")[1].split("```")
    example, line = (blocks[i].removeprefix("\n") for i in (3, 7))
    first, rest = example.split("\n", 1)
    expected = hashlib.sha256(f"{first}\n{line}{rest}".encode()).hexdigest()
    engines = {"b/x": "bb", "a/x": "aa"}
    assert manifest.binding(PREPROCESS, decision, engines, ("pixels", "pixels")) == expected


def test_binding_of_one_network_says_nothing_of_inputs(template: Sample) -> None:
    inputs = manifest.stage_inputs(template.manifest.stages)
    assert inputs == ("pixels", "tokens")
    decision = make_decision((2.0, None))
    plain = manifest.binding(PREPROCESS, decision, {})
    assert manifest.binding(PREPROCESS, decision, {}, inputs) == plain


def test_stage_without_input_takes_what_it_took_before_there_was_one(template: Sample) -> None:
    tree = json.loads(manifest.encode(template.manifest))
    for stage in tree["stages"]:
        del stage["input"]
    read = manifest.decode(json.dumps(tree).encode())
    assert manifest.stage_inputs(read.stages) == ("pixels", "tokens")
    tree["stages"][1]["input"] = "pixels"
    read = manifest.decode(json.dumps(tree).encode())
    assert manifest.stage_inputs(read.stages) == ("pixels", "pixels")


@pytest.mark.parametrize(
    ("inputs", "start"),
    [(("pixels",), 0), (("pixels", "tokens"), 0), (("pixels", "tokens", "pixels", "tokens"), 2)],
)
def test_last_network_begins_at_the_last_stage_that_takes_pixels(
    inputs: tuple[manifest.StageInput, ...], start: int
) -> None:
    assert manifest.last_network(inputs) == start


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 31))
def test_binding_depends_on_every_bit_of_a_threshold(value: float, bit: int) -> None:
    (bits,) = struct.unpack(">I", struct.pack(">f", value))
    (other,) = struct.unpack(">f", struct.pack(">I", bits ^ (1 << bit)))
    if not np.isfinite(other):
        return
    first, second = make_decision((value,)), make_decision((other,))
    assert manifest.binding(PREPROCESS, first, {}) != manifest.binding(PREPROCESS, second, {})


def test_specification_names_every_field() -> None:
    structs = [
        kind
        for kind in vars(manifest).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    ]
    assert len(structs) == 15
    missing = {
        f"{kind.__name__}.{field}"
        for kind in structs
        for field in kind.__struct_fields__
        if f"`{field}`" not in SPECIFICATION
    }
    assert not missing - {"TargetStage.files"}  # shown as JSON, `{"files": […]}`


def test_worked_example_of_the_specification_is_a_manifest() -> None:
    """A reader takes it, its certificate fits, and it decides the image as the text says."""
    section = SPECIFICATION.split("## Worked example")[1].split("\n## ")[0]
    text = section.split("```json\n")[1].split("```")[0]
    lines = section.split("```\n")[2].split("```")[0]
    read = manifest.decode(text.encode())
    assert manifest.encode(read).decode() == text
    ((name, certificate),) = read.certificates.items()
    assert hashlib.sha256(lines.encode()).hexdigest() == certificate.binding
    bundle.check_certificate(read, name, dict(certificate.engines))
    outputs = ExitOutputs(
        np.array([[0.5, 2.0], [0.5, 2.0]], np.float32), np.array([1.5, 0.5], np.float32)
    )
    verdict = decide([outputs], read.decision[name])
    assert verdict.label.tolist() == [1, -1]
    assert Reason(int(verdict.reason[1])) is Reason.BELOW_THRESHOLD
    assert verdict.margin[0] == np.float32(1.2)
