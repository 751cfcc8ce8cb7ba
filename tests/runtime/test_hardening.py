"""Bundles made to do harm: refused by name before anything is deserialised, and never a crash.

What is refused for its files, hashes or certificate alone is in `test_bundle`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cascade_runtime import bundle, manifest, strict_json
from cascade_runtime.bundle import Bundle, seal
from cascade_runtime.cascade import choose_target
from cascade_runtime.cli import certificate_in_words
from cascade_runtime.errors import BundleError, TargetError

from .conftest import ONNX, Sample

pytestmark = pytest.mark.usefixtures("no_engine")
MANY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def with_manifest(sample: Sample, data: bytes) -> Path:
    """The bundle with these bytes for its manifest, sealed: its hashes then fit."""
    (sample.path / bundle.MANIFEST).write_bytes(data)
    seal(sample.path)
    return sample.path


# --- JSON that two readers could understand differently


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is repeated"),
        ('{"a": {"b": 1, "\\u0062": 2}}', "the key 'b' is repeated"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": -1e999}', "the number -1e999 is too large"),
        ('{"a": 0.' + "0" * 2000 + "1}", "is too large"),
        ('{"a": ' + "1" * 401 + "}", r"the integer 1+ is beyond 2\^53"),
        ('{"a": 9007199254740993}', r"9007199254740993 is beyond 2\^53"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than 32"),
        ('{"a": ' + "[" * 32 + "]" * 32 + "}", "nested deeper than 32"),
        ('{"a": ' + "[" * 200_000, "nested deeper than 32"),
        ('{"a": ' * 200_000, "nested deeper than 32"),
        ('{"a": 1} {"b": 2}', "not a JSON object"),
        ('{"a": 1,}', "not a JSON object"),
        ('{"a": 01}', "not a JSON object"),
        ('{"a": "\n"}', "not a JSON object"),
        ("\ufeff{}", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("", "not a JSON object"),
    ],
)
def test_json_of_two_meanings_is_refused(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=f"file: .*{message}"):
        strict_json.parse(text.encode(), "file")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_json_in_another_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(BundleError, match=r"file: .*(is not UTF-8|not a JSON object)"):
        strict_json.parse('{"a": "ÿ"}'.encode(encoding), "file")


def test_json_may_have_32_levels_of_objects_and_arrays() -> None:
    text = '{"a": ' + "[" * 31 + "1" + "]" * 31 + "}"
    assert strict_json.parse(text.encode(), "file")


@settings(max_examples=50)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-strict_json.MAX_INTEGER, strict_json.MAX_INTEGER)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
        max_leaves=20,
    )
)
def test_every_other_json_value_reads_as_it_is(value: Any) -> None:
    whole = {"value": value}
    assert strict_json.parse(json.dumps(whole).encode(), "file") == whole


# --- manifests


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), "2.0", "upgrade cascade-edge"),
        (("format_version",), "1", "upgrade cascade-edge"),
        (("format_version",), "1.0.0", "upgrade cascade-edge"),
        (("format_version",), "01.0", "upgrade cascade-edge"),
        (("format_version",), "1.x", "upgrade cascade-edge"),
        (("stages",), [], "has 2 stages, the model has 0"),
        (("model", "exits"), [1], "model.exits needs one entry a stage"),
        (("model", "parameters"), -1, "counts >= 0"),
        (("preprocess", "width"), 1 << 40, "height, width <= 65536"),
        (("stages", 0, "blocks"), [2, 1], r"stages\[0\].blocks"),
        (("targets", ONNX, "images_per_s"), -1.0, "images_per_s needs >= 0"),
        (("targets", ONNX, "stages", 0, "files"), [], "at least one engine file"),
        (("targets", ONNX, "stages", 0, "files"), ["a/stage0.x", "a/stage0.x"], "each file once"),
        (("targets", ONNX, "stages", 0, "files"), ["/etc/passwd"], "paths inside the bundle"),
        (("targets", ONNX, "stages", 0, "files"), ["a/../../stage0.x"], "paths inside the bundle"),
        (("targets", ONNX, "stages", 0, "files"), ["a\\stage0.x"], "paths inside the bundle"),
        (("targets", ONNX, "stages", 0, "files"), ["a/stage0.x\0"], "paths inside the bundle"),
        (("decision", ONNX, "set_logit"), 1e39, "beyond float32"),
        (("decision", ONNX, "exits", 0, "platt_a"), -3.5e38, "beyond float32"),
        (("decision", ONNX, "exits", 0, "temperature"), 0, "temperature needs a float32 > 0"),
        (("decision", ONNX, "exits", 0, "temperature"), 1e-50, "temperature needs a float32 > 0"),
        (("decision", ONNX, "exits", 0, "temperature"), -1.0, "temperature needs a float32 > 0"),
        (("certificates", ONNX, "claims"), 0, "claims needs >= 1"),
        (("certificates", ONNX, "delta"), 0.0, "delta needs null or between 0 and 1"),
        (("certificates", ONNX, "alpha"), 1.5, "shares between 0 and 1"),
        (("certificates", ONNX, "errors"), 900, "errors <= accepted <= n"),
        (("certificates", ONNX, "exit_counts"), [800], "exit_counts needs one entry a stage"),
        (("certificates", ONNX, "class_errors"), [1], "one entry a class"),
        (("certificates", ONNX, "fnr_upper"), -0.1, "shares between 0 and 1"),
    ],
)
def test_value_outside_its_limits_is_refused_by_field(
    template: Sample, path: tuple[str | int, ...], value: Any, message: str
) -> None:
    tree = json.loads(manifest.encode(template.manifest))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(BundleError, match=message):
        manifest.decode(json.dumps(tree).encode())


def test_target_name_with_a_slash_in_a_part_is_refused(template: Sample) -> None:
    tree = json.loads(manifest.encode(template.manifest))
    for table in (tree["targets"], tree["decision"], tree["certificates"]):
        table["a/b/fp32/cpu"] = table.pop(ONNX)
    tree["targets"]["a/b/fp32/cpu"]["backend"] = "a/b"
    with pytest.raises(BundleError, match="letters, digits"):
        manifest.decode(json.dumps(tree).encode())


@pytest.mark.parametrize(
    ("path", "field"),
    [
        *((("preprocess",), field) for field in ("color", "exif", "resize", "crop")),
        *((("preprocess",), field) for field in ("jpeg", "max_pixels")),
        (("certificates", ONNX), "claims"),
    ],
)
def test_required_field_is_not_filled_in_by_the_reader(
    template: Sample, path: tuple[str, ...], field: str
) -> None:
    tree = json.loads(manifest.encode(template.manifest))
    node = tree
    for key in path:
        node = node[key]
    del node[field]
    with pytest.raises(BundleError, match=rf"{path[0]}.*\.{field} is missing"):
        manifest.decode(json.dumps(tree).encode())


def test_decision_and_certificate_of_no_target_have_the_same_limits(template: Sample) -> None:
    for table, field in (("decision", "set_logit"), ("certificates", "alpha")):
        tree = json.loads(manifest.encode(template.manifest))
        tree[table]["x"] = {**tree[table][ONNX], field: 1e39}
        with pytest.raises(BundleError, match=rf"{table}\['x'\]"):
            manifest.decode(json.dumps(tree).encode())


def test_stages_that_were_swapped_in_the_manifest_are_refused(sample: Sample) -> None:
    """Every hash, and the certificate's binding, still fit: only the names of the files tell."""
    tree = json.loads(manifest.encode(sample.manifest))
    tree["targets"][ONNX]["stages"].reverse()
    place = with_manifest(sample, json.dumps(tree).encode())
    with pytest.raises(BundleError, match=r"needs files named stage0\.\*, not .*stage1\.onnx"):
        Bundle.open(place)


