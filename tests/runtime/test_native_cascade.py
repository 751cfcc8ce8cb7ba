"""`engine="native"`: the answers of the Python runtime, from libcascade, to the bit."""

from __future__ import annotations

import io
import math
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cascade_runtime import bundle, manifest
from cascade_runtime.cascade import Cascade, Result
from cascade_runtime.decision import ExitOutputs, decide
from cascade_runtime.errors import BundleError, ConfigError, TargetError
from cascade_runtime.golden import read_safetensors
from cascade_runtime.manifest import AcceptRule, Decision, ExitRule
from cascade_runtime.native import NativeCascade
from cascade_runtime.stages import load_stages

from .conftest import (
    ONNX,
    OPENVINO,
    SIDE,
    Sample,
    make_certificate,
    make_images,
    make_infeasible,
    rewrite,
)
from .native_build import native_folder

LOWEST = -manifest.FLOAT32_MAX


@pytest.fixture(autouse=True)
def libcascade(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library under test."""
    folder = native_folder()
    monkeypatch.setenv("CASCADE_LIBRARY", str(folder / "libcascade.so"))
    return folder


def pair(path: Path, target: str = ONNX, threads: int = 1) -> tuple[Cascade, Cascade]:
    """The bundle in Python and in C++."""
    python = Cascade.open(path, target, threads=threads, warm_up=False)
    native = Cascade.open(path, target, threads=threads, warm_up=False, engine="native")
    assert isinstance(native, NativeCascade)
    return python, native


def policies(sample: Sample) -> dict[str, Decision]:
    """One decision a policy, with thresholds in the middle of what the sample's exits say."""
    stages = load_stages(sample.manifest, ONNX, lambda p: (sample.path / p).read_bytes(), threads=1)
    exits = stages.forward_all(make_images(64))

    def rules(kind: manifest.ScoreKind) -> list[ExitRule]:
        found = []
        for outputs in exits:
            score = 1.5 * outputs.gate - 0.25
            if kind == "softmax":
                score = np.abs(outputs.logits[:, 1] - outputs.logits[:, 0]) / 1.25
            tau = float(np.float32(np.median(score)))
            found.append(
                ExitRule(score=kind, platt_a=1.5, platt_b=-0.25, temperature=1.25, tau_logit=tau)
            )
        return found

    gate, softmax = rules("gate"), rules("softmax")
    open_end = [gate[0], msgspec.structs.replace(gate[1], tau_logit=LOWEST)]
    accept = AcceptRule(tau_logit=gate[1].tau_logit or 0.0, set_logit_at=-1.0)
    return {
        "certified": Decision(policy="certified", exits=(gate[0], softmax[1]), set_logit=0.25),
        "gate": Decision(policy="gate", exits=tuple(gate), set_logit=0.0),
        "softmax": Decision(policy="softmax", exits=tuple(softmax), set_logit=0.5),
        "scrc-i": Decision(policy="scrc-i", exits=tuple(open_end), set_logit=-0.5, accept=accept),
        "scrc-t": Decision(policy="scrc-t", exits=tuple(open_end), set_logit=1.0, accept=accept),
    }


def with_decision(sample: Sample, decision: Decision) -> None:
    """Seal the sample again with another rule."""
    made = sample.manifest
    certificates = {
        name: make_certificate(made.preprocess, decision, made.certificates[name].engines)
        for name in made.targets
    }
    rewrite(
        sample.path,
        msgspec.structs.replace(
            made, decision=dict.fromkeys(made.targets, decision), certificates=certificates
        ),
    )


@pytest.mark.parametrize("target", [ONNX, OPENVINO])
@pytest.mark.parametrize("policy", manifest.POLICIES)
def test_every_policy_on_every_target_answers_as_python(
    sample: Sample, policy: str, target: str
) -> None:
    with_decision(sample, policies(sample)[policy])
    python, native = pair(sample.path, target)
    images = list(make_images(200))
    expected = python.classify(images)
    assert native.classify(images) == expected
    for size in (1, 5, 200):
        assert native.classify(images, size) == python.classify(images, size)
    # Batches of another size move the last bits of a float.
    few = native.classify(images, batch_size=5)
    assert [said(r) for r in few] == [said(r) for r in expected]
    assert len({(r.label, r.stage, r.reason) for r in expected}) >= 3, "the images must differ"


@pytest.mark.parametrize("target", [ONNX, OPENVINO])
@pytest.mark.parametrize("threads", [2, 3])
def test_a_call_is_cut_alike_by_threads_of_both(
    template: Sample, target: str, threads: int
) -> None:
    python, native = pair(template.path, target, threads)
    images = list(make_images(500))
    for count, size in ((1, 32), (3, 1), (100, 8), (257, 32), (384, 128), (500, 12)):
        assert native.classify(images[:count], size) == python.classify(images[:count], size)


def said(result: Result) -> tuple[str | None, int, str]:
    return result.decision, result.stage, result.reason


def bits(value: float | None) -> str:
    return "-" if value is None else np.float32(value).tobytes()[::-1].hex()


def rule_line(decision: Decision) -> str:
    accept = decision.accept
    words = [decision.policy, bits(decision.set_logit)]
    words += ["-"] if accept is None else [bits(accept.tau_logit), bits(accept.set_logit_at)]
    words.append(str(len(decision.exits)))
    for rule in decision.exits:
        numbers = (rule.platt_a, rule.platt_b, rule.temperature, rule.tau_logit)
        words += [rule.score, *map(bits, numbers)]
    return " ".join(words)


def hard_numbers(rng: np.random.Generator, size: tuple[int, ...], near: list[float]) -> np.ndarray:
    """float32 of every kind: ordinary, any bit pattern, infinite, NaN, tiny, exactly some value."""
    ordinary = rng.normal(0, 3, size).astype(np.float32)
    anything = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    special = rng.choice(
        np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, *near], np.float32), size
    )
    kind = rng.integers(0, 6, size)
    return np.where(kind < 4, ordinary, np.where(kind == 4, anything, special))


