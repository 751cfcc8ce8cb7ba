"""The native bundle reader judges every bundle as the Python one does, attacks included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cascade_runtime import manifest
from cascade_runtime.bundle import GOLDEN, SUMS, Bundle, pack, seal, sign
from cascade_runtime.container import MAX_DIRECTORY_BYTES, MAX_FILES
from cascade_runtime.engines.onnx_external import check_external_data
from cascade_runtime.errors import BundleError
from cascade_runtime.golden import load_golden, read_safetensors

from .conftest import SIDE, Sample
from .native_build import native_folder
from .native_shadow import Probe, expect_same_bundle, expect_same_manifest, judge
from .test_engines import external_tensor, hidden_tensor
from .test_hardening import mutations
from .test_hostile_zip import patched
from .test_signature import Keys

ROOT = Path(__file__).parents[2]
ATTACKS = [
    *("test_bundle.py", "test_hardening.py", "test_hostile_zip.py"),
    *("test_signature.py", "test_manifest.py", "test_golden.py", "test_engines.py"),
]
# These change a constant or a function of the Python reader, which the native one cannot know.
NOT_SHADOWED = (
    "test_wide_bundle_is_refused_early or test_list_beyond_the_limit_is_refused "
    "or test_directory_beyond_its_limit_is_refused_unread "
    "or test_manifest_beyond_its_limit_is_refused_unread"
)
THOUSANDS = settings(
    max_examples=int(os.environ.get("CASCADE_NATIVE_EXAMPLES", "500")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking asks both readers for minutes
)


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder where the native tests are built."""
    return native_folder()


def built(build: Path, name: str) -> Path:
    found = next((path for path in build.rglob(name) if os.access(path, os.X_OK)), None)
    if found is None:
        pytest.skip(f"{name} is not built in {build}")
    return found