def test_engine_files_that_were_swapped_on_disk_are_refused(sample: Sample) -> None:
    first, second = (sample.path / f"targets/{ONNX}/stage{s}.onnx" for s in (0, 1))
    first.rename(sample.path / "x")
    second.rename(first)
    (sample.path / "x").rename(second)
    with pytest.raises(BundleError, match=r"stage0\.onnx: SHA-256 is"):
        Bundle.open(sample.path)
    seal(sample.path)
    with pytest.raises(BundleError, match=r"stage0\.onnx: not the engine .* was certified on"):
        Bundle.open(sample.path)


def test_manifest_beyond_its_limit_is_refused_unread(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(BundleError, match=r"manifest\.json: \d+ bytes, the limit is 1000"):
        Bundle.open(sample.path)
    monkeypatch.setattr(bundle, "_MAX_SUMS_BYTES", 10)
    with pytest.raises(BundleError, match=r"SHA256SUMS: \d+ bytes, the limit is 10"):
        Bundle.open(sample.path)


class Token(str):
    """Text that goes into the JSON as it is."""


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 127, 255, 1.5, -0.0, 1e-320, 3.5e38),
    *("", "..", "/etc/passwd", "a\\b", "\0", "x" * 2000, "\u202e", "tokens", "pixels", "scrc-t"),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3], ["targets/x/stage0.onnx"], "CERTIFIED"),
    *(1 << 31, 1 << 53, -(1 << 53), (1 << 53) + 2, 10**400),
    *map(Token, ("1e999", "-1e999", "NaN", "Infinity", '"\\ud800"', "1e-999", "00", '"', "")),
    Token('{"a":1,"a":1}'),
    Token("[" * 50 + "]" * 50),
    Token("[" * 100_000),
]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in the tree."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


def written(node: Any, twice: tuple[int, Any] | None) -> str:
    """JSON in which the key `twice` (of the object with that id) is written two times."""
    if isinstance(node, Token):
        return str(node)
    if isinstance(node, dict):
        pairs = [f"{json.dumps(key)}: {written(value, twice)}" for key, value in node.items()]
        if twice is not None and twice[0] == id(node) and twice[1] in node:
            pairs.append(f"{json.dumps(twice[1])}: {written(node[twice[1]], None)}")
        return "{" + ", ".join(pairs) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(written(value, twice) for value in node) + "]"
    return json.dumps(node)


