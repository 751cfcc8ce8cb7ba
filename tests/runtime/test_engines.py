"""Engines: same outputs from every backend, from verified bytes only, safe to share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime import engines
from cascade_runtime.engines import Engine
from cascade_runtime.engines import onnxruntime as onnxruntime_engine
from cascade_runtime.engines import openvino as openvino_engine
from cascade_runtime.engines.onnx_external import external_locations
from cascade_runtime.errors import BundleError, TargetError
from cascade_runtime.stages import Stages, load_stages

from .conftest import ONNX, OPENVINO, SIDE, WIDTH, Sample, make_images, make_stage, target_of


def stages_of(sample: Sample, name: str) -> Stages:
    return load_stages(sample.manifest, name, lambda p: (sample.path / p).read_bytes(), threads=1)


@pytest.fixture(params=[ONNX, OPENVINO])
def stages(template: Sample, request: pytest.FixtureRequest) -> Stages:
    return stages_of(template, request.param)


def by_hand(pixels: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Both stages in plain numpy, float64."""
    weights = [
        {w.name: onnx.numpy_helper.to_array(w) for w in make_stage(s, s == 1).graph.initializer}
        for s in (0, 1)
    ]
    hidden = (pixels / 127.5 - 1.0).reshape(len(pixels), -1, 3)
    found = []
    for w in weights:
        hidden = np.tanh(hidden @ w["mix"].astype(np.float64))
        mean = hidden.mean(axis=1)
        found.append({"logits": mean @ w["head"], "gate": (mean @ w["trust"])[:, 0]})
    return found


def test_outputs_are_the_networks_own(stages: Stages) -> None:
    pixels = make_images(7)
    for found, expected in zip(stages.forward_all(pixels), by_hand(pixels), strict=True):
        assert found.logits.dtype == found.gate.dtype == np.float32
        np.testing.assert_allclose(found.logits, expected["logits"], atol=2e-4)
        np.testing.assert_allclose(found.gate, expected["gate"], atol=2e-4)


def test_first_stage_gives_tokens_and_the_last_gives_none(stages: Stages) -> None:
    first = stages.engines[0].run(make_images(2))
    assert first["tokens"].shape == (2, SIDE * SIDE, WIDTH)
    assert set(stages.engines[1].run(first["tokens"])) == {"logits", "gate"}


def test_outputs_survive_the_next_run(stages: Stages) -> None:
    engine = stages.engines[0]
    first = engine.run(make_images(2, seed=1))
    kept = {name: value.copy() for name, value in first.items()}
    engine.run(make_images(2, seed=2))
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_batch_of_any_size_equals_its_images_one_by_one(stages: Stages) -> None:
    pixels = make_images(43)
    whole = stages.forward_all(pixels)
    for row in (0, 31, 32, 42):
        alone = stages.forward_all(pixels[row : row + 1])
        for one, many in zip(alone, whole, strict=True):
            np.testing.assert_allclose(one.logits[0], many.logits[row], atol=1e-5)
    assert [len(e.gate) for e in stages.forward_all(pixels[:0])] == [0, 0]


def test_engine_only_ever_sees_the_fixed_batch_sizes(template: Sample) -> None:
    real = stages_of(template, ONNX)
    seen: list[int] = []

    class Watched:
        def __init__(self, engine: Engine) -> None:
            self.engine = engine

        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            seen.append(len(batch))
            return self.engine.run(batch)

    watched = Stages([Watched(engine) for engine in real.engines], batch_sizes=(1, 4, 8))
    watched.forward_all(make_images(22))
    assert seen == [8, 8, 4, 1, 1] * 2
    seen.clear()
    watched.warm_up(SIDE, SIDE)
    assert sorted(set(seen)) == [1, 4, 8]


