"""A bundle certified anew is whole, says so of its own engines, or is what it was."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import CLASSES, ONNX, OPENVINO

from cascade_calib import publish as publishing
from cascade_calib.labelled import content_sha256, load_pixels, read_labelled
from cascade_calib.recertify import RecertifyRequest, recertify
from cascade_calib.splits_file import Entry, Splits, content_hash, write_splits
from cascade_runtime.bundle import SIGNATURE, Bundle, pack, seal
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import ConfigError, DataError, TargetError


@pytest.fixture
def bundle(casts, tmp_path):
    return Path(shutil.copytree(casts / "two.cascade", tmp_path / "b" / "x.cascade"))


def ask(casts, bundle, **more):
    """Certify quietly on the shared images; returns the manifest and what was said."""
    said = []
    options = {"data": str(casts / "calib"), "select": str(casts / "select"), "threads": 1} | more
    return recertify(RecertifyRequest(bundle, **options), say=said.append), said


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_target_is_certified_on_the_engines_in_the_bundle(casts, bundle):
    before = Bundle.open(bundle)
    manifest, said = ask(casts, bundle)
    opened = Bundle.open(bundle)
    assert opened.manifest == manifest
    assert list(manifest.targets) == [ONNX, OPENVINO]
    for name, c in manifest.certificates.items():
        assert (c.status, c.claims, c.n, c.calibration_uses) == ("CERTIFIED", 2, 700, 1)
        assert (c.alpha, c.delta, c.coverage_floor) == (0.05, 0.1, 0.5)  # as before
        assert c.engines == before.manifest.certificates[name].engines
        assert manifest.targets[name].images_per_s > 1
        assert manifest.targets[name].parity == {"max_difference": 0.0}
        assert any(line.startswith(f"{name}: CERTIFIED") for line in said)
    assert manifest.made_by != before.manifest.made_by
    assert manifest.model == before.manifest.model
    assert manifest.certificates[ONNX].promise.replace(" %", "\u00a0%") in (
        bundle / "report.html"
    ).read_text("utf-8")
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_counts_are_those_of_the_cascade_that_opens_afterwards(casts, bundle):
    ask(casts, bundle)
    images = read_labelled(casts / "calib")
    for name in (ONNX, OPENVINO):
        cascade = Cascade.open(bundle, name, threads=1, self_test=True, warm_up=False)
        loaded = load_pixels(images, cascade.preprocess)
        verdict = cascade.stages.forward(loaded.pixels, cascade.decision)
        c = cascade.certificate
        assert c.accepted == verdict.acted.sum() < c.n
        assert c.errors == (verdict.acted & (verdict.label != loaded.labels)).sum()
        assert c.calibration_sha256 == content_sha256(loaded.pixels, loaded.labels)


@pytest.mark.parametrize("policy", ["certified", "softmax", "gate", "scrc-i", "scrc-t"])
def test_policy_can_be_changed_and_stays_until_it_is_changed_again(casts, bundle, policy):
    ask(casts, bundle, policy=policy)
    manifest, _ = ask(casts, bundle)
    for name, decision in manifest.decision.items():
        c = manifest.certificates[name]
        assert (decision.policy, c.status) == (policy, "CERTIFIED")
        assert c.calibration_uses == 2
        assert (c.sets is not None) == policy.startswith("scrc-")
        cascade = Cascade.open(bundle, name, threads=1, self_test=True, warm_up=False)
        images = read_labelled(casts / "calib")
        loaded = load_pixels(images, cascade.preprocess)
        verdict = cascade.stages.forward(loaded.pixels, cascade.decision)
        assert verdict.acted.sum() == c.accepted > 0
        if c.sets is not None:
            assert verdict.accepted.sum() == c.sets.accepted


def test_delta_that_was_given_up_has_to_be_said_again(casts, bundle):
    ask(casts, bundle, policy="scrc-t")
    with pytest.raises(ConfigError, match="--delta is missing"):
        ask(casts, bundle, policy="certified")
    manifest, _ = ask(casts, bundle, policy="certified", delta=Fraction(1, 20))
    assert {c.delta for c in manifest.certificates.values()} == {0.05}


def test_promise_on_missed_positives_that_goes_is_spoken_of(casts, bundle):
    ask(casts, bundle, fnr=Fraction(1, 5))
    manifest, said = ask(casts, bundle, policy="scrc-i")
    assert any("missed positives goes" in line for line in said)
    assert {c.fnr_promised for c in manifest.certificates.values()} == {None}


def test_numbers_asked_for_replace_the_old_ones(casts, bundle):
    manifest, _ = ask(
        casts,
        bundle,
        alpha=Fraction(1, 10),
        delta=Fraction(1, 5),
        coverage=Fraction(3, 5),
        fnr=Fraction(3, 20),
    )
    for c in manifest.certificates.values():
        assert (c.alpha, c.delta, c.coverage_floor, c.fnr_promised) == (0.1, 0.2, 0.6, 0.15)


def test_asking_the_same_images_again_is_counted_and_said(casts, bundle):
    ask(casts, bundle)
    manifest, said = ask(casts, bundle)
    assert {c.calibration_uses for c in manifest.certificates.values()} == {2}
    assert "2nd time" in said[0]
    manifest, said = ask(casts, bundle, data=str(casts / "test"))
    assert {c.calibration_uses for c in manifest.certificates.values()} == {1}
    assert not any("time:" in line for line in said)


def test_zip_is_certified_in_place(casts, bundle, tmp_path):
    zipped = tmp_path / "x.zip"
    pack(bundle, zipped)
    manifest, _ = ask(casts, zipped)
    assert zipfile.is_zipfile(zipped)
    assert Bundle.open(zipped).manifest == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "x.zip"]


def test_bundle_behind_a_link_is_replaced_where_it_lies(casts, bundle, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(bundle)
    manifest, _ = ask(casts, link)
    assert link.is_symlink()
    assert Bundle.open(bundle).manifest == manifest


def test_infeasible_bundle_is_written_and_defers_everything(casts, bundle):
    manifest, _ = ask(casts, bundle, alpha=Fraction(1, 1000))
    assert {c.status for c in manifest.certificates.values()} == {"INFEASIBLE"}
    cascade = Cascade.open(bundle, threads=1, warm_up=False)
    assert [r.decision for r in cascade.classify([np.zeros((8, 8, 3), np.uint8)])] == [None]


@pytest.fixture
def no_openvino(monkeypatch):
    monkeypatch.setattr(
        "cascade_calib.recertify.unavailable",
        lambda target: "not on this machine" if target.backend == "openvino" else None,
    )


def test_targets_that_cannot_run_here_are_refused(casts, bundle, no_openvino):
    before = contents(bundle)
    with pytest.raises(TargetError, match=r"openvino/fp32/cpu: not on this machine.*--drop-others"):
        ask(casts, bundle)
    assert contents(bundle) == before


def test_targets_that_cannot_run_here_are_left_out_when_asked(casts, bundle, no_openvino):
    manifest, said = ask(casts, bundle, drop_others=True)
    assert said[0].startswith("openvino/fp32/cpu: left out")
    assert list(manifest.targets) == [ONNX]
    assert manifest.certificates[ONNX].claims == 1
    assert not any("openvino" in name for name in Bundle.open(bundle).hashes)


def test_no_target_here_is_refused_whatever_is_asked(casts, bundle, monkeypatch):
    monkeypatch.setattr("cascade_calib.recertify.unavailable", lambda target: "no")
    with pytest.raises(TargetError, match="no target of this bundle can run"):
        ask(casts, bundle, drop_others=True)


def test_files_that_nobody_knows_are_kept(casts, bundle):
    (bundle / "NOTES.txt").write_text("from the field\n")
    seal(bundle)
    (bundle / SIGNATURE).write_bytes(b"0" * 64)
    _, said = ask(casts, bundle)
    assert (bundle / "NOTES.txt").read_text() == "from the field\n"
    assert not (bundle / SIGNATURE).exists()
    assert any("sign the bundle anew" in line for line in said)


@pytest.mark.parametrize(
    "step",
    [
        "cascade_calib.recertify.certify_engines",
        "cascade_calib.publish.render_report",
        "cascade_calib.publish.seal",
        "cascade_calib.recertify.publish",
    ],
)
def test_failure_midway_keeps_the_old_bundle(casts, bundle, monkeypatch, step):
    def fail(*_, **__):
        raise OSError("No space left on device")

    before = contents(bundle)
    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space"):
        ask(casts, bundle)
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("exchange", [True, False])
def test_publish_replaces_whole_and_leaves_nothing_behind(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(publishing, "_exchange", lambda new, old: False)
    new, out = tmp_path / ".x.part", tmp_path / "x.cascade"
    for folder in (new, out):
        folder.mkdir()
        (folder / f"{folder.name}.txt").touch()
    publishing.publish(new, out)
    assert [path.name for path in tmp_path.iterdir()] == ["x.cascade"]
    assert [path.name for path in out.iterdir()] == [".x.part.txt"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_bundle(tmp_path, exchange):
    """The process dies right after each step of the swap; `recover` finds old or new, whole."""
    code = (
        "import os, pathlib, shutil, signal, sys\n"
        "from cascade_calib import publish as p\n"
        "step, exchange = int(sys.argv[1]), sys.argv[2] == 'True'\n"
        "count = 0\n"
        "def dying(f):\n"
        "    def call(*a, **k):\n"
        "        global count\n"
        "        result = f(*a, **k); count += 1\n"
        "        if count == step: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return result\n"
        "    return call\n"
        "pathlib.Path.rename = dying(pathlib.Path.rename)\n"
        "p._exchange = dying(p._exchange) if exchange else lambda new, old: False\n"
        "p.publish(pathlib.Path('.x.part'), pathlib.Path('x.cascade'))\n"
    )
    killed = 0
    for step in range(1, 4):
        place = tmp_path / str(step)
        for folder, word in ((".x.part", "new"), ("x.cascade", "old")):
            (place / folder).mkdir(parents=True)
            for name in "ab":
                (place / folder / name).write_text(word)
        done = subprocess.run(
            [sys.executable, "-c", code, str(step), str(exchange)], cwd=place, check=False
        )
        killed += done.returncode == -signal.SIGKILL
        publishing.recover(place / "x.cascade")
        files = sorted((place / "x.cascade").iterdir())
        assert [path.name for path in files] == ["a", "b"]
        assert {path.read_text() for path in files} in ({"new"}, {"old"})
    assert killed == (1 if exchange else 2)


def test_bundle_that_a_killed_run_moved_aside_comes_back(casts, bundle):
    bundle.rename(bundle.with_name(f".{bundle.name}.old"))
    manifest, said = ask(casts, bundle)
    assert "was put back" in said[0]
    assert Bundle.open(bundle).manifest == manifest


def test_splits_file_gives_both_sets_and_must_be_unchanged(casts, bundle, tmp_path):
    splits = tmp_path / "splits.json"
    entries = []
    for split, part in (("val_select", "select"), ("val_calib", "calib")):
        images = read_labelled(casts / part)
        loaded = load_pixels(images, Bundle.open(bundle).manifest.preprocess, hashes=True)
        rows = zip(loaded.names, loaded.labels, loaded.hashes, strict=True)
        entries += [
            Entry(path=f"{part}/{name}", label=int(label), split=split, sha256=digest)
            for name, label, digest in rows
        ]
    entries.sort(key=lambda entry: entry.path)
    write_splits(
        Splits(
            source="casts",
            root=str(casts),
            classes=CLASSES,
            seed=0,
            fractions={},
            content_sha256={
                split: content_hash(
                    [e.sha256 for e in entries if e.split == split],
                    [e.label for e in entries if e.split == split],
                )
                for split in ("train", "val_select", "val_calib", "val_test")
            },
            entries=tuple(entries),
            skipped=(),
        ),
        splits,
    )
    manifest, _ = ask(casts, bundle, data=str(splits), select=None)
    assert {c.n for c in manifest.certificates.values()} == {700}
    raw = json.loads(splits.read_text())
    moved = Path(shutil.copytree(casts / "calib", tmp_path / "calib"))
    shutil.copytree(casts / "select", tmp_path / "select")
    next(moved.rglob("*.png")).write_bytes(b"")
    splits.write_text(json.dumps(raw | {"root": str(tmp_path)}))
    with pytest.raises(DataError, match="1 of 700 images of val_calib are not what they were"):
        ask(casts, bundle, data=str(splits), select=None)


def test_images_to_propose_on_must_be_others(casts, bundle, tmp_path):
    with pytest.raises(ConfigError, match="--select is missing"):
        ask(casts, bundle, select=None)
    mixed = Path(shutil.copytree(casts / "select", tmp_path / "mixed"))
    stolen = next((casts / "calib" / "clear").glob("*.png"))
    shutil.copy(stolen, mixed / "clear" / "stolen.png")
    with pytest.raises(DataError, match="1 calibration images are also among"):
        ask(casts, bundle, select=str(mixed))


def test_images_of_other_classes_are_refused(casts, bundle, vehicles):
    with pytest.raises(DataError, match="rename the class folders"):
        ask(casts, bundle, select=str(vehicles()))