@pytest.mark.parametrize("policy", manifest.POLICIES)
def test_decisions_are_the_same_bits_on_any_number(
    template: Sample, libcascade: Path, policy: str
) -> None:
    decision = policies(template)[policy]
    rng = np.random.default_rng(len(policy))
    at_tau = [(rule.tau_logit or 0.0) for rule in decision.exits]
    near = [*at_tau, decision.set_logit, *((tau + 0.25) / 1.5 for tau in at_tau)]
    count = 20_000
    exits = [
        ExitOutputs(hard_numbers(rng, (count, 2), near), hard_numbers(rng, (count,), near))
        for _ in decision.exits
    ]
    verdict = decide(exits, decision)
    rows = np.stack([np.column_stack([e.logits, e.gate]) for e in exits], axis=1)
    words = rows.astype(np.float32).view(np.uint32).reshape(count, -1)
    lines = [rule_line(decision), *(" ".join(f"{w:08x}" for w in row) for row in words)]
    told = subprocess.run(
        [libcascade / "decision_probe"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    members = verdict.in_set[:, 0] + 2 * verdict.in_set[:, 1]
    found = np.array([[int(word) for word in line.split()[:4]] for line in told])
    expected = np.column_stack([verdict.label, verdict.stage, verdict.reason, members])
    np.testing.assert_array_equal(found, expected)
    values = np.array([[int(word, 16) for word in line.split()[4:]] for line in told], np.uint32)
    for column, name in ((0, "score_logit"), (1, "margin")):
        wanted = getattr(verdict, name)
        given = values[:, column].view(np.float32)
        np.testing.assert_array_equal(given, wanted)  # NaN is NaN, whatever its payload
    assert len(set(verdict.reason.tolist())) >= 3


def test_files_bytes_and_arrays_mix_and_bad_ones_fail_alone(
    template: Sample, image_files: list[Path]
) -> None:
    python, native = pair(template.path)
    array = np.asarray(Image.open(image_files[0]))
    images = [
        image_files[0],
        image_files[1].read_bytes(),
        array,
        array[:, ::-1],
        array[:, :, :1],
        np.dstack([array, array[:, :, :1]]),
        image_files[0].with_name("missing.png"),
        image_files[0].parent,
        b"",
        image_files[2].read_bytes()[:60],
        np.zeros((2, 2)),
        "nul\0.png",
        image_files[3],
    ]
    assert [r.reason[:11] for r in native.classify(images)].count("unreadable:") == 6
    for given, wanted in zip(native.classify(images), python.classify(images), strict=True):
        if math.isnan(wanted.p):
            assert (given.name, given.label, given.stage) == (wanted.name, -1, -1)
            assert given.reason.split(" (")[0] == wanted.reason.split(" (")[0]
        else:
            assert given == wanted
    assert native.classify([]) == []
    with pytest.raises(TypeError, match="pass a list"):
        native.classify("a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_encoded_images_of_other_sizes_decide_as_in_python(template: Sample, kind: str) -> None:
    rng = np.random.default_rng(5)
    files = []
    for _ in range(60):
        height, width = rng.integers(1, 90, 2)
        small = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((int(width), int(height)))
        stream = io.BytesIO()
        picture.save(stream, kind, quality=int(rng.integers(40, 96)))
        files.append(stream.getvalue())
    python, native = pair(template.path)
    assert [r.label for r in native.classify(files)] == [r.label for r in python.classify(files)]


def test_attributes_are_those_of_python(template: Sample) -> None:
    python, native = pair(template.path)
    for name in ("target", "why", "manifest", "certificate", "decision", "preprocess"):
        assert getattr(native, name) == getattr(python, name)
    auto = Cascade.open(template.path, threads=1, warm_up=False)
    also = Cascade.open(template.path, threads=1, warm_up=False, engine="native")
    assert (auto.target, auto.why) == (also.target, also.why)


def test_unknown_engine_is_refused_by_name(template: Sample) -> None:
    with pytest.raises(ConfigError, match="engine is 'rust', must be 'python' or 'native'"):
        Cascade.open(template.path, engine="rust")  # type: ignore[arg-type]


def test_threads_share_a_session(template: Sample) -> None:
    native = Cascade.open(template.path, ONNX, threads=2, engine="native")
    batches = [list(make_images(1 + seed % 9, seed=seed)) for seed in range(64)]
    alone = [native.classify(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(native.classify, batches)) == alone


def test_stats_count_what_was_answered(template: Sample) -> None:
    native = Cascade.open(template.path, ONNX, threads=1, warm_up=False, engine="native")
    assert isinstance(native, NativeCascade)
    results = native.classify([*make_images(140), b"x"], batch_size=16)
    stats = native.stats()
    acted = sum(result.decision is not None for result in results)
    assert (stats["images"], stats["acted"], stats["deferred"], stats["unreadable"]) == (
        141,
        acted,
        140 - acted,
        1,
    )
    assert stats["batches"] == 2 == stats["decide"]["count"] == sum(stats["decide"]["buckets"])
    assert sum(stats["reasons"]) == 141 and stats["reasons"][6] == 1
    assert sum(stats["exits"]) == 140
    assert stats["exits"][0] == sum(result.stage == 0 for result in results)
    assert stats["decide"]["sum_us"] > 0


def refusal(path: Path, target: str = "auto", **options: object) -> tuple[type, str]:
    with pytest.raises((BundleError, TargetError, ConfigError)) as caught:
        Cascade.open(path, target, threads=1, engine="native", **options)  # type: ignore[arg-type]
    return caught.type, str(caught.value)


def test_what_is_wrong_is_named(sample: Sample, tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.cascade")[0] is BundleError
    kind, message = refusal(sample.path, "tpu")
    assert kind is TargetError
    assert message == f"target 'tpu' is not in this bundle, which has: {ONNX}, {OPENVINO}"
    engine = sample.path / "targets" / ONNX / "stage1.onnx"
    engine.write_bytes(engine.read_bytes() + b"\0")
    kind, message = refusal(sample.path)
    assert kind is BundleError and "stage1.onnx: SHA-256 is" in message


def test_missing_engine_library_says_how_to_get_it(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_OPENVINO_LIBRARY", "/nowhere/libopenvino_c.so")
    kind, message = refusal(template.path, OPENVINO)
    assert kind is TargetError
    assert "libopenvino_c.so cannot be loaded (/nowhere" in message
    assert "pip install openvino" in message
    why = Cascade.open(template.path, threads=1, warm_up=False, engine="native").why
    assert why.startswith(f"{ONNX} is the fastest that can run here") and "skipped" in why


def test_self_test_passes_and_refuses_a_bundle_that_answers_otherwise(sample: Sample) -> None:
    for target in (ONNX, OPENVINO):
        Cascade.open(sample.path, target, threads=1, self_test=True, engine="native")
    path = sample.path / bundle.GOLDEN
    tensors = dict(read_safetensors(path.read_bytes(), bundle.GOLDEN))
    save_file({**tensors, "images": 255 - tensors["images"]}, path)
    bundle.seal(sample.path)
    Cascade.open(sample.path, ONNX, threads=1, warm_up=False, engine="native")
    kind, message = refusal(sample.path, ONNX, self_test=True)
    assert kind is TargetError and "does not run the certified cascade" in message
    save_file({**tensors, f"{ONNX}/label": 1 - tensors[f"{ONNX}/label"]}, path)
    bundle.seal(sample.path)
    kind, message = refusal(sample.path, ONNX, self_test=True)
    assert kind is BundleError and "do not decide as recorded" in message


def test_golden_file_of_many_stages_and_no_images_takes_no_memory(sample: Sample) -> None:
    """Its shape costs no byte of the file: it is refused before anything is made of it."""
    path = sample.path / bundle.GOLDEN
    tensors = dict(read_safetensors(path.read_bytes(), bundle.GOLDEN))
    tensors = {name: value[:0] for name, value in tensors.items() if name.startswith("images")}
    stages = 1 << 40
    tensors[f"{ONNX}/logits"] = np.empty((stages, 0, 2), np.float32)
    tensors[f"{ONNX}/gate"] = np.empty((stages, 0), np.float32)
    tensors[f"{ONNX}/label"] = tensors[f"{ONNX}/stage"] = np.empty(0, np.int8)
    save_file(tensors, path)
    bundle.seal(sample.path)
    kind, message = refusal(sample.path, ONNX, self_test=True)
    assert kind is BundleError and f"has {stages} stages, more than 127" in message


def test_infeasible_target_opens_and_defers_everything(sample: Sample) -> None:
    make_infeasible(sample)
    native = Cascade.open(sample.path, ONNX, threads=1, engine="native")
    assert {(r.decision, r.reason, r.stage) for r in native.classify(make_images(5))} == {
        (None, "below threshold", 1)
    }


def test_second_network_takes_pixels_again(sample: Sample) -> None:
    """A two-model cascade: stage 1 is the first network once more."""
    decision = policies(sample)["gate"]
    for target, suffix in ((ONNX, "onnx"), (OPENVINO, "xml"), (OPENVINO, "bin")):
        first = sample.path / "targets" / target / f"stage0.{suffix}"
        first.with_name(f"stage1.{suffix}").write_bytes(first.read_bytes())
    bundle.seal(sample.path)
    hashes = bundle.parse_sums((sample.path / bundle.SUMS).read_bytes())
    made = sample.manifest
    first_stage, second = made.stages
    stages = (first_stage, msgspec.structs.replace(second, input="pixels"))
    second_rule = msgspec.structs.replace(decision.exits[1], tau_logit=LOWEST)
    decision = msgspec.structs.replace(decision, exits=(decision.exits[0], second_rule))
    certificates = {}
    for name, target in made.targets.items():
        files = {path: hashes[path] for path in bundle.engine_files(target)}
        certificate = make_certificate(made.preprocess, decision, files)
        binding = manifest.binding(made.preprocess, decision, files, ("pixels", "pixels"))
        certificates[name] = msgspec.structs.replace(certificate, binding=binding)
    rewrite(
        sample.path,
        msgspec.structs.replace(
            made,
            stages=stages,
            decision=dict.fromkeys(made.targets, decision),
            certificates=certificates,
        ),
    )
    for target in (ONNX, OPENVINO):
        python, native = pair(sample.path, target)
        images = list(make_images(90))
        assert native.classify(images) == python.classify(images)


def test_weights_beside_the_onnx_file_are_read_from_the_bundle(sample: Sample) -> None:
    path = sample.path / "targets" / ONNX / "stage0.onnx"
    model = onnx.load(path)
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="stage0.weights",
        size_threshold=64,  # shapes stay inside
        convert_attribute=False,
    )
    made = sample.manifest
    stages = list(made.targets[ONNX].stages)
    stages[0] = manifest.TargetStage(
        files=(f"targets/{ONNX}/stage0.onnx", f"targets/{ONNX}/stage0.weights")
    )
    targets = {
        **made.targets,
        ONNX: msgspec.structs.replace(made.targets[ONNX], stages=tuple(stages)),
    }
    bundle.seal(sample.path)
    hashes = bundle.parse_sums((sample.path / bundle.SUMS).read_bytes())
    files = {path: hashes[path] for path in bundle.engine_files(targets[ONNX])}
    certificate = make_certificate(made.preprocess, sample.decision, files)
    rewrite(
        sample.path,
        msgspec.structs.replace(
            made, targets=targets, certificates={**made.certificates, ONNX: certificate}
        ),
    )
    python, native = pair(sample.path)
    images = list(make_images(10))
    assert native.classify(images) == python.classify(images)


def test_image_of_another_size_is_brought_to_the_bundles(template: Sample) -> None:
    python, native = pair(template.path)
    rng = np.random.default_rng(1)
    arrays = [
        np.kron(make_images(1, seed=i)[0], np.ones((int(k), int(k), 1), np.uint8))
        for i, k in enumerate(rng.integers(2, 9, 20))
    ]
    assert arrays[0].shape[0] % SIDE == 0
    for given, wanted in zip(native.classify(arrays), python.classify(arrays), strict=True):
        assert given == wanted
