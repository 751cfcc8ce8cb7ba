"""Names of targets, and the engines that are built for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade_compile import targets
from cascade_compile.stages import split
from cascade_runtime import engines
from cascade_runtime.errors import TargetError
from cascade_train.exits import CascadeModel

NAMES = [str(name) for name in targets.every_target()]


@pytest.mark.parametrize("name", NAMES)
def test_name_is_taken_apart_and_put_together(name: str) -> None:
    target = targets.parse(name)
    assert str(target) == name
    assert "/" not in target.folder


@pytest.mark.parametrize(
    "name",
    [
        "tensorrt/fp16/cpu",
        "tensorrt/fp16/sm",
        "onnxruntime/bf16/cpu",
        "onnxruntime/fp32/gpu",
        "onnxruntime/fp32",
        "onnxruntime",
        "",
        "openvino/bf16/cpu/",
    ],
)
def test_target_that_cannot_be_built_is_refused_with_the_list_of_those_that_can(name: str) -> None:
    with pytest.raises(TargetError) as caught:
        targets.parse(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in NAMES)


def test_every_backend_that_is_built_for_can_be_run() -> None:
    assert set(targets.TARGETS) <= set(engines.known())
    for backend in targets.TARGETS:
        assert set(targets.builder(backend).TARGETS) <= set(engines.backend(backend).TARGETS)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("aot/")])
def test_engine_answers_as_the_exported_file_does(
    name: str, exported: list[Path], model: CascadeModel, trained, tmp_path: Path
) -> None:
    target = targets.parse(name)
    reason = engines.backend(target.backend).unavailable(target.precision, target.device)
    if reason is not None:
        pytest.skip(reason)
    pixels = trained.select.pixels[:3]
    wanted = load("onnxruntime", "fp32", [exported[0].name], exported[0].parent).run(pixels)
    source = targets.StageSource(0, exported[0], split(model, 32)[0], lambda: trained.select.pixels)
    built = targets.builder(target.backend).build(source, tmp_path, target.precision, target.device)
    assert sorted(built.files) == sorted(path.name for path in tmp_path.iterdir())
    have = load(target.backend, target.precision, list(built.files), tmp_path).run(pixels)
    limit = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.1}[target.precision]
    assert have.keys() == wanted.keys()
    for key, value in wanted.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(have[key], value, rtol=0, atol=limit * scale)


def load(backend: str, precision: str, files: list[str], folder: Path) -> engines.Engine:
    data = {name: (folder / name).read_bytes() for name in files}
    return engines.load(backend, data, files[0], precision=precision, device="cpu", threads=1)


def test_default_targets_all_run_here() -> None:
    chosen = targets.default_targets()
    assert str(chosen[-1]) == "onnxruntime/fp32/cpu"
    assert all(targets.runs_here(name) for name in chosen)


def test_default_falls_back_to_float32_where_the_processor_has_no_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_bf16(name: targets.TargetName) -> bool:
        return name.precision != "bf16"

    monkeypatch.setattr(targets, "runs_here", no_bf16)
    wanted = ["openvino/fp32/cpu", "onnxruntime/fp32/cpu"]
    assert [str(name) for name in targets.default_targets()] == wanted