def hostile() -> st.SearchStrategy[Any]:
    """A copy, since a later mutation may change what is inside."""
    return st.sampled_from(HOSTILE).map(copy.deepcopy)


@st.composite
def mutations(draw: st.DrawFn, original: Any) -> bytes:
    """A manifest with one to three fields dropped, replaced, repeated, added or exchanged."""
    tree = json.loads(json.dumps(original))
    twice = None
    for _ in range(draw(st.integers(1, 3))):
        node, key = draw(st.sampled_from(list(places(tree))))
        kind = draw(st.sampled_from(("drop", "replace", "replace", "repeat", "add", "exchange")))
        if kind == "drop":
            del node[key]
        elif kind == "replace":
            node[key] = draw(hostile())
        elif kind == "exchange":
            other, there = draw(st.sampled_from(list(places(original))))
            node[key] = json.loads(json.dumps(other[there]))
        elif isinstance(node, list):
            node.insert(draw(st.integers(0, len(node))), draw(hostile()))
        elif kind == "add":
            node[draw(st.text(max_size=5))] = draw(hostile())
        else:
            twice = (id(node), key)
    return written(tree, twice).encode("utf-8", "surrogatepass")


def judge(data: bytes, folder: Path) -> bool:
    """Whether the manifest is taken; then everything that reads one must work with it."""
    try:
        read = manifest.decode(data)
    except BundleError:
        return False
    assert manifest.decode(manifest.encode(read)) == read
    inputs = manifest.stage_inputs(read.stages)
    assert 0 <= manifest.last_network(inputs) < len(inputs)
    for name, certificate in read.certificates.items():
        assert all(certificate_in_words(certificate)), name
        assert certificate.confidence is None or 0 < certificate.confidence <= 1
    with contextlib.suppress(TargetError):
        choose_target(read)
    (folder / bundle.MANIFEST).write_bytes(data)
    seal(folder)
    try:
        opened = Bundle.open(folder)
    except BundleError:
        return False
    for target in opened.manifest.targets.values():
        assert set(bundle.engine_files(target)) <= opened.hashes.keys()
    return True


@MANY
@given(st.data())
def test_changed_manifest_is_refused_or_works(sample: Sample, data: st.DataObject) -> None:
    original = json.loads(manifest.encode(sample.manifest))
    started = time.monotonic()
    judge(data.draw(mutations(original)), sample.path)
    assert time.monotonic() - started < 20, "as good as hung"


@MANY
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@example(b"{}")
@example(b'{"format": "cascade-edge.bundle", "format_version": "1.0"}')
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        manifest.decode(data)


def test_manifest_as_it_is_written_is_taken(sample: Sample) -> None:
    """Or the fuzz tests above would hold for a reader that refuses everything."""
    assert judge(manifest.encode(sample.manifest), sample.path)
    tree = json.loads(manifest.encode(sample.manifest))
    tree["made_by"]["machine"] = "another"
    tree["later"] = {"field": [1]}
    assert judge(json.dumps(tree).encode(), sample.path)


# --- folders


def test_link_to_a_folder_and_pipe_in_a_folder_are_refused(sample: Sample, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "stage0.onnx").write_bytes(b"x")
    (sample.path / "targets" / "more").symlink_to(outside)
    with pytest.raises(BundleError, match="targets/more: is a link"):
        Bundle.open(sample.path)
    (sample.path / "targets" / "more").unlink()
    os.mkfifo(sample.path / "targets" / "pipe")
    with pytest.raises(BundleError, match="targets/pipe: neither a file nor a folder"):
        Bundle.open(sample.path)


@pytest.mark.parametrize("name", ["SHA256SUMS", "manifest.json", "golden.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_file_of_the_format_that_is_something_else_is_refused(
    sample: Sample, name: str, kind: str, tmp_path: Path
) -> None:
    path = sample.path / name
    path.rename(tmp_path / "real")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "real")
    with pytest.raises(BundleError, match=name):
        Bundle.open(sample.path)


def test_pipe_put_in_place_of_a_file_after_listing_is_not_waited_for(sample: Sample) -> None:
    opened = Bundle.open(sample.path)
    (sample.path / "report.html").unlink()
    os.mkfifo(sample.path / "report.html")
    with pytest.raises(BundleError, match=r"report\.html: is no file any more"):
        opened.read("report.html")


@pytest.mark.parametrize("name", ["a\\b", "ä", "a b", ".hidden", "-x", "\udcff", "a\nb"])
def test_odd_names_in_a_folder_are_refused(sample: Sample, name: str) -> None:
    (sample.path / name).write_bytes(b"")
    with pytest.raises(BundleError, match="a name that a bundle cannot hold"):
        Bundle.open(sample.path)
