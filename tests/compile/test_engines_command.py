"""`cascade-compile engines`: a target finished from its recipe, certified and sealed with the rest.

The whole way runs here with recipes of backends that can be built here; TensorRT's differs from it
in libnvinfer's own calls alone (test_tensorrt_api.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cascade_calib.recertify import RecertifyRequest
from cascade_compile import bundle as bundles
from cascade_compile import recipes, targets
from cascade_compile.engines import EnginesRequest, finish
from cascade_compile.parity import LIMITS, ParityError
from cascade_runtime import manifest as manifests
from cascade_runtime.bundle import Bundle, seal
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import BundleError, ConfigError, TargetError

from .conftest import ONNX, Made

FLOAT = "onnxruntime/fp32"
HALF = "tensorrt/fp16"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def onnx_only(tmp_path_factory: pytest.TempPathFactory, trained, made: Made) -> Path:
    """A bundle for ONNX Runtime with a recipe of TensorRT, of OpenVINO and of itself."""
    from cascade_compile import build_target
    from cascade_compile.bundle import BundleRequest

    from .conftest import promise

    def copy(_model: object, _size: int, folder: Path) -> list[Path]:
        return [Path(shutil.copy(file, folder)) for file in made.onnx]

    request = BundleRequest(
        run=trained.run,
        out=tmp_path_factory.mktemp("recipes") / "squares.cascade",
        targets=(targets.parse(ONNX),),
        promise=promise("0.2"),
        threads=1,
        recipes=(FLOAT, HALF, "openvino/fp32"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_target, "export_stages", copy)
        bundles.build(request, say=lambda line: None)
    return request.out


@pytest.fixture
def with_recipes(onnx_only: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_only, tmp_path / "squares.cascade"))


def asked(bundle: Path, trained, target: str, **more: object) -> EnginesRequest:
    certify = RecertifyRequest(bundle, str(trained.run / "splits.json"), threads=1, **more)  # type: ignore[arg-type]
    return EnginesRequest(target, certify)


def quiet(line: str) -> None:
    pass


def test_recipe_lies_in_the_bundle_beside_certified_targets(onnx_only: Path) -> None:
    opened = Bundle.open(onnx_only)
    assert list(opened.manifest.targets) == [ONNX]
    assert list(opened.manifest.recipes) == [FLOAT, HALF, "openvino/fp32"]
    half = opened.manifest.recipes[HALF]
    assert [stage.files for stage in half.stages] == [
        ("recipes/tensorrt-fp16/typed0.onnx",),
        ("recipes/tensorrt-fp16/typed1.onnx",),
    ]
    assert half.islands == ()
    assert 0 < half.parity["max_difference"] < LIMITS["fp16"] * half.parity["largest_logit"]
    assert half.reference in opened.hashes


def test_reference_is_what_the_float32_network_says(onnx_only: Path, trained) -> None:
    opened = Bundle.open(onnx_only)
    path = opened.manifest.recipes[FLOAT].reference
    reference = recipes.read_reference(opened.read(path), path)
    assert len(reference.pixels) == recipes.REFERENCE_IMAGES
    own = Cascade.open(onnx_only, threads=1).stages.forward_all(reference.pixels)
    for ours, theirs in zip(reference.exits, own, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)


def test_another_target_is_finished_and_certified_with_the_old_one(
    with_recipes: Path, trained, tmp_path: Path
) -> None:
    out = tmp_path / "device.cascade"
    before = Bundle.open(with_recipes).manifest
    said: list[str] = []
    manifest = finish(asked(with_recipes, trained, "openvino/fp32", out=out), say=said.append)
    assert list(manifest.targets) == [ONNX, "openvino/fp32/cpu"]
    for name, certificate in manifest.certificates.items():
        assert certificate.claims == 2, "both share delta"
        assert certificate.status == "CERTIFIED"
        assert certificate.alpha == before.certificates[ONNX].alpha
        assert all(path in Bundle.open(out).hashes for path in certificate.engines), name
    parity = manifest.targets["openvino/fp32/cpu"].parity
    assert parity["max_difference"] < 1e-3 and parity["decision_flips"] == 0
    assert Bundle.open(with_recipes).manifest == before, "the old bundle stays as it was"
    cascade = Cascade.open(out, "openvino/fp32/cpu", threads=1, self_test=True)
    assert len(cascade.classify(list(trained.calib.pixels[:3]))) == 3
    assert any("calibration images are asked for the" in line for line in said)
    assert not list(tmp_path.glob(".*"))


def test_only_leaves_the_others_out_and_has_delta_to_itself(with_recipes: Path, trained) -> None:
    manifest = finish(asked(with_recipes, trained, "openvino/fp32", only=True), say=quiet)
    assert list(manifest.targets) == ["openvino/fp32/cpu"]
    assert manifest.certificates["openvino/fp32/cpu"].claims == 1
    opened = Bundle.open(with_recipes)
    assert not any(path.startswith("targets/onnxruntime") for path in opened.hashes)
    assert list(opened.manifest.recipes) == [FLOAT, HALF, "openvino/fp32"]


def test_target_that_is_there_already_is_made_anew(with_recipes: Path, trained) -> None:
    """Its old engine files give way to the new ones, whatever was in them."""
    edit_recipe(with_recipes, FLOAT, lambda model: setattr(model, "producer_name", "other"))
    manifest = finish(asked(with_recipes, trained, f"{FLOAT}/cpu"), say=quiet)
    assert list(manifest.targets) == [ONNX]
    file = manifest.targets[ONNX].stages[0].files[0]
    assert onnx.load(with_recipes / file).producer_name == "other"


def test_engine_that_is_not_the_network_is_refused_and_nothing_is_lost(
    with_recipes: Path, trained
) -> None:
    def wrong(model: onnx.ModelProto) -> None:
        [bias] = [w for w in model.graph.initializer if w.name.endswith("classifier.bias")]
        bias.CopyFrom(numpy_helper.from_array(np.array([9, 0], np.float32), bias.name))

    edit_recipe(with_recipes, FLOAT, wrong)
    before = {p: p.read_bytes() for p in with_recipes.rglob("*") if p.is_file()}
    with pytest.raises(ParityError, match=f"{FLOAT}/cpu: differs from the float32 network"):
        finish(asked(with_recipes, trained, FLOAT), say=quiet)
    assert {p: p.read_bytes() for p in with_recipes.rglob("*") if p.is_file()} == before
    assert not list(with_recipes.parent.glob(".*"))


def test_half_precision_is_held_against_the_network_before_it_ships(
    trained, tmp_path: Path, request_for, no_export: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe whose files are wrong on the processor already is not written."""
    monkeypatch.setitem(LIMITS, "fp16", 1e-7)
    request = request_for(tmp_path / "x.cascade", recipes=(HALF,))
    with pytest.raises(ParityError, match=f"recipe {HALF}: differs"):
        bundles.build(request, say=quiet)
    assert not (tmp_path / "x.cascade").exists()


