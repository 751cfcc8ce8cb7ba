"""What people do with a finished bundle: inspect, verify, sign, compare; and ask the machine."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascade_compile import doctor, targets
from cascade_runtime import engines
from cascade_runtime.bundle import GOLDEN, MANIFEST, SIGNATURE, Bundle, pack, seal
from cascade_runtime.cascade import Cascade
from cascade_runtime.golden import read_safetensors
from cascade_runtime.manifest import binding, encode

Command = Callable[..., tuple[int, str, str]]
ONNX = "onnxruntime/fp32/cpu"
VERBS = ("inspect", "verify", "diff", "keygen", "sign", "doctor")


@pytest.fixture
def copy(made, tmp_path: Path) -> Path:
    """The bundle, to be changed."""
    return Path(shutil.copytree(made.path, tmp_path / "squares.cascade"))


@pytest.fixture
def keys(tmp_path: Path, command: Command) -> tuple[Path, Path, str]:
    """Private file, public file, fingerprint."""
    status, said, _ = command("keygen", tmp_path / "release", "--json")
    assert status == 0
    found = json.loads(said)
    return Path(found["private"]), Path(found["public"]), found["key"]


def as_json(command: Command, *args: object, status: int = 0) -> Any:
    ended, said, err = command(*args, "--json")
    assert ended == status, err
    assert len(said.splitlines()) == 1, "one object and nothing else"
    return json.loads(said)


# --- inspect


def test_inspect_shows_what_is_inside(made, command: Command) -> None:
    status, said, _ = command("inspect", made.path)
    assert status == 0
    for words in ("no square or square", "stage0", "stage1", *made.manifest.targets, "none"):
        assert words in said
    assert said.count("CERTIFIED: Of the images") == 2
    assert "auto: " in said and " is the fastest" in said


def test_inspect_as_json_holds_every_file_and_the_manifest(made, command: Command) -> None:
    found = as_json(command, "inspect", made.path)
    opened = Bundle.open(made.path)
    assert {path: file["sha256"] for path, file in found["files"].items()} == opened.hashes
    for path, file in found["files"].items():
        assert file["bytes"] == (made.path / path).stat().st_size
    assert found["bytes"] == sum(file["bytes"] for file in found["files"].values())
    assert found["manifest"] == json.loads(encode(made.manifest))
    assert found["signature"] == {"present": False, "signer": None}
    assert found["here"]["auto"] in found["targets"]
    for name, target in found["targets"].items():
        folder = made.path / "targets" / name.replace("/", "-")
        assert target["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        assert target["runs_here"] is True and target["status"] == "CERTIFIED"


def test_inspect_says_why_a_target_cannot_run_here(
    made, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "unavailable", lambda target: f"no {target.backend} here")
    found = as_json(command, "inspect", made.path)
    assert found["here"]["auto"] is None and "no target" in found["here"]["why"]
    assert found["targets"][ONNX]["why_not"] == "no onnxruntime here"
    assert command("inspect", made.path)[1].count("no: no") == 2


def test_inspect_of_a_damaged_bundle_is_status_3(copy: Path, command: Command) -> None:
    (copy / "report.html").write_text("forged")
    status, said, err = command("inspect", copy)
    assert (status, said) == (3, "") and err.startswith("error: report.html: SHA-256")


# --- verify


def test_verify_checks_all_and_says_what_it_did_not(made, command: Command) -> None:
    found = as_json(command, "verify", made.path, "--threads", 1)
    assert (found["valid"], found["ok"]) == (True, True)
    outcomes = {check["what"]: check["outcome"] for check in found["checks"]}
    golden = {f"golden vectors of {name}": "passed" for name in made.manifest.targets}
    sealed = {"files": "passed", "certificates": "passed"}
    assert outcomes == {"signature": "not checked", **sealed, **golden}
    assert next(iter(outcomes)) == "signature", "in the order in which they are made"
    status, said, _ = command("verify", made.path, "--threads", 1)
    assert status == 0 and "there is none" in said
    assert said.splitlines()[-1] == "valid: 5 checks, 1 of them could not be made"


def test_verify_of_a_tampered_bundle_is_status_3_and_names_the_file(
    copy: Path, command: Command
) -> None:
    (copy / "report.html").write_text("forged")
    found = as_json(command, "verify", copy, status=3)
    assert found["valid"] is False and found["error"].startswith("report.html: SHA-256")
    status, said, err = command("verify", copy)
    assert (status, said) == (3, "") and err.startswith("error: report.html")


def test_verify_of_golden_vectors_that_contradict_themselves_is_status_3(
    copy: Path, command: Command
) -> None:
    from safetensors.numpy import save_file

    tensors = dict(read_safetensors((copy / GOLDEN).read_bytes(), GOLDEN))
    label = tensors[f"{ONNX}/label"].copy()
    label[0] = 1 - max(label[0], 0)
    save_file({**tensors, f"{ONNX}/label": label}, copy / GOLDEN)
    seal(copy)
    found = as_json(command, "verify", copy, status=3)
    assert "do not decide as recorded" in found["error"]


def test_verify_of_a_machine_that_answers_otherwise_is_status_4(
    copy: Path, command: Command
) -> None:
    from safetensors.numpy import save_file

    tensors = dict(read_safetensors((copy / GOLDEN).read_bytes(), GOLDEN))
    save_file({**tensors, "images": 255 - tensors["images"]}, copy / GOLDEN)
    seal(copy)
    found = as_json(command, "verify", copy, "--target", ONNX, "--threads", 1, status=4)
    assert (found["valid"], found["ok"]) == (True, False)
    assert found["checks"][-1]["outcome"] == "failed"
    assert "does not run the certified cascade" in found["checks"][-1]["why"]
    status, said, _ = command("verify", copy, "--threads", 1)
    assert status == 4 and said.splitlines()[-1].startswith("FAILED: ")


def test_verify_passes_over_what_cannot_run_unless_it_was_asked_for(
    made, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "unavailable", lambda _: "no such processor")
    found = as_json(command, "verify", made.path)
    assert {c["outcome"] for c in found["checks"] if c["target"]} == {"not checked"}
    assert "no such processor" in found["checks"][-1]["why"]
    found = as_json(command, "verify", made.path, "--target", ONNX, status=4)
    assert found["checks"][-1]["outcome"] == "failed"
    status, _, err = command("verify", made.path, "--target", "tensorrt/fp16/sm87")
    assert status == 4 and "is not in this bundle" in err


# --- keygen, sign


def test_signed_bundle_is_verified_with_its_key_and_with_no_other(
    copy: Path, keys: tuple[Path, Path, str], command: Command, tmp_path: Path
) -> None:
    private, public, fingerprint = keys
    assert as_json(command, "verify", copy, "--public-key", public, status=3)["error"].startswith(
        "SHA256SUMS.sig: missing"
    )
    assert as_json(command, "sign", copy, "--key", private)["key"] == fingerprint
    found = as_json(command, "verify", copy, "--public-key", public, "--threads", 1)
    assert found["checks"][0]["outcome"] == "passed" and fingerprint in found["checks"][0]["why"]
    for verb in ("inspect", "verify"):
        assert fingerprint in command(verb, copy, "--public-key", public)[1].replace("\n", "")
    assert "give --public-key" in command("inspect", copy)[1]
    command("keygen", tmp_path / "other")
    status, _, err = command("inspect", copy, "--public-key", tmp_path / "other.pub")
    assert status == 3 and err.startswith("error: SHA256SUMS.sig: not made by the key")


def test_zip_is_signed_in_place(
    made, keys: tuple[Path, Path, str], command: Command, tmp_path: Path
) -> None:
    packed = tmp_path / "squares.zip"
    pack(made.path, packed)
    private, public, fingerprint = keys
    status, said, _ = command("sign", packed, "--key", private)
    assert status == 0 and said == f"{packed} is signed by {fingerprint}\n"
    assert Bundle.open(packed, public_key=public).hashes == Bundle.open(made.path).hashes


def test_key_is_never_overwritten_and_a_public_one_does_not_sign(
    copy: Path, keys: tuple[Path, Path, str], command: Command
) -> None:
    private, public, _ = keys
    status, _, err = command("keygen", private)
    assert status == 1 and "a key is never overwritten" in err
    status, _, err = command("sign", copy, "--key", public)
    assert status == 1 and "that is the public key" in err
    assert not (copy / SIGNATURE).exists()


# --- diff


def test_bundle_does_not_differ_from_itself_in_another_form(
    made, command: Command, tmp_path: Path
) -> None:
    pack(made.path, tmp_path / "x.zip")
    found = as_json(command, "diff", made.path, tmp_path / "x.zip")
    assert found["same_files"] is True and found["fields"] == []
    assert "has the same bytes" in command("diff", made.path, tmp_path / "x.zip")[1]


def never_answering(folder: Path) -> None:
    """Every threshold of the ONNX target shut: it then defers every image."""
    manifest = Bundle.open(folder).manifest
    replace = msgspec.structs.replace
    decision = manifest.decision[ONNX]
    shut = tuple(replace(rule, tau_logit=None) for rule in decision.exits)
    decision = replace(decision, exits=shut)
    certificate = manifest.certificates[ONNX]
    bound = binding(
        manifest.preprocess, decision, certificate.engines, [s.input for s in manifest.stages]
    )
    changed = replace(
        manifest,
        decision=manifest.decision | {ONNX: decision},
        certificates=manifest.certificates | {ONNX: replace(certificate, binding=bound)},
    )
    (folder / MANIFEST).write_bytes(encode(changed))
    seal(folder)


def test_diff_names_changed_thresholds_and_the_images_they_change(
    made, trained, copy: Path, command: Command
) -> None:
    never_answering(copy)
    pair = (f"{made.path}#{ONNX}", f"{copy}#{ONNX}")
    options = ("--data", trained.run / "splits.json", "--split", "val_test", "--threads", 1)
    found = as_json(command, "diff", *pair, *options)
    names = {field["name"] for field in found["fields"]}
    taus = {f"decision.{ONNX}.exits[{stage}].tau_logit" for stage in (0, 1)}
    assert names <= taus | {f"certificates.{ONNX}.binding"} and names & taus
    decisions = found["decisions"]
    cascade = Cascade.open(made.path, ONNX, threads=1, warm_up=False)
    files = [Path(file["file"]) for file in decisions["files"]]
    assert all(result.decision is not None for result in cascade.classify(files))
    assert decisions["counts"]["second defers"] == len(files) > 0
    assert decisions["counts"]["alike"] == decisions["images"] - len(files)
    assert files == sorted(files)
    said = command("diff", *pair, *options)[1]
    assert f"{len(files)} of {decisions['images']} images are decided differently" in said
    assert "below threshold" in said


def test_diff_shows_an_image_that_two_bundles_answer_otherwise_first(
    made, trained, copy: Path, command: Command
) -> None:
    """The same bundle with its class names exchanged: whatever it acts on is another answer."""
    manifest = Bundle.open(copy).manifest
    model = msgspec.structs.replace(manifest.model, classes=manifest.model.classes[::-1])
    (copy / MANIFEST).write_bytes(encode(msgspec.structs.replace(manifest, model=model)))
    seal(copy)
    photos = trained.run.parent / "my images"
    found = as_json(command, "diff", made.path, copy, "--data", photos, "--threads", 1)
    counts = found["decisions"]["counts"]
    assert counts["other class"] > 0 and counts["first defers"] == counts["second defers"] == 0
    assert [field["name"] for field in found["fields"]] == ["model.classes"]
    first = found["decisions"]["files"][0]
    assert {first["first"], first["second"]} == {"no square", "square"}


def test_split_without_data_and_of_a_folder_is_refused(made, trained, command: Command) -> None:
    assert command("diff", made.path, made.path, "--split", "val_test")[0] == 2
    photos = trained.run.parent / "my images"
    options = ("--data", photos, "--split", "val_test")
    status, _, err = command("diff", made.path, made.path, *options)
    assert status == 1 and "is about a splits.json" in err


# --- doctor, and what all of them share


def test_doctor_lists_every_target_and_what_this_machine_is(command: Command) -> None:
    found = as_json(command, "doctor")
    listed = {target["target"]: target for target in found["targets"]}
    assert set(map(str, targets.every_target())) <= set(listed)
    assert listed[ONNX] == {"target": ONNX, "cannot_build": None, "cannot_run": None}
    assert found["pieces"]["onnx"] and found["machine"]
    for name, install in found["missing"].items():
        assert found["pieces"][name] is None and install.startswith("pip install")
    status, said, _ = command("doctor")
    assert status == 0 and ONNX in said and "can be built and certified here" in said


def test_doctor_names_the_install_line_of_a_missing_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = ("openvino", "cryptography")

    def found(name: str, *rest: Any) -> Any:
        return None if name in missing else find(name, *rest)

    monkeypatch.setattr(doctor, "find_spec", found)
    monkeypatch.setattr(engines.backend("openvino"), "find_spec", found)
    diagnosis = doctor.diagnose()
    assert diagnosis.missing["cryptography"] == "pip install 'cascade-edge[sign]'"
    able = {ability.target: ability for ability in diagnosis.targets}
    fix = "openvino is not installed; pip install openvino"
    assert (able["openvino/fp32/cpu"].cannot_build, able["openvino/fp32/cpu"].cannot_run) == (
        fix,
        fix,
    )
    assert able[ONNX].cannot_build is None


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from cascade_compile.cli import cli\n"
        f"cli(['{verb}', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'openvino', 'numpy', 'rich', 'cryptography'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_inspecting_verifying_signing_and_comparing_need_no_torch(
    copy: Path, tmp_path: Path
) -> None:
    script = """
import sys
for name in ("torch", "transformers", "peft", "onnx", "cascade_compile.build_target"):
    sys.modules[name] = None
from cascade_compile.cli import cli
bundle, key = sys.argv[1:]
for arguments in (
    ["keygen", key],
    ["sign", bundle, "--key", key],
    ["inspect", bundle, "--public-key", f"{key}.pub"],
    ["verify", bundle, "--public-key", f"{key}.pub", "--threads", "1"],
    ["diff", bundle, bundle],
    ["doctor"],
):
    cli(arguments, standalone_mode=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, copy, tmp_path / "key"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_bundle_and_targets_give_one_object(
    trained, command: Command, no_export: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.cascade"
    options = ("--target", ONNX, "--alpha", "0.2", "--coverage", "0.5", "--threads", 1)
    found = as_json(command, "bundle", trained.run, "--out", out, *options)
    assert found["bundle"] == str(out)
    assert found["targets"][ONNX]["status"] == "CERTIFIED"
    assert found["targets"][ONNX]["outcome"].startswith("CERTIFIED at alpha 20 %")
    assert as_json(command, "targets")["targets"][ONNX] is None
