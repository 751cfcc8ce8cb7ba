"""A bundle is whole, true and sealed, or it is not there."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade_calib import publish as publishing
from cascade_compile import build_target
from cascade_compile.build_target import ParityError
from cascade_compile.bundle import BundleRequest, build
from cascade_compile.ledger import LEDGER
from cascade_runtime.bundle import GOLDEN, Bundle, pack, seal
from cascade_runtime.cascade import Cascade
from cascade_runtime.decision import decide
from cascade_runtime.engines import backend
from cascade_runtime.errors import BundleError, CascadeError, ConfigError, DataError, TargetError
from cascade_runtime.golden import load_golden
from cascade_runtime.manifest import Manifest

RequestFor = Callable[..., BundleRequest]
ONNX = "onnxruntime/fp32/cpu"


def quietly(request: BundleRequest) -> Manifest:
    return build(request, say=lambda line: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def beside(out: Path) -> list[str]:
    """What lies where the bundle is written, hidden things too."""
    return sorted(path.name for path in out.parent.iterdir())


def test_finished_bundle_opens_and_holds_what_the_design_lists(made) -> None:
    opened = Bundle.open(made.path)
    assert opened.manifest == made.manifest
    folders = {name.replace("/", "-") for name in made.manifest.targets}
    assert {path.name for path in made.path.iterdir()} == {
        "manifest.json",
        "targets",
        GOLDEN,
        "report.html",
        "SHA256SUMS",
    }
    assert {path.name for path in (made.path / "targets").iterdir()} == folders
    assert beside(made.path) == [made.path.name]  # no hidden rest
    modes = {path.stat().st_mode & 0o777 for path in made.path.rglob("*") if path.is_file()}
    assert len(modes) == 1  # who may read one file of it may read it all


def test_seal_is_what_sha256sum_checks(made) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"],
        cwd=made.path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_both_targets_are_certified_on_their_own_engines(made) -> None:
    assert len(made.manifest.targets) == 2
    for name, certificate in made.manifest.certificates.items():
        assert certificate.status == "CERTIFIED"
        assert certificate.claims == 2
        for path, digest in certificate.engines.items():
            assert name.replace("/", "-") in path
            assert hashlib.sha256((made.path / path).read_bytes()).hexdigest() == digest


def test_openvino_is_certified_in_bfloat16_where_this_machine_has_it(made) -> None:
    reason = backend("openvino").unavailable("bf16", "cpu")
    if reason is not None:
        pytest.skip(reason)
    assert made.manifest.certificates["openvino/bf16/cpu"].status == "CERTIFIED"


def test_certificate_counts_are_those_of_the_shipped_cascade(made, trained) -> None:
    for target, certificate in made.manifest.certificates.items():
        cascade = Cascade.open(made.path, target, threads=1, warm_up=False)
        verdict = cascade.stages.forward(trained.calib.pixels, cascade.decision)
        acted = verdict.label >= 0
        wrong = acted & (verdict.label != trained.calib.labels)
        assert (certificate.n, certificate.accepted) == (len(acted), acted.sum())
        assert certificate.errors == wrong.sum()
        by_stage = [int((acted & (verdict.stage == stage)).sum()) for stage in (0, 1)]
        assert list(certificate.exit_counts) == by_stage


def test_golden_vectors_pass_on_this_machine_and_cover_both_classes(made, trained) -> None:
    golden = load_golden((made.path / GOLDEN).read_bytes())
    assert set(golden.exits) == set(made.manifest.targets)
    assert len(golden.images) == 8
    select = {image.tobytes(): y for image, y in zip(*pixels_and_labels(trained), strict=True)}
    assert sorted(select[image.tobytes()] for image in golden.images) == [0] * 4 + [1] * 4
    for target in made.manifest.targets:
        Cascade.open(made.path, target, threads=1, self_test=True, warm_up=False)


def pixels_and_labels(trained) -> tuple[np.ndarray, list[int]]:
    return trained.select.pixels, [int(y) for y in trained.select.labels]


def test_self_test_finds_an_engine_that_answers_otherwise(
    made, changed: Callable[[float], Path], tmp_path: Path
) -> None:
    """Someone replaces an engine and seals again: the certificate no longer matches."""
    copy = Path(shutil.copytree(made.path, tmp_path / "x.cascade"))
    shutil.copy(changed(9.0), copy / "targets" / "onnxruntime-fp32-cpu" / "stage1.onnx")
    seal(copy)
    with pytest.raises(BundleError, match="not the engine that 'onnxruntime/fp32/cpu' was certif"):
        Bundle.open(copy)


def test_any_file_with_one_bit_flipped_is_named(made, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made.path, tmp_path / "x.cascade"))
    for name, data in contents(copy).items():
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        (copy / name).write_bytes(flipped)
        with pytest.raises(BundleError) as caught:
            Bundle.open(copy)
        # A flipped bit in the list itself may be in a name or a digest of any other file.
        assert name == "SHA256SUMS" or name in str(caught.value)
        (copy / name).write_bytes(data)
    Bundle.open(copy)


def test_bundle_answers_images_with_the_classes_names(made, trained) -> None:
    cascade = Cascade.open(made.path, "auto", threads=1, warm_up=False)
    results = cascade.classify(list(trained.select.pixels[:20]))
    right = [
        r.decision == ("no square", "square")[y]
        for r, y in zip(results, trained.select.labels[:20], strict=True)
        if r.label >= 0
    ]
    assert len(right) >= 10
    assert np.mean(right) > 0.8


def test_manifest_says_what_was_built(made, trained) -> None:
    manifest = made.manifest
    assert manifest.model.name == "squares.v2"
    assert manifest.model.classes == ("no square", "square")
    assert manifest.model.data.endswith("first run0/my images")  # spaces all the way
    assert manifest.model.exits == (1, 2)
    assert manifest.model.parameters == sum(stage.parameters for stage in manifest.stages)
    assert manifest.preprocess.height == manifest.preprocess.width == 32
    for target in manifest.targets.values():
        assert target.images_per_s > 0
        assert target.parity["decision_flips"] <= 2
        assert target.parity["max_difference"] < target.parity["largest_logit"] / 10


def test_report_says_the_promise_in_words(made) -> None:
    page = (made.path / "report.html").read_text()
    for certificate in made.manifest.certificates.values():
        assert certificate.promise.replace(" %", "\u00a0%") in page
    assert page.count("<svg") + page.count("<img") >= 2  # curves


def test_no_file_of_the_network_holds_a_path_of_this_machine(made, trained) -> None:
    for name, data in contents(made.path / "targets").items():
        for word in (str(made.path.parent), str(trained.run), "site-packages"):
            assert word.encode() not in data, (name, word)


def test_each_bundle_of_a_run_counts_one_more_use(
    request_for: RequestFor, no_export: list[Path], trained, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    (run / LEDGER).unlink(missing_ok=True)
    for uses in (1, 2):
        out = tmp_path / f"{uses}.cascade"
        manifest = quietly(request_for(out, run=run))
        assert manifest.certificates[ONNX].calibration_uses == uses
        assert Bundle.open(out).manifest.certificates[ONNX].calibration_uses == uses


def test_infeasible_bundle_opens_defers_everything_and_says_what_it_takes(
    request_for: RequestFor, no_export: list[Path], trained, tmp_path: Path
) -> None:
    out = tmp_path / "x.cascade"
    said: list[str] = []
    build(request_for(out, alpha="0.001"), say=said.append)
    cascade = Cascade.open(out, self_test=True, threads=1, warm_up=False)
    assert cascade.certificate.status == "INFEASIBLE"
    assert cascade.certificate.accepted == 0
    assert [rule.tau_logit for rule in cascade.decision.exits] == [None, None]
    assert any(character.isdigit() for character in cascade.certificate.advice)
    assert "INFEASIBLE at alpha 0.1 %. " + cascade.certificate.advice in said[-1]
    results = cascade.classify(list(trained.calib.pixels))
    assert {result.label for result in results} == {-1}
    assert {result.reason for result in results} == {"below threshold"}


def test_zip_holds_the_same_as_the_folder(
    request_for: RequestFor, no_export: list[Path], trained, tmp_path: Path
) -> None:
    folder, packed = tmp_path / "x.cascade", tmp_path / "x.zip"
    first, second = (quietly(request_for(out)) for out in (folder, packed))
    assert packed.is_file()
    assert beside(packed) == ["x.cascade", "x.zip"]
    opened = Bundle.open(packed)
    assert opened.manifest == second
    assert second.model.name == first.model.name == "x"
    assert opened.hashes.keys() == Bundle.open(folder).hashes.keys()
    for name in first.targets:
        assert second.certificates[name].engines == first.certificates[name].engines
        pixels = trained.select.pixels[:8]
        verdicts = [
            decide(cascade.stages.forward_all(pixels), cascade.decision)
            for cascade in (
                Cascade.open(p, name, threads=1, warm_up=False) for p in (folder, packed)
            )
        ]
        assert np.array_equal(verdicts[0].label, verdicts[1].label)
    quietly(request_for(packed, overwrite=True))
    assert beside(packed) == ["x.cascade", "x.zip"]


@pytest.fixture
def old(made, tmp_path: Path) -> Path:
    """A valid bundle where the new one is to go."""
    return Path(shutil.copytree(made.path, tmp_path / "out" / "x.cascade"))


def test_existing_bundle_is_kept_unless_overwriting_is_asked_for(
    request_for: RequestFor, no_export: list[Path], old: Path
) -> None:
    before = contents(old)
    with pytest.raises(ConfigError, match="exists; pass --overwrite to replace it"):
        quietly(request_for(old))
    assert contents(old) == before
    manifest = quietly(request_for(old, overwrite=True, name="newer"))
    assert Bundle.open(old).manifest == manifest
    assert manifest.model.name == "newer"
    assert list(manifest.targets) == [ONNX]
    assert beside(old) == ["x.cascade"]


@pytest.mark.parametrize("what", ["foreign", "damaged", "empty"])
def test_folder_that_is_no_valid_bundle_is_never_deleted(
    request_for: RequestFor, old: Path, what: str
) -> None:
    if what == "foreign":
        shutil.rmtree(old)
        old.mkdir()
        (old / "thesis.txt").write_text("years of work")
    elif what == "damaged":
        (old / "notes.txt").write_text("put here by someone")
    else:
        shutil.rmtree(old)
        old.mkdir()
    before = contents(old)
    with pytest.raises(ConfigError, match="is no valid bundle, move it away yourself"):
        quietly(request_for(old, overwrite=True))
    assert contents(old) == before


@pytest.mark.parametrize("name", ["x.cascade", "x.zip"])
def test_file_and_folder_do_not_replace_each_other(
    request_for: RequestFor, tmp_path: Path, made, name: str
) -> None:
    out = tmp_path / name
    if name == "x.zip":
        shutil.copytree(made.path, out)
    else:
        pack(made.path, out)
    with pytest.raises(ConfigError, match="move it away yourself"):
        quietly(request_for(out, overwrite=True))
    assert Bundle.open(out).manifest == made.manifest


@pytest.mark.parametrize(
    "step",
    [
        "cascade_calib.certify_engines.certify_target",
        "cascade_calib.publish.render_report",
        "cascade_calib.publish.seal",
        "cascade_compile.bundle.publish",
    ],
)
def test_failure_midway_leaves_no_half_bundle_and_keeps_the_old_one(
    request_for: RequestFor,
    no_export: list[Path],
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    before = contents(old)
    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space"):
        quietly(request_for(old, overwrite=True))
    with pytest.raises(OSError, match="No space"):
        quietly(request_for(old.with_name("fresh.cascade")))
    assert contents(old) == before
    assert beside(old) == ["x.cascade"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_old_bundle_stays_when_the_new_one_cannot_be_put_in_place(
    made, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    before = contents(old)
    new = Path(shutil.copytree(made.path, tmp_path / "new"))
    rename = Path.rename

    def refuse_new(self: Path, to: Path) -> Path:
        if self == new:
            raise OSError("Device or resource busy")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_new)
    if can_exchange:
        publishing.publish(new, old)  # one step, no rename that could fail
        assert not new.exists()
    else:
        monkeypatch.setattr(publishing, "_exchange", lambda first, second: False)
        with pytest.raises(OSError, match="busy"):
            publishing.publish(new, old)
    assert contents(old) == before
    assert beside(old) == ["x.cascade"]


def test_rest_of_a_killed_build_does_not_hinder_the_next(
    request_for: RequestFor, no_export: list[Path], tmp_path: Path
) -> None:
    rest = tmp_path / ".x.cascade.part"
    rest.mkdir()
    (rest / "stray.bin").write_bytes(b"half")
    quietly(request_for(tmp_path / "x.cascade"))
    assert "stray.bin" not in contents(tmp_path / "x.cascade")
    assert not rest.exists()


def test_engine_that_is_not_the_network_is_refused_and_force_writes_it_with_the_figures(
    request_for: RequestFor,
    no_export: list[Path],
    changed: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    no_export[1] = changed(50.0)
    out = tmp_path / "x.cascade"
    with pytest.raises(
        ParityError, match=r"onnxruntime/fp32/cpu: the engine is not what was .*--force"
    ):
        quietly(request_for(out))
    assert not out.exists()
    manifest = quietly(request_for(out, force=True))
    parity = manifest.targets[ONNX].parity
    assert parity["max_difference"] > parity["limit"] * parity["largest_logit"]
    assert Bundle.open(out).manifest == manifest


def test_engine_of_no_numbers_is_refused_even_by_force(
    request_for: RequestFor,
    no_export: list[Path],
    changed: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    no_export[1] = changed(float("nan"))
    with pytest.raises(ParityError, match="outputs that are not numbers"):
        quietly(request_for(tmp_path / "x.cascade", force=True))
    assert list(tmp_path.glob("*.cascade")) == []


def test_target_that_this_machine_cannot_run_is_refused(
    request_for: RequestFor,
    no_export: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_target, "unavailable", lambda target: "no such instructions")
    with pytest.raises(TargetError, match="cannot be certified here: no such instructions"):
        quietly(request_for(tmp_path / "x.cascade"))


def test_images_that_changed_since_the_split_are_refused(
    request_for: RequestFor, trained, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    path = run / "splits.json"
    splits = json.loads(path.read_text())
    calib = next(e for e in splits["entries"] if e["split"] == "val_calib")
    calib["sha256"] = "0" * 64
    path.write_text(json.dumps(splits))
    with pytest.raises(DataError):
        quietly(request_for(tmp_path / "x.cascade", run=run))


def test_run_may_be_certified_on_other_images(
    request_for: RequestFor, no_export: list[Path], trained, tmp_path: Path
) -> None:
    """`--data` names another splits.json, here one whose val_calib is smaller."""
    splits = json.loads((trained.run / "splits.json").read_text())
    splits["root"] = str((trained.run.parent / "my images").resolve())
    kept = [e for e in splits["entries"] if e["split"] != "val_calib" or e["path"] < "square/0150"]
    other = tmp_path / "other" / "splits.json"
    other.parent.mkdir()
    for split in ("train", "val_select", "val_calib", "val_test"):
        lines = sorted(f"{e['sha256']} {e['label']}\n" for e in kept if e["split"] == split)
        splits["content_sha256"][split] = hashlib.sha256("".join(lines).encode()).hexdigest()
    other.write_text(json.dumps(splits | {"entries": kept}))
    manifest = quietly(request_for(tmp_path / "x.cascade", splits=other))
    wanted = sum(e["split"] == "val_calib" for e in kept)
    assert manifest.certificates[ONNX].n == wanted < len(trained.calib)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("x", "must end in .cascade"),
        (".cascade", "must end in .cascade"),
        ("nowhere/x.cascade", "does not exist; make it first"),
    ],
)
def test_out_that_cannot_be_is_refused_before_any_work(
    request_for: RequestFor, tmp_path: Path, out: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        quietly(request_for(tmp_path / out))


def test_folder_that_is_no_run_is_refused(request_for: RequestFor, tmp_path: Path) -> None:
    request = replace(request_for(tmp_path / "x.cascade"), run=tmp_path)
    with pytest.raises(CascadeError, match="is no run folder"):
        quietly(request)