def test_without_a_gpu_tensorrt_says_so_and_changes_nothing(with_recipes: Path, trained) -> None:
    reason = targets.engines.backend("tensorrt").unavailable("fp16", "sm*")
    if reason is None:
        pytest.skip("there is a GPU with TensorRT here")
    before = Bundle.open(with_recipes).hashes
    with pytest.raises(TargetError) as caught:
        finish(asked(with_recipes, trained, HALF), say=quiet)
    assert reason in str(caught.value)
    with pytest.raises(TargetError, match="no TensorRT plan can be built here"):
        finish(asked(with_recipes, trained, f"{HALF}/sm87"), say=quiet)
    assert Bundle.open(with_recipes).hashes == before


def test_bundle_without_that_recipe_lists_those_it_has(made: Made, with_recipes, trained) -> None:
    with pytest.raises(TargetError, match=r"no recipe for 'tensorrt/fp16' \(it has: none\)"):
        finish(asked(made.path, trained, HALF), say=quiet)
    with pytest.raises(TargetError, match=rf"'openvino/bf16/cpu' \(it has: {FLOAT}, {HALF}"):
        finish(asked(with_recipes, trained, "openvino/bf16/cpu"), say=quiet)


@pytest.mark.parametrize("name", ["x.bundle", "missing/x.cascade", "squares.cascade"])
def test_place_that_cannot_be_written_is_refused_at_once(
    with_recipes: Path, trained, name: str
) -> None:
    with pytest.raises(ConfigError, match="--out"):
        finish(asked(with_recipes, trained, FLOAT, out=with_recipes.parent / name), say=quiet)


def test_recipe_file_that_is_missing_is_found_at_opening(with_recipes: Path) -> None:
    (with_recipes / "recipes/tensorrt-fp16/typed1.onnx").unlink()
    seal(with_recipes)
    with pytest.raises(BundleError, match=r"typed1\.onnx: a file of a build recipe"):
        Bundle.open(with_recipes)


def test_recipe_under_another_name_is_refused(onnx_only: Path) -> None:
    manifest = Bundle.open(onnx_only).manifest
    other = {"tensorrt/fp32": manifest.recipes[HALF]}
    data = manifests.encode(msgspec.structs.replace(manifest, recipes=other))
    with pytest.raises(BundleError, match="recipe 'tensorrt/fp32' does not match"):
        manifests.decode(data)


def test_target_whose_device_is_not_here_becomes_a_recipe() -> None:
    if targets.device_here("tensorrt") != "sm*":
        pytest.skip("there is a GPU here")
    here, later = targets.sort_out([HALF, ONNX, HALF], [FLOAT])
    assert [str(name) for name in here] == [ONNX]
    assert later == (FLOAT, HALF)


def test_unknown_recipe_is_refused_with_the_list() -> None:
    with pytest.raises(TargetError, match=r"no recipe .* 'tensorrt/fp64'.*tensorrt/mixed"):
        recipes.parse("tensorrt/fp64")


def test_command_finishes_a_recipe(
    with_recipes: Path, trained, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "new.zip"
    options = ("--target", "openvino/fp32", "--data", trained.run / "splits.json", "--only")
    status, said, error = command("engines", with_recipes, *options, "--out", out, "--alpha", ".25")
    assert status == 0, error
    assert "openvino/fp32/cpu: CERTIFIED at alpha 25 %" in said
    assert list(Bundle.open(out).manifest.targets) == ["openvino/fp32/cpu"]


def edit_recipe(bundle: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change every stage file of a recipe that has what `change` looks for, and seal again."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    path = bundle / manifest["recipes"][name]["stages"][0]["files"][0]
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    seal(bundle)
