"""A real bundle of two small ONNX stages, and the images that it answers about.

Label 1 is an orange cast. Stage 0 sees a noisy sign of it (red minus blue), stage 1 a better one
(green as well); both know how sure they are, so that a promise can be certified.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from cascade_runtime import bundle, manifest
from cascade_runtime.engines import openvino as openvino_engine
from cascade_runtime.manifest import Certificate, Decision, ExitRule, Manifest, Preprocess

SIDE = 8
ONNX = "onnxruntime/fp32/cpu"
OPENVINO = "openvino/fp32/cpu"
CLASSES = ("clear", "roadwork")


def write_images(folder: Path, n: int, seed: int, *, dusk: float = 0.0, flat: bool = False) -> Path:
    """`n` images in class folders, or all in one; `dusk` takes colour, and with it the evidence."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        label = int(rng.integers(2))
        signs = (2 * label - 1) * 25 * (1 - dusk) + rng.normal(0, [22, 15])
        red_blue, green = np.clip(signs, -60, 60)
        colour = np.array([110 + red_blue, 110 + green, 110 - red_blue])
        pixels = colour + rng.normal(0, 4, (SIDE, SIDE, 3))
        place = folder if flat else folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place / f"{i:05}.png")
    return folder


def _stage(last: bool) -> onnx.ModelProto:
    """Logits -+s and gate |s| - 1; s is a weighted mean of the pixels' channels."""
    weights = [0.0, 0.5, 0.0] if last else [0.06, 0.0, -0.06]
    bias = -0.5 * 110 if last else 0.0
    constants = {
        "weights": np.array(weights, np.float32).reshape(3, 1),
        "bias": np.array(bias, np.float32),
        "both": np.array([[-0.5, 0.5]], np.float32),
        "one": np.array(1.0, np.float32),
        "axis": np.array([1], np.int64),
        "flat": np.array([0, SIDE * SIDE, 3], np.int64),
    }
    node = helper.make_node
    if last:
        source = helper.make_tensor_value_info("tokens_in", TensorProto.FLOAT, ["b", SIDE**2, 3])
        nodes = [node("ReduceMean", ["tokens_in", "axis"], ["mean"], keepdims=0)]
    else:
        source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", SIDE, SIDE, 3])
        nodes = [
            node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
            node("Reshape", ["float", "flat"], ["tokens"]),
            node("ReduceMean", ["tokens", "axis"], ["mean"], keepdims=0),
        ]
    nodes += [
        node("MatMul", ["mean", "weights"], ["weighed"]),
        node("Add", ["weighed", "bias"], ["s"]),
        node("MatMul", ["s", "both"], ["logits"]),
        node("Abs", ["s"], ["size"]),
        node("Sub", ["size", "one"], ["sure"]),
        node("Squeeze", ["sure", "axis"], ["gate"]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2]),
        helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["b"]),
    ]
    if not last:
        outputs.append(
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["b", SIDE**2, 3])
        )
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "stage",
        [source],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_bundle(folder: Path, targets: tuple[str, ...] = (ONNX,)) -> Path:
    """A sealed bundle that nobody has certified: it defers everything, at alpha 5 %."""
    described = {}
    for name in targets:
        place = f"targets/{name.replace('/', '-')}"
        (folder / place).mkdir(parents=True)
        files = []
        for i, last in enumerate((False, True)):
            path = folder / place / f"stage{i}.onnx"
            onnx.save(_stage(last), path)
            if name == OPENVINO:
                ov = openvino_engine.import_quietly()
                ov.save_model(ov.convert_model(path), path.with_suffix(".xml"), False)
                path.unlink()
            kinds = (".xml", ".bin") if name == OPENVINO else (".onnx",)
            files.append(tuple(f"{place}/stage{i}{kind}" for kind in kinds))
        backend, precision, device = name.split("/")
        described[name] = manifest.Target(
            backend=backend,
            precision=precision,
            device=device,
            stages=tuple(manifest.TargetStage(files=f) for f in files),
            images_per_s=1.0,
            parity={"max_difference": 0.0, "decision_flips": 1.0},
        )
    save_file({"images": np.zeros((1, SIDE, SIDE, 3), np.uint8)}, folder / bundle.GOLDEN)
    bundle.seal(folder)
    hashes = bundle.parse_sums((folder / bundle.SUMS).read_bytes())
    (folder / bundle.MANIFEST).write_bytes(manifest.encode(_manifest(described, hashes)))
    bundle.seal(folder)
    return folder


def _manifest(targets: dict[str, manifest.Target], hashes: dict[str, str]) -> Manifest:
    preprocess = Preprocess(height=SIDE, width=SIDE)
    rule = ExitRule(score="gate", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=None)
    decision = Decision(policy="certified", exits=(rule, rule), set_logit=0.0)
    engines = {
        name: {path: hashes[path] for path in bundle.engine_files(target)}
        for name, target in targets.items()
    }
    stages = tuple(
        manifest.StageInfo(
            name=f"stage {i}", blocks=(i, i + 1), parameters=4, macs=200, tokens=64, width=3
        )
        for i in (0, 1)
    )
    return Manifest(
        format=manifest.FORMAT,
        format_version=manifest.FORMAT_VERSION,
        made_by=manifest.MadeBy(
            version="0",
            command="by hand",
            git_commit="none",
            seed=0,
            created="2026-01-01T00:00:00Z",
            versions={},
            machine="another",
        ),
        model=manifest.Model(
            name="casts", preset="tiny", classes=CLASSES, parameters=8, exits=(1, 2), data="casts"
        ),
        preprocess=preprocess,
        stages=stages,
        targets=targets,
        decision={name: decision for name in targets},
        certificates={
            name: Certificate(
                status="INFEASIBLE",
                method="none",
                promise="none",
                advice="certify it",
                alpha=0.05,
                delta=0.1,
                coverage_floor=0.5,
                n=0,
                accepted=0,
                errors=0,
                risk_upper=1.0,
                coverage=0.0,
                coverage_lower=0.0,
                exit_counts=(0, 0),
                class_errors=(0, 0),
                class_accepted=(0, 0),
                path_length=0,
                path_tested=0,
                calibration_sha256="0" * 64,
                calibration_uses=1,
                engines=engines[name],
                binding=manifest.binding(preprocess, decision, engines[name]),
            )
            for name in targets
        },
    )