def test_threads_share_an_engine(stages: Stages) -> None:
    batches = [make_images(3, seed=seed) for seed in range(24)]
    alone = [stages.forward_all(batch)[-1].logits for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: stages.forward_all(b)[-1].logits, batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_bf16_runs_in_bf16_where_the_processor_has_it(template: Sample) -> None:
    reason = openvino_engine.unavailable("bf16", "cpu")
    if reason is not None:
        pytest.skip(reason)
    folder = template.path / "targets" / OPENVINO
    files = {n: (folder / n).read_bytes() for n in ("stage0.xml", "stage0.bin")}
    pixels = make_images(8)
    logits = {}
    for precision in ("fp32", "bf16"):
        engine = engines.load(
            "openvino", files, "stage0.xml", precision=precision, device="cpu", threads=1
        )
        logits[precision] = engine.run(pixels)["logits"]
    assert logits["bf16"].dtype == np.float32
    difference = np.abs(logits["bf16"] - logits["fp32"]).max()
    assert 1e-5 < difference < 0.3, "bf16 must differ from fp32, and not by much"


def openvino_stage(template: Sample) -> Engine:
    folder = template.path / "targets" / OPENVINO
    files = {n: (folder / n).read_bytes() for n in ("stage0.xml", "stage0.bin")}
    return engines.load("openvino", files, "stage0.xml", precision="fp32", device="cpu", threads=2)


@pytest.mark.parametrize("name", [ONNX, OPENVINO])
def test_stages_side_by_side_answer_as_the_others_to_the_last_bit(
    template: Sample, name: str
) -> None:
    read = lambda path: (template.path / path).read_bytes()  # noqa: E731
    stages = load_stages(template.manifest, name, read, threads=2)
    beside = stages.side_by_side()
    assert beside is not None
    batches = [make_images(size, seed=size) for size in (1, 2, 3, 8, 12, 32, 35)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(beside.forward_all, batches))
    for batch, found in zip(batches, together, strict=True):
        for exit_found, expected in zip(found, stages.forward_all(batch), strict=True):
            np.testing.assert_array_equal(exit_found.logits, expected.logits)
            np.testing.assert_array_equal(exit_found.gate, expected.gate)


@pytest.mark.parametrize(
    ("name", "module", "limit"),
    [
        (ONNX, onnxruntime_engine, "_DIVISIBLE_LIMIT"),
        (OPENVINO, openvino_engine, "_STREAMS_LIMIT"),
    ],
)
def test_no_second_form_of_an_engine_for_one_thread_or_of_many_weights(
    template: Sample,
    name: str,
    module: object,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = lambda path: (template.path / path).read_bytes()  # noqa: E731
    assert load_stages(template.manifest, name, read, threads=1).side_by_side() is None
    monkeypatch.setattr(module, limit, 0)
    assert load_stages(template.manifest, name, read, threads=2).side_by_side() is None


def test_stages_whose_engine_has_one_form_alone_are_not_divisible() -> None:
    class Plain:
        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            return {}

    assert Stages([Plain()]).side_by_side() is None


def test_stages_run_no_more_images_together_than_they_are_told(template: Sample) -> None:
    stages = stages_of(template, ONNX)
    assert stages.up_to(5).batch_sizes == (5, 4, 3, 2, 1)
    assert stages.up_to(1).batch_sizes == (1,)


def test_openvino_in_parts_answers_as_the_whole_batch(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = openvino_stage(template)
    monkeypatch.setattr(openvino_engine, "_STREAMS_LIMIT", 0)
    whole = openvino_stage(template)
    for size in (1, 2, 3, 8, 12, 32, 34):
        pixels = make_images(size, seed=size)
        expected = whole.run(pixels)
        for name, values in cut.run(pixels).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=f"{name} {size}")


def test_openvino_stage_of_many_weights_is_compiled_once(
    template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    real = openvino_engine._core().compile_model

    class Counting:
        read_model = staticmethod(openvino_engine._core().read_model)

        def compile_model(self, *words: object) -> object:
            made.append(words)
            return real(*words)

    monkeypatch.setattr(openvino_engine, "_core", Counting)
    for limit, expected in ((0, 1), (1 << 28, 2)):
        monkeypatch.setattr(openvino_engine, "_STREAMS_LIMIT", limit)
        made.clear()
        engine = openvino_stage(template)
        assert len(made) == 1, "the second is made when a batch first needs it"
        engine.run(make_images(4))
        engine.run(make_images(4))
        assert len(made) == expected


@pytest.mark.parametrize("name", [ONNX, OPENVINO])
def test_file_that_is_no_engine_is_a_target_error(name: str) -> None:
    backend = name.split("/")[0]
    main = "a/stage0.onnx" if backend == "onnxruntime" else "a/stage0.xml"
    files = {main: b"nonsense"} | ({"a/stage0.bin": b""} if backend == "openvino" else {})
    with pytest.raises(TargetError, match=r"stage0.*: (not an ONNX file|not an OpenVINO graph)"):
        engines.load(backend, files, main, precision="fp32", device="cpu", threads=1)


def test_openvino_stage_without_weights_is_refused() -> None:
    with pytest.raises(TargetError, match=r"an \.xml with its \.bin"):
        openvino_engine.load({"a.xml": b""}, "a.xml", precision="fp32", device="cpu", threads=1)


def external_onnx(folder: Path) -> dict[str, bytes]:
    """Stage 0 with its weights in a file of their own."""
    onnx.save(
        make_stage(0, last=False),
        folder / "stage0.onnx",
        save_as_external_data=True,
        location="stage0.data",
        size_threshold=60,  # takes the weights, leaves the shape that graph checks need
    )
    return {f"t/{n}": (folder / n).read_bytes() for n in ("stage0.onnx", "stage0.data")}


def test_external_weights_come_from_the_verified_bytes(tmp_path: Path, stages: Stages) -> None:
    files = external_onnx(tmp_path)
    (tmp_path / "stage0.data").unlink()
    engine = engines.load(
        "onnxruntime", files, "t/stage0.onnx", precision="fp32", device="cpu", threads=1
    )
    pixels = make_images(2)
    np.testing.assert_allclose(
        engine.run(pixels)["logits"], stages.engines[0].run(pixels)["logits"], atol=1e-4
    )


def test_external_weights_are_never_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = external_onnx(tmp_path)
    monkeypatch.chdir(tmp_path)  # where the library would look by itself
    del files["t/stage0.data"]
    with pytest.raises(BundleError, match=r"weights lie in 'stage0\.data', which is none of this"):
        engines.load(
            "onnxruntime", files, "t/stage0.onnx", precision="fp32", device="cpu", threads=1
        )
    monkeypatch.setattr(onnxruntime_engine, "check_external_data", lambda *_: None)
    with pytest.raises(TargetError, match="cannot load it"):  # nor would the library do it
        engines.load(
            "onnxruntime", files, "t/stage0.onnx", precision="fp32", device="cpu", threads=1
        )


def external_tensor(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def hidden_tensor(where: str, tensor: onnx.TensorProto) -> onnx.ModelProto:
    """A model with the tensor in one of the places where ONNX lets a tensor be."""
    model = make_stage(0, last=False)
    inner = onnx.GraphProto(name="inner")
    inner.initializer.append(tensor)
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "sparse initializer":
        model.graph.sparse_initializer.add(values=tensor)
    elif where == "constant":
        model.graph.node.append(constant)
    elif where == "subgraph":
        model.graph.node.append(
            onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        )
    elif where == "list of subgraphs":
        model.graph.node[0].attribute.add(name="g", type=onnx.AttributeProto.GRAPHS, graphs=[inner])
    elif where == "list of tensors":
        model.graph.node[0].attribute.add(
            name="t", type=onnx.AttributeProto.TENSORS, tensors=[tensor]
        )
    elif where == "function":
        model.functions.add(name="f", domain="d").node.append(constant)
    else:
        model.training_info.add(algorithm=inner)
    return model


@pytest.mark.parametrize(
    "where",
    [
        "initializer",
        "sparse initializer",
        "constant",
        "subgraph",
        "list of subgraphs",
        "list of tensors",
        "function",
        "training",
    ],
)
@pytest.mark.parametrize("location", ["/etc/passwd", "../stage1.data", "a\\b", "", "x\0y"])
def test_external_data_outside_the_stage_is_refused_before_the_library_sees_it(
    where: str, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(*_: object, **__: object) -> NoReturn:
        pytest.fail("the library was given the file")

    monkeypatch.setattr("onnxruntime.InferenceSession", seen)
    data = hidden_tensor(where, external_tensor(location)).SerializeToString()
    files = {"t/stage0.onnx": data, "t/stage0.data": bytes(8), "t/stage1.data": bytes(8)}
    with pytest.raises(BundleError, match=r"t/stage0\.onnx: its weights lie in"):
        engines.load(
            "onnxruntime", files, "t/stage0.onnx", precision="fp32", device="cpu", threads=1
        )


@given(st.data())
def test_external_data_of_any_bytes_ends_in_an_answer(data: st.DataObject) -> None:
    """Cut, flipped or random: locations, or one of our errors."""
    whole = hidden_tensor("subgraph", external_tensor("stage0.data")).SerializeToString()
    at = data.draw(st.integers(0, len(whole)))
    put = data.draw(st.binary(max_size=8))
    changed = whole[:at] + put + whole[at + data.draw(st.integers(0, 8)) :]
    with contextlib.suppress(TargetError):
        list(external_locations(changed, "x"))


def test_wrong_outputs_are_refused_not_guessed() -> None:
    class Mute:
        def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            return {"logits": np.zeros((len(batch), 3), np.float32)}

    with pytest.raises(BundleError, match=r"stage 0: output 'logits' is float32 \(1, 3\)"):
        Stages([Mute()]).forward_all(make_images(1))


def test_unknown_backend_and_precision_say_so() -> None:
    known = target_of(ONNX, 1.0)
    assert engines.unavailable(known) is None
    other = msgspec.structs.replace(known, backend="abacus")
    assert "no backend 'abacus'" in str(engines.unavailable(other))
    other = msgspec.structs.replace(known, precision="int4")
    assert "int4" in str(engines.unavailable(other))
    with pytest.raises(TargetError, match="abacus"):
        engines.load("abacus", {}, "", precision="fp32", device="cpu")


def test_field_that_a_library_sees_under_a_longer_number_is_refused() -> None:
    """Protobuf libraries keep the lower 32 bits of a tag: 2^32 + 0x3a is the graph to them."""
    graph = onnx.GraphProto(name="g", initializer=[external_tensor("../outside")])
    content = graph.SerializeToString()
    assert len(content) < 128
    for tag in (b"\x3a", b"\xba\x80\x80\x80\x00"):
        hidden = tag + bytes([len(content)]) + content
        assert list(external_locations(hidden, "x")) == ["../outside"]
    with pytest.raises(TargetError, match="x: not an ONNX file"):
        list(external_locations(b"\xba\x80\x80\x80\x10" + hidden[5:], "x"))


@pytest.mark.parametrize("name", sorted(engines.BACKENDS))
def test_missing_library_names_the_pip_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = engines.backend(name)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert f"pip install {name}" in str(module.unavailable("fp32", "cpu"))


def test_backends_offer_the_same_functions() -> None:
    for name in engines.BACKENDS:
        module = engines.backend(name)
        assert all(callable(getattr(module, f)) for f in ("unavailable", "load", "version"))
        assert module.TARGETS
        assert module.version().startswith(name)


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """In a process and a home of its own: an import that reported would leave its id file."""
    script = (
        "import sys; from cascade_runtime.engines import openvino as e; ov = e.import_quietly();"
        "print(callable(ov.convert_model), any('openvino_telemetry' in m for m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]
    assert not list(tmp_path.rglob("*"))
