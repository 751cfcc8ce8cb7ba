"""Half precision: float32 exactly where the numbers of real images ask for it, and nowhere else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cascade_compile import fp16, onnx_files, ranges
from cascade_compile.as_written import AsWritten
from cascade_compile.layer_names import layer_names
from cascade_compile.parity import LIMITS
from cascade_runtime.errors import DataError

BLOCK = "blocks.0.mlp"
TOUCHED = {f"{BLOCK}.up_proj/MatMul", f"{BLOCK}.up_proj/Add", f"{BLOCK}/Gelu"}
TOUCHED |= {f"{BLOCK}.down_proj/MatMul"}
Outputs = dict[str, np.ndarray]


def run(model: onnx.ModelProto, batch: np.ndarray) -> Outputs:
    """As its types say: what does not fit float16 overflows."""
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "stage.onnx")
        return AsWritten(Path(folder) / "stage.onnx").run(batch)


def product(model: onnx.ModelProto, layer: str) -> onnx.TensorProto:
    """The weight of a linear layer, which the exporter leaves without its name."""
    names = layer_names(model.graph)
    [node] = [n for n in model.graph.node if names[n.name] == f"{layer}/MatMul"]
    [weight] = [w for w in model.graph.initializer if w.name in node.input]
    return weight


def scale(tensor: onnx.TensorProto, index: tuple[object, ...], factor: float) -> None:
    value = numpy_helper.to_array(tensor).copy()
    value[index] *= factor
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


@pytest.fixture
def stage(exported: list[Path]) -> onnx.ModelProto:
    return onnx.load(exported[0])


@pytest.fixture
def outlier(stage: onnx.ModelProto, tmp_path: Path) -> Callable[[float], Path]:
    """One hidden unit of one layer made huge, and taken back by the next layer: same answers."""

    def inject(factor: float) -> Path:
        scale(product(stage, f"{BLOCK}.up_proj"), (slice(None), 3), factor)
        [bias] = [w for w in stage.graph.initializer if w.name == f"{BLOCK}.up_proj.bias"]
        scale(bias, (3,), factor)
        scale(product(stage, f"{BLOCK}.down_proj"), (3,), 1 / factor)
        onnx.save(stage, tmp_path / "outlier.onnx")
        return tmp_path / "outlier.onnx"

    return inject


def half_of(file: Path, pixels: np.ndarray) -> fp16.Half:
    model = onnx.load(file)
    return fp16.to_half(model, fp16.demanded(model, ranges.measure(file, pixels)))


def test_without_outliers_nothing_stays_wide(exported: list[Path], trained) -> None:
    half = half_of(exported[0], trained.select.pixels)
    assert half.islands == {}
    assert half.figures == {"half_nodes": 1.0, "half_products": 1.0}
    onnx.checker.check_model(half.model, full_check=True)
    for weight in half.model.graph.initializer:
        assert weight.data_type != TensorProto.FLOAT, weight.name


def test_half_stage_answers_as_float32_does(exported: list[Path], trained) -> None:
    pixels = trained.select.pixels[:16]
    half = half_of(exported[0], pixels)
    wanted, found = run(onnx.load(exported[0]), pixels), run(half.model, pixels)
    assert found.keys() == wanted.keys() == {"logits", "gate", "tokens"}
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        assert 0 < differs(found[name], value) < LIMITS["fp16"], name


def test_later_stage_takes_and_gives_float32(exported: list[Path], trained) -> None:
    pixels = trained.select.pixels[:16]
    tokens = run(onnx.load(exported[0]), pixels)["tokens"]
    half = half_of(exported[1], tokens)
    assert half.figures["half_products"] == 1.0
    wanted, found = run(onnx.load(exported[1]), tokens), run(half.model, tokens)
    for name, value in wanted.items():
        assert differs(found[name], value) < LIMITS["fp16"]


@pytest.mark.parametrize("factor", [5e5, 3e6])
def test_outlier_becomes_an_island_and_nothing_else_does(
    outlier: Callable[[float], Path], trained, factor: float
) -> None:
    """At 3e6 the layer's own weights are beyond float16 too."""
    file, pixels = outlier(factor), trained.select.pixels
    half = half_of(file, pixels)
    assert set(half.islands) == TOUCHED
    assert 0.7 < half.figures["half_products"] < 1.0
    wanted, found = run(onnx.load(file), pixels[:16]), run(half.model, pixels[:16])
    for name, value in wanted.items():
        assert differs(found[name], value) < LIMITS["fp16"], name


@pytest.mark.parametrize("factor", [5e5, 3e6])
def test_outlier_without_its_island_breaks_the_stage(
    outlier: Callable[[float], Path], trained, factor: float
) -> None:
    file, pixels = outlier(factor), trained.select.pixels[:16]
    found = run(fp16.to_half(onnx.load(file), {}).model, pixels)
    assert not np.isfinite(found["logits"]).all()


