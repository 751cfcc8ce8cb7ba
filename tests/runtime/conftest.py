"""A real, small bundle: a two-stage network in ONNX and OpenVINO form, sealed as writers do."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from cascade_runtime import bundle, engines, golden, manifest
from cascade_runtime.engines import openvino as openvino_engine
from cascade_runtime.manifest import Decision, ExitRule, Manifest
from cascade_runtime.stages import load_target

SIDE = 8
WIDTH = 4
ONNX = "onnxruntime/fp32/cpu"
OPENVINO = "openvino/fp32/cpu"


def make_images(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, SIDE, SIDE, 3]: flat colours with some noise, so that the outputs spread."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (count, 1, 1, 3))
    noise = rng.integers(-20, 21, (count, SIDE, SIDE, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def make_stage(stage: int, last: bool) -> onnx.ModelProto:
    """One stage: tokens through a layer, the mean token to two logits and a gate."""
    rng = np.random.default_rng(stage)
    shapes = {"mix": (3 if stage == 0 else WIDTH, WIDTH), "head": (WIDTH, 2), "trust": (WIDTH, 1)}
    constants = {name: 3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    weights = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants.items()]
    weights.append(numpy_helper.from_array(np.array([0, SIDE * SIDE, 3], np.int64), "flat"))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    weights.append(numpy_helper.from_array(np.array(1 / 127.5, np.float32), "scale"))
    weights.append(numpy_helper.from_array(np.array(1.0, np.float32), "shift"))
    node = helper.make_node
    if stage == 0:
        first = [
            node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
            node("Mul", ["float", "scale"], ["scaled"]),
            node("Sub", ["scaled", "shift"], ["centred"]),
            node("Reshape", ["centred", "flat"], ["hidden"]),
        ]
        source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", SIDE, SIDE, 3])
    else:
        first = []
        source = helper.make_tensor_value_info(
            "hidden", TensorProto.FLOAT, ["b", SIDE * SIDE, WIDTH]
        )
    rest = [
        node("MatMul", ["hidden", "mix"], ["mixed"]),
        node("Tanh", ["mixed"], ["tokens"]),
        node("ReduceMean", ["tokens", "one"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "head"], ["logits"]),
        node("MatMul", ["mean", "trust"], ["trusted"]),
        node("Squeeze", ["trusted", "one"], ["gate"]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2]),
        helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["b"]),
    ]
    if not last:
        outputs.append(
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["b", SIDE * SIDE, WIDTH])
        )
    used = [w for w in weights if any(w.name in n.input for n in first + rest)]
    graph = helper.make_graph(first + rest, f"stage{stage}", [source], outputs, used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_engines(folder: Path) -> None:
    """The two stages below `folder/targets/`, for both targets."""
    ov = openvino_engine.import_quietly()
    for target in (ONNX, OPENVINO):
        (folder / "targets" / target).mkdir(parents=True)
    for stage in (0, 1):
        path = folder / "targets" / ONNX / f"stage{stage}.onnx"
        onnx.save(make_stage(stage, last=stage == 1), path)
        ir = folder / "targets" / OPENVINO / f"stage{stage}.xml"
        ov.save_model(ov.convert_model(path), ir, compress_to_fp16=False)


def target_of(name: str, images_per_s: float) -> manifest.Target:
    backend, precision, device = name.split("/")
    suffixes = ("onnx",) if backend == "onnxruntime" else ("xml", "bin")
    stages = tuple(
        manifest.TargetStage(files=tuple(f"targets/{name}/stage{s}.{x}" for x in suffixes))
        for s in (0, 1)
    )
    return manifest.Target(
        backend=backend,
        precision=precision,
        device=device,
        stages=stages,
        images_per_s=images_per_s,
        parity={"logits": 0.0},
    )


def gate_rule(tau_logit: float | None) -> ExitRule:
    return ExitRule(score="gate", platt_a=1.5, platt_b=-0.25, temperature=1.25, tau_logit=tau_logit)


def make_decision(taus: tuple[float | None, ...]) -> Decision:
    return Decision(policy="certified", exits=tuple(map(gate_rule, taus)), set_logit=0.0)


def make_certificate(
    preprocess: manifest.Preprocess, decision: Decision, engines: dict[str, str]
) -> manifest.Certificate:
    return manifest.Certificate(
        status="CERTIFIED",
        method="fixed-sequence",
        promise="Of the images acted on, at most 1 % are wrong.",
        advice="",
        alpha=0.01,
        delta=0.05,
        coverage_floor=0.7,
        n=1000,
        accepted=800,
        errors=1,
        risk_upper=0.006,
        coverage=0.8,
        coverage_lower=0.778,
        exit_counts=(500, 300),
        class_errors=(1, 0),
        class_accepted=(400, 400),
        path_length=10,
        path_tested=4,
        calibration_sha256="0" * 64,
        calibration_uses=1,
        engines=engines,
        binding=manifest.binding(preprocess, decision, engines),
    )


def make_manifest(hashes: dict[str, str], decision: Decision) -> Manifest:
    preprocess = manifest.Preprocess(height=SIDE, width=SIDE)
    targets = {ONNX: target_of(ONNX, 100.0), OPENVINO: target_of(OPENVINO, 200.0)}
    engines = {
        name: {path: hashes[path] for path in bundle.engine_files(target)}
        for name, target in targets.items()
    }
    stage = manifest.StageInfo(
        name="s", blocks=(0, 1), parameters=20, macs=1000, tokens=SIDE * SIDE, width=WIDTH
    )
    return Manifest(
        format=manifest.FORMAT,
        format_version=manifest.FORMAT_VERSION,
        made_by=manifest.MadeBy(
            version="0.1.0",
            command="cascade-compile bundle",
            git_commit="0" * 40,
            seed=0,
            created="2026-01-01T00:00:00Z",
            versions={},
            machine="test",
        ),
        model=manifest.Model(
            name="two-stage",
            preset="tiny",
            classes=("clear", "roadwork"),
            parameters=40,
            exits=(1, 2),
            data="flat colours",
        ),
        preprocess=preprocess,
        stages=(stage, stage),
        targets=targets,
        decision={name: decision for name in targets},
        certificates={n: make_certificate(preprocess, decision, engines[n]) for n in targets},
    )


def rewrite(folder: Path, change: manifest.Manifest) -> None:
    """Put another manifest into a bundle and seal it again: hashes then say nothing."""
    (folder / bundle.MANIFEST).write_bytes(manifest.encode(change))
    bundle.seal(folder)


@dataclass(frozen=True)
class Sample:
    """The template bundle and what it was made of."""

    path: Path
    manifest: Manifest
    decision: Decision


def make_infeasible(sample: Sample) -> None:
    """Rewrite the bundle as one whose every certificate failed: nothing is acted on."""
    decision = make_decision((None, None))
    made = sample.manifest
    certificates = {
        name: msgspec.structs.replace(
            make_certificate(made.preprocess, decision, made.certificates[name].engines),
            status="INFEASIBLE",
        )
        for name in made.targets
    }
    rewrite(
        sample.path,
        msgspec.structs.replace(
            made, decision=dict.fromkeys(made.targets, decision), certificates=certificates
        ),
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """The sealed bundle, shared and never changed; `sample` gives a copy to damage."""
    folder = tmp_path_factory.mktemp("bundles") / "colours.cascade"
    write_engines(folder)
    bundle.seal(folder)
    hashes = bundle.parse_sums((folder / bundle.SUMS).read_bytes())
    images = make_images(6, seed=7)

    def read(path: str) -> bytes:
        return (folder / path).read_bytes()

    stages = load_target(target_of(ONNX, 1.0), read, threads=1)
    scores = [1.5 * outputs.gate - 0.25 for outputs in stages.forward_all(make_images(64))]
    taus = tuple(float(np.float32(np.median(score))) for score in scores)
    decision = make_decision(taus)
    made = make_manifest(hashes, decision)
    tensors: golden.Tensors = {}
    for name, target in made.targets.items():
        tensors |= golden.record(load_target(target, read, threads=1), decision, images, name)
    save_file(tensors, folder / bundle.GOLDEN)
    (folder / "report.html").write_text("<p>the guarantee card</p>\n")
    rewrite(folder, made)
    return Sample(folder, made, decision)


@pytest.fixture
def sample(template: Sample, tmp_path: Path) -> Sample:
    folder = tmp_path / template.path.name
    shutil.copytree(template.path, folder)
    return Sample(folder, template.manifest, template.decision)


@pytest.fixture
def image_files(tmp_path: Path) -> list[Path]:
    """Five readable PNGs in a folder of their own."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for index, pixels in enumerate(make_images(5, seed=3)):
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is deserialised."""

    def loaded(*_: object, **__: object) -> NoReturn:
        pytest.fail("an engine was loaded before the bundle was verified")

    monkeypatch.setattr(engines, "load", loaded)
