"""The exported files: what goes in, what comes out, and what is not in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch.nn.functional import scaled_dot_product_attention

from cascade_compile import attention, export, onnx_files, targets
from cascade_compile.export import ExportError, export_stages
from cascade_compile.onnx_files import data_file
from cascade_compile.stages import Stage, split
from cascade_compile.targets import StageSource
from cascade_runtime import engines
from cascade_train.exits import CascadeModel

SIDE = 32


@pytest.fixture(scope="module")
def graphs(exported: list[Path]) -> list[onnx.GraphProto]:
    return [onnx.load(path).graph for path in exported]


def shape(value: onnx.ValueInfoProto) -> list[int | None]:
    """Sizes, None where free."""
    dims = value.type.tensor_type.shape.dim
    return [None if d.dim_param else d.dim_value for d in dims]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_one_file_answers_every_batch_size(
    exported: list[Path], model: CascadeModel, trained, batch: int
) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    hidden = trained.select.pixels[:batch]
    for path, stage in zip(exported, split(model, SIDE), strict=True):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        have = session.run(None, {stage.input_name: hidden})
        with torch.no_grad():
            wanted = stage(torch.from_numpy(hidden))
        assert len(have) == len(wanted)
        for ours, theirs in zip(have, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)
        hidden = have[-1]


def test_pixels_enter_as_uint8_and_only_the_batch_is_free(graphs: list[onnx.GraphProto]) -> None:
    first, second = graphs
    assert first.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    values = {v.name: shape(v) for graph in graphs for v in (*graph.input, *graph.output)}
    assert values == {
        "pixels": [None, 32, 32, 3],
        "tokens_in": [None, 17, 128],
        "logits": [None, 2],
        "gate": [None],
        "tokens": [None, 17, 128],
    }
    assert [v.name for v in first.output] == ["logits", "gate", "tokens"]
    assert [v.name for v in second.output] == ["logits", "gate"]


def test_auxiliary_heads_are_training_only(
    graphs: list[onnx.GraphProto], model: CascadeModel
) -> None:
    for graph, head in zip(graphs, model.exits.heads, strict=True):
        arrays = [numpy_helper.to_array(w) for w in graph.initializer]

        def held(weight: torch.Tensor, arrays: list[np.ndarray] = arrays) -> bool:
            wanted = weight.detach().numpy()
            return any(np.array_equal(a, w) for a in arrays for w in (wanted, wanted.T))

        assert held(head.classifier.weight)  # so that the next line can fail
        assert not held(head.auxiliary.weight)


def test_no_node_branches_or_computes_positions(graphs: list[onnx.GraphProto]) -> None:
    for graph in graphs:
        kinds = {node.op_type for node in graph.node}
        assert not kinds & {"If", "Loop", "Scan", "Sin", "Cos", "NonZero", "Range"}
        assert {"LayerNormalization", "Gelu", "Softmax"} <= kinds
        assert {node.domain for node in graph.node} == {""}


def test_attention_is_two_products_and_a_softmax(graphs: list[onnx.GraphProto]) -> None:
    for graph, free in zip(graphs, (1, 0), strict=True):  # of the batch, for the class tokens
        assert sum(node.op_type == "Shape" for node in graph.node) == free
        makers = {name: node for node in graph.node for name in node.output}
        softmax = [node for node in graph.node if node.op_type == "Softmax"]
        assert len(softmax) == 1
        scores = makers[softmax[0].input[0]]
        query, key = (makers[name] for name in scores.input)
        assert (scores.op_type, query.op_type, key.op_type) == ("MatMul", "Add", "Transpose")
        assert list(key.attribute[0].ints) == [0, 1, 3, 2]
        assert makers[key.input[0]].op_type == "Add", "RoPE, and no product with a number"


@pytest.mark.parametrize(
    ("scale", "causal", "masked"),
    [(1.0, False, False), (0.5, False, True), (None, False, False), (1.0, True, False)],
)
def test_attention_is_what_torch_computes_or_is_refused(
    tmp_path: Path, scale: float | None, causal: bool, masked: bool
) -> None:
    class Attention(torch.nn.Module):
        def forward(self, *parts: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(*parts, scale=scale, is_causal=causal)

    drawn = torch.Generator().manual_seed(0)
    parts = tuple(torch.randn(2, 3, 5, 8, generator=drawn) for _ in range(3))
    if masked:
        parts = (*parts, torch.randn(2, 1, 1, 5, generator=drawn))
    path = tmp_path / "attention.onnx"

    def made() -> None:
        table = attention.table()
        with export.quiet():
            torch.onnx.export(Attention(), parts, path, dynamo=True, custom_translation_table=table)

    if scale is None or causal:
        with pytest.raises(Exception, match="attention of another kind"):
            made()
        return
    made()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    fed = {name: part.numpy() for name, part in zip(names, parts, strict=True)}
    wanted = scaled_dot_product_attention(*parts, scale=scale).numpy()
    np.testing.assert_allclose(session.run(None, fed)[0], wanted, rtol=0, atol=1e-6)


def test_weights_are_inside_the_file(exported: list[Path], graphs: list[onnx.GraphProto]) -> None:
    assert sorted(p.name for p in exported[0].parent.iterdir()) == ["stage0.onnx", "stage1.onnx"]
    for graph in graphs:
        assert not any(w.external_data for w in graph.initializer)


def test_files_hold_no_path_of_this_machine(exported: list[Path]) -> None:
    here = Path(export.__file__).parents[2]
    for path in exported:
        data = path.read_bytes()
        for word in (str(here), "site-packages", "stack_trace", str(path.parent)):
            assert word.encode() not in data


def test_network_that_cannot_be_exported_is_refused_by_stage(
    model: CascadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match="stage 0 cannot be exported to ONNX: no such operator"):
        export_stages(model, SIDE, tmp_path)


@pytest.mark.parametrize("what", ["names", "batch", "side"])
def test_graph_that_is_not_as_stated_is_refused(
    exported: list[Path], model: CascadeModel, tmp_path: Path, what: str
) -> None:
    stage: Stage = split(model, SIDE)[0]
    made = onnx.load(exported[0])
    dims = made.graph.input[0].type.tensor_type.shape.dim
    if what == "names":
        stage.is_first = False
    elif what == "batch":
        dims[0].dim_value = 3
    else:
        dims[1].dim_param = "height"
    path = tmp_path / "stage0.onnx"
    onnx.save(made, path)
    words = "inputs and outputs are" if what == "names" else "batch must be the only free axis"
    with pytest.raises(ExportError, match=words):
        export._check(path, stage)


@pytest.fixture
def beside(
    model: CascadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[StageSource]:
    """The stages as those of a large network are written: weights beside the graph."""
    monkeypatch.setattr(onnx_files, "INSIDE_BYTES", 0)
    files = export_stages(model, SIDE, tmp_path)
    modules = split(model, SIDE)
    return [
        StageSource(i, file, module, lambda: np.zeros((1, SIDE, SIDE, 3), np.uint8))
        for i, (file, module) in enumerate(zip(files, modules, strict=True))
    ]


def test_large_stage_keeps_its_weights_in_a_file_beside_it(beside: list[StageSource]) -> None:
    for source in beside:
        weights = 4 * sum(p.numel() for p in source.module.parameters())
        assert (
            source.onnx_file.stat().st_size
            < 0.1 * weights
            < data_file(source.onnx_file).stat().st_size
        )


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_of_a_large_stage_answer_as_those_of_a_small_one(
    name: str, beside: list[StageSource], exported: list[Path], trained, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    pixels = trained.select.pixels[:3]
    built = targets.builder(name).build(beside[0], folder, "fp32", "cpu")
    files = {file: (folder / file).read_bytes() for file in built.files}
    have = engines.load(name, files, built.files[0], precision="fp32", device="cpu").run(pixels)
    whole = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    wanted = whole.run(["logits", "gate", "tokens"], {"pixels": pixels})
    for key, value in zip(("logits", "gate", "tokens"), wanted, strict=True):
        np.testing.assert_allclose(have[key], value, atol=1e-4)