def test_weight_that_float16_can_only_hold_badly_stays_wide(
    stage: onnx.ModelProto, trained, tmp_path: Path
) -> None:
    """A LayerScale of 1e-7, and the layer before it larger by as much: same answers."""
    [tiny] = [w for w in stage.graph.initializer if w.name == "blocks.0.layer_scale2.lambda1"]
    scale(tiny, (...,), 1e-7)
    onnx.save(stage, tmp_path / "tiny.onnx")
    half = half_of(tmp_path / "tiny.onnx", trained.select.pixels)
    assert set(half.islands) == {"blocks.0.layer_scale2/Mul"}
    assert "too small" in half.islands["blocks.0.layer_scale2/Mul"]


def test_sum_that_would_overflow_on_its_way_is_found(
    stage: onnx.ModelProto, trained, tmp_path: Path
) -> None:
    """Two hidden units that cancel: no tensor is large, the running sum between them is."""
    up, down = product(stage, f"{BLOCK}.up_proj"), product(stage, f"{BLOCK}.down_proj")
    value = numpy_helper.to_array(up).copy()
    value[:, 4] = value[:, 3]
    up.CopyFrom(numpy_helper.from_array(value, up.name))
    [bias] = [w for w in stage.graph.initializer if w.name == f"{BLOCK}.up_proj.bias"]
    value = numpy_helper.to_array(bias).copy()
    value[[3, 4]] = 5.0
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))
    value = numpy_helper.to_array(down).copy()
    value[3], value[4] = 2e4, -2e4
    down.CopyFrom(numpy_helper.from_array(value, down.name))
    onnx.save(stage, tmp_path / "cancels.onnx")
    half = half_of(tmp_path / "cancels.onnx", trained.select.pixels[:32])
    assert set(half.islands) == {f"{BLOCK}.down_proj/MatMul"}
    assert "sums up to" in half.islands[f"{BLOCK}.down_proj/MatMul"]


def test_mixed_keeps_norms_and_softmax_wide(stage: onnx.ModelProto, trained) -> None:
    kinds = ("LayerNormalization", "Softmax")
    half = fp16.to_half(stage, fp16.by_kind(stage, kinds, "by definition"))
    operations = {name.rpartition("/")[2].partition("#")[0] for name in half.islands}
    assert operations == set(kinds)
    assert half.figures["half_products"] == 1.0
    pixels = trained.select.pixels[:8]
    wanted, found = run(stage, pixels), run(half.model, pixels)
    assert differs(found["logits"], wanted["logits"]) < LIMITS["mixed"]


def test_pixels_are_only_cast_since_tensorrt_lets_uint8_do_nothing_else(
    exported: list[Path], trained
) -> None:
    half = half_of(exported[0], trained.select.pixels[:8])
    readers = [n.op_type for n in half.model.graph.node if "pixels" in n.input]
    assert readers == ["Cast"]


def test_ranges_are_those_of_the_tensors(exported: list[Path], trained) -> None:
    pixels = trained.select.pixels[:11]
    found = ranges.measure(exported[0], pixels).values
    outputs = run(onnx.load(exported[0]), pixels)
    for name, value in outputs.items():
        assert found[name] == pytest.approx(np.abs(value).max(), rel=1e-4)


def test_stage_that_is_not_finite_in_float32_is_no_island_but_an_error(
    changed: Callable[[float], Path], exported: list[Path], trained
) -> None:
    tokens = run(onnx.load(exported[0]), trained.select.pixels[:4])["tokens"]
    with pytest.raises(DataError, match="is not finite in float32"):
        ranges.measure(changed(float("nan")), tokens)


def test_names_are_unique_and_speak_of_layers(stage: onnx.ModelProto) -> None:
    names = layer_names(stage.graph)
    assert len(set(names.values())) == len(names) == len(stage.graph.node)
    for wanted in ("attention.q_proj", "attention.k_proj", "attention.o_proj", "mlp.up_proj"):
        assert f"blocks.0.{wanted}/MatMul" in names.values()
    assert {"blocks.0.attention/Softmax", "heads.classifier/Gemm"} <= set(names.values())


def test_large_weights_go_beside_the_file(
    stage: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert onnx_files.save(stage, tmp_path / "stage0.onnx") == ("stage0.onnx",)
    monkeypatch.setattr(onnx_files, "INSIDE_BYTES", 1000)
    assert onnx_files.save(stage, tmp_path / "stage1.onnx") == ("stage1.onnx", "stage1.onnx.data")
    beside = (tmp_path / "stage1.onnx.data").stat()
    assert beside.st_size > 10_000 and beside.st_mode & 0o777 == 0o644  # others may run it
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    assert ranges.measure(tmp_path / "stage1.onnx", pixels).values["logits"] > 0


def differs(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference as a share of the largest value."""
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def test_ranges_are_taken_where_the_tensor_is_made(exported: list[Path]) -> None:
    """Or every tensor of a large network would be kept until the last one was made."""
    model = onnx.load(exported[1])
    ranges._add_probes(model)
    nodes = list(model.graph.node)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output}
    probes = [at for at, node in enumerate(nodes) if any("probe/" in name for name in node.output)]
    assert len(probes) > 100
    for at in probes:
        made = max((makers[name] for name in nodes[at].input if name in makers), default=at - 1)
        between = [n for n in nodes[made + 1 : at] if not any("probe/" in o for o in n.output)]
        assert len(between) <= 1, nodes[at].name  # a product's terms stand behind the product