@pytest.fixture(scope="session")
def probe(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    made = Probe(built(build, "bundle_probe"), tmp_path_factory.mktemp("probe"))
    yield made
    made.close()


def test_the_readers_own_tests_pass(build: Path) -> None:
    done = subprocess.run([built(build, "bundle_test")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_attack_on_the_python_reader_is_judged_alike(build: Path) -> None:
    """These test modules again, each question of theirs being asked of both readers."""
    here = Path(__file__).parent
    paths = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
    plugins = ("-p", "native_shadow", "-p", "no:cacheprovider", "-p", "no:xdist")
    modules = [here / name for name in ATTACKS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", *plugins, "-k", f"not ({NOT_SHADOWED})", *modules],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "CASCADE_NATIVE_PROBE": str(built(build, "bundle_probe")),
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_command_prints_a_bundle_and_ends_with_the_status(sample: Sample, build: Path) -> None:
    command = built(build, "bundle_probe")
    done = subprocess.run([command, sample.path], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["value"]["manifest"]["model"]["name"] == "two-stage"
    (sample.path / "report.html").write_text("forged")
    done = subprocess.run([command, sample.path], capture_output=True, text=True)
    assert done.returncode == 3
    assert json.loads(done.stdout)["message"].startswith("report.html: SHA-256 is ")


@pytest.fixture(params=["folder", "zip"])
def place(sample: Sample, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "folder":
        return sample.path
    pack(sample.path, tmp_path / "a.zip")
    return tmp_path / "a.zip"


def test_bundle_is_read_alike_in_both_forms(place: Path, probe: Probe) -> None:
    expect_same_bundle(Bundle.open(place), probe.ask("open", place))


def test_signed_bundle_names_the_same_signer(place: Path, probe: Probe, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    sign(place, keys.private)
    opened = Bundle.open(place, public_key=keys.public)
    answer = probe.ask("open", place, keys.public)
    expect_same_bundle(opened, answer)
    assert answer["value"]["signer"] == keys.fingerprint


def test_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(
    sample: Sample, probe: Probe, tmp_path: Path
) -> None:
    keys = Keys(tmp_path)
    sign(sample.path, keys.private)
    lines = keys.public.read_text().splitlines()
    dek = ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF", ""]
    keys.public.write_text("\n".join([lines[0], *dek, *lines[1:]]) + "\n")
    answer = probe.ask("open", sample.path, keys.public)
    assert answer["status"] == 3
    assert "not a public key in PEM" in answer["message"]


def test_limits_of_a_container_are_those_of_the_specification(probe: Probe, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for index in range(MAX_FILES):
        (wide / str(index)).touch()
    assert "SHA256SUMS: missing" in probe.ask("open", wide)["message"]
    (wide / "one-more").touch()
    assert "10001 files, the limit is 10000" in probe.ask("open", wide)["message"]


@pytest.mark.parametrize("name", [SUMS, "manifest.json"])
def test_text_beyond_16_mib_is_refused_unread(sample: Sample, probe: Probe, name: str) -> None:
    with (sample.path / name).open("ab") as file:
        file.truncate((16 << 20) + 1)
    if name != SUMS:
        seal(sample.path)
    message = probe.ask("open", sample.path)["message"]
    assert f"{name}: 16777217 bytes, the limit is 16777216" in message


def test_directory_of_a_zip_beyond_4_mib_is_refused_unread(probe: Probe, tmp_path: Path) -> None:
    comment = b"x" * 60_000
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index in range(MAX_DIRECTORY_BYTES // len(comment) + 1):
            member = zipfile.ZipInfo(str(index))
            member.comment = comment
            archive.writestr(member, b"")
    said = "its directory is over 4194304 bytes long"
    with pytest.raises(BundleError, match=said):
        Bundle.open(tmp_path / "a.zip")
    assert said in probe.ask("open", tmp_path / "a.zip")["message"]


def zip64(data: bytes) -> bytes:
    """The same archive with the zip64 records that one beyond 4 GiB has."""
    end = data.rindex(b"PK\5\6")
    size, offset = (int.from_bytes(data[end + at : end + at + 4], "little") for at in (12, 16))
    count = int.from_bytes(data[end + 10 : end + 12], "little")
    record = b"PK\6\6" + (44).to_bytes(8, "little") + (45).to_bytes(2, "little") * 2 + bytes(8)
    record += b"".join(value.to_bytes(8, "little") for value in (count, count, size, offset))
    locator = b"PK\6\7" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little")
    return data[:end] + record + locator + patched(data[end:], 8, b"\xff" * 12)


def test_zip_of_another_shape_that_python_reads_is_read(
    sample: Sample, probe: Probe, tmp_path: Path
) -> None:
    """With bytes in front, with a comment, with zip64 records."""
    path = tmp_path / "a.zip"
    pack(sample.path, path)
    whole = path.read_bytes()
    end = whole.rindex(b"PK\5\6")
    comment = patched(whole, end + 20, b"\5\0") + b"hello"
    for data in (b"#!/bin/sh\n" + whole, comment, zip64(whole), b"front" + zip64(whole)):
        path.write_bytes(data)
        expect_same_bundle(Bundle.open(path), probe.ask("open", path))


def test_golden_vectors_are_the_same_numbers(template: Sample, probe: Probe) -> None:
    data = (template.path / GOLDEN).read_bytes()
    read = load_golden(data, template.manifest.preprocess)
    value = probe.ask_bytes("golden", data, SIDE, SIDE)["value"]
    assert value["count"] == len(read.images) and value["images"] == read.images.size
    assert value["targets"].keys() == read.exits.keys()
    for name, found in value["targets"].items():
        exits = read.exits[name]
        logits, gate = (np.stack([getattr(e, k) for e in exits]) for k in ("logits", "gate"))
        assert found["stages"] == len(exits)
        assert np.array_equal(np.array(found["logits"], np.float32), logits.ravel())
        assert np.array_equal(np.array(found["gate"], np.float32), gate.ravel())
        assert found["label"] == read.label[name].tolist()
        assert found["stage"] == read.stage[name].tolist()
    assert "expected U8 [any, 8, 9, 3]" in probe.ask_bytes("golden", data, SIDE, 9)["message"]


@THOUSANDS
@given(st.data())
def test_changed_manifest_is_judged_alike(
    template: Sample, probe: Probe, data: st.DataObject
) -> None:
    changed = data.draw(mutations(json.loads(manifest.encode(template.manifest))))
    judge(
        lambda: manifest.decode(changed),
        lambda: probe.ask_bytes("manifest", changed),
        expect_same_manifest,
    )


@pytest.fixture(scope="module")
def packed(template: Sample, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "whole.zip"
    pack(template.path, path)
    return path.read_bytes()


@THOUSANDS
@given(st.data())
def test_changed_zip_is_judged_alike(packed: bytes, probe: Probe, data: st.DataObject) -> None:
    """Mostly in headers and the directory, so that what is refused there is what is tried."""
    whole = zip64(packed) if data.draw(st.booleans()) else packed
    marks = [at for at in range(len(whole)) if whole[at : at + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(marks)) + data.draw(st.integers(0, 60))
        values = st.binary(max_size=8) | st.sampled_from((b"\xff" * 4, b"\0" * 4, b"PK\5\6"))
        value = data.draw(values)
        removed = data.draw(st.sampled_from((len(value), len(value), 0, 3)))
        whole = whole[:at] + value + whole[at + removed :]
    path = probe.scratch.with_suffix(".zip")
    path.write_bytes(whole)
    judge(
        lambda: Bundle.open(path),
        lambda: probe.ask("open", path),
        expect_same_bundle,
        same_name=False,
    )


@THOUSANDS
@given(st.data())
def test_changed_golden_file_is_judged_alike(
    template: Sample, probe: Probe, data: st.DataObject
) -> None:
    whole = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.uint8)})
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole)))
        values = st.binary(max_size=3) | st.sampled_from((b"0", b"[", b"1e3", b'"', b"-1"))
        value = data.draw(values)
        whole = whole[:at] + value + whole[at + data.draw(st.integers(0, 3)) :]

    def same(found: Any, answer: dict[str, Any]) -> None:
        assert {n: list(t.shape) for n, t in found.items()} == {
            name: shape for name, (_, shape, _) in answer["value"].items()
        }

    judge(
        lambda: read_safetensors(whole, "vectors"),
        lambda: probe.ask_bytes("safetensors", whole),
        same,
    )


@THOUSANDS
@given(st.data())
def test_changed_onnx_file_is_walked_alike(probe: Probe, data: st.DataObject) -> None:
    where = data.draw(st.sampled_from(("initializer", "constant", "subgraph", "function")))
    whole = hidden_tensor(where, external_tensor("stage0.data")).SerializeToString()
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(whole)))
        whole = whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + 2 :]
    judge(
        lambda: check_external_data(whole, "main.onnx", ["stage0.data"]),
        lambda: probe.ask_bytes("onnx", whole, "main.onnx", "stage0.data"),
    )
