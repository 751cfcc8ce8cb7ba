"""The native bundle reader, asked beside the Python one: wherever they judge differently, it fails.

In: the command `bundle_probe`. Out: `Probe`, which asks it about files. As a pytest plugin, that is
`-p native_shadow` with `CASCADE_NATIVE_PROBE` naming the command, it asks the native reader every
question that a test asks the Python one, so that each attack in these tests is tried on both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cascade_runtime import bundle, golden, manifest, strict_json
from cascade_runtime.engines import onnx_external, onnxruntime
from cascade_runtime.errors import BundleError, TargetError
from cascade_runtime.manifest import Manifest

STATUS = {BundleError: 3, TargetError: 4}


class Probe:
    """One process of `bundle_probe`, asked many questions."""

    def __init__(self, command: Path, folder: Path) -> None:
        self.scratch = folder / "question"
        self._process = subprocess.Popen(
            [command, "--stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str, path: str | os.PathLike[str], *more: object) -> dict[str, Any]:
        """`{"status": 0, "value": …}` or `{"status": …, "message": …}`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        question = "\t".join((what, os.fspath(path), *map(str, more)))
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"bundle_probe died of: {question}"
        found: dict[str, Any] = json.loads(line)
        return found

    def ask_bytes(self, what: str, data: bytes, *more: object) -> dict[str, Any]:
        self.scratch.write_bytes(data)
        return self.ask(what, self.scratch, *more)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0, "a sanitizer found something"


def as_native(read: Manifest) -> Any:
    """The manifest as the native reader keeps it: without `search`, decisions as float32."""
    tree = msgspec.to_builtins(read)
    del tree["search"]
    for decision in tree["decision"].values():
        for rule in (decision, *decision["exits"], decision["accept"] or {}):
            for key, value in rule.items():
                if isinstance(value, float | int):
                    rule[key] = float(np.float32(value))
    return json.loads(json.dumps(tree))


def expect_same_manifest(read: Manifest, answer: dict[str, Any]) -> None:
    """Every field, and the text that each binding is the hash of."""
    value = answer["value"]
    assert value["manifest"] == as_native(read)
    inputs = manifest.stage_inputs(read.stages)
    assert value["bindings"].keys() == read.targets.keys()
    for name, text in value["bindings"].items():
        engines = read.certificates[name].engines
        expected = manifest.binding(read.preprocess, read.decision[name], engines, inputs)
        assert hashlib.sha256(text.encode()).hexdigest() == expected


def expect_same_bundle(opened: bundle.Bundle, answer: dict[str, Any]) -> None:
    expect_same_manifest(opened.manifest, answer)
    value = answer["value"]
    assert value["hashes"] == opened.hashes
    assert (value["signed"], value["signer"]) == (opened.signed, opened.signer)


def both(
    python: Callable[[], Any],
    native: Callable[[], dict[str, Any]],
    same: Callable[[Any, dict[str, Any]], None],
    *,
    same_name: bool = True,
) -> Any:
    """What Python answers, or raises; the native reader must answer, or refuse, alike.

    same_name: a refusal must name the same file. Of an archive with several faults it need not.
    """
    answer = native()
    try:
        found = python()
    except (BundleError, TargetError) as error:
        assert answer["status"] == STATUS[type(error)], f"native: {answer}; Python: {error}"
        said, told = (text.split(":")[0] for text in (answer["message"], str(error)))
        quoted = told.startswith("'")  # a strange name, which each of them shows in its own way
        named = said == told or quoted or not same_name
        assert named, f"{answer['message']!r}, Python says {error}"
        raise
    assert answer["status"] == 0, f"native refuses: {answer['message']}"
    same(found, answer)
    return found


def judge(
    python: Callable[[], Any],
    native: Callable[[], dict[str, Any]],
    same: Callable[[Any, dict[str, Any]], None] = lambda found, answer: None,
    *,
    same_name: bool = True,
) -> None:
    """That both answer alike, or refuse."""
    with contextlib.suppress(BundleError, TargetError):
        both(python, native, same, same_name=same_name)


def pytest_configure(config: pytest.Config) -> None:
    if "CASCADE_NATIVE_PROBE" in os.environ:
        folder = tempfile.TemporaryDirectory()
        probe = Probe(Path(os.environ["CASCADE_NATIVE_PROBE"]), Path(folder.name))
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(probe.close)
        _shadow(probe)


def _shadow(probe: Probe) -> None:
    """Put `both` in place of the Python reader's entries, before a test imports them."""
    opens = bundle.Bundle.open

    def open_both(cls: Any, path: Any, *, public_key: Any = None) -> Any:
        key = () if public_key is None else (public_key,)
        return both(
            lambda: opens(path, public_key=public_key),
            lambda: probe.ask("open", path, *key),
            expect_same_bundle,
            same_name=Path(path).suffix != ".zip",
        )

    bundle.Bundle.open = classmethod(open_both)  # type: ignore[method-assign,assignment]

    def shadow(module: Any, name: str, what: str, same: Callable[[Any, Any], None]) -> None:
        reads = getattr(module, name)

        @functools.wraps(reads)
        def read_both(data: bytes, *more: Any) -> Any:
            return both(lambda: reads(data, *more), lambda: probe.ask_bytes(what, data), same)

        setattr(module, name, read_both)

    def same_value(found: Any, answer: dict[str, Any]) -> None:
        assert answer["value"] == found

    shadow(manifest, "decode", "manifest", expect_same_manifest)
    shadow(bundle, "parse_sums", "sums", same_value)
    shadow(golden, "read_safetensors", "safetensors", _same_tensors)
    reads = strict_json.parse

    def parse_both(data: bytes, name: str) -> Any:
        if name != "file":  # a part of something that is asked as a whole
            return reads(data, name)
        return both(lambda: reads(data, name), lambda: probe.ask_bytes("json", data), _same_length)

    strict_json.parse = parse_both
    checks = onnx_external.check_external_data

    def check_both(data: bytes, main: str, allowed: Any) -> None:
        question = ("onnx", data, main, *sorted(allowed))
        return both(
            lambda: checks(data, main, allowed),
            lambda: probe.ask_bytes(*question),
            lambda found, answer: None,
        )

    onnxruntime.check_external_data = check_both  # type: ignore[attr-defined]


def _same_length(found: Any, answer: dict[str, Any]) -> None:
    assert answer["value"] == len(found)


def _same_tensors(found: golden.Tensors, answer: dict[str, Any]) -> None:
    kinds = {"float32": "F32", "uint8": "U8", "int8": "I8"}
    expected = {
        name: [kinds[str(t.dtype)], list(t.shape), hashlib.sha256(t.tobytes()).hexdigest()]
        for name, t in found.items()
    }
    assert answer["value"] == expected
