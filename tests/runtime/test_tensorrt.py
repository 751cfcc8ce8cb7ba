"""TensorRT's engine around what needs a GPU: which plans it refuses, and who uses which memory.

Memory here is the host's and the plan a stand-in; the calls into the libraries are held against
the real ones in tests/compile/test_tensorrt_api.py.
"""

from __future__ import annotations

import ctypes
import gc
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cascade_runtime.engines import cuda, tensorrt
from cascade_runtime.errors import TargetError

WIDTH = 5


def plan_of(*version: int, magic: int = 0x74727466) -> bytes:
    return struct.pack("<II", magic, 0) + bytes(16) + bytes(version) + bytes(100)


def test_version_is_read_from_the_header() -> None:
    assert tensorrt.plan_version(plan_of(10, 16, 1, 11), "a.plan") == (10, 16, 1, 11)


@pytest.mark.parametrize("data", [b"", b"ftrt", plan_of(10, 0, 0, 0, magic=1), b"\0" * 200])
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    with pytest.raises(TargetError, match=r"a\.plan: is no TensorRT plan"):
        tensorrt.plan_version(data, "a.plan")


def test_plan_of_a_later_major_is_refused_with_both_versions() -> None:
    with pytest.raises(TargetError, match=r"of TensorRT 11\.4\.0\.106, installed is 10\.16\.1"):
        tensorrt.check_plan(plan_of(11, 4, 0, 106), "a.plan", (10, 16, 1))
    tensorrt.check_plan(plan_of(10, 16, 1, 11), "a.plan", (11, 4, 0))
    tensorrt.check_plan(plan_of(10, 16, 1, 11), "a.plan", (10, 3, 0))


class HostDevice:
    """`cuda.Device` in the host's memory; a stream is a number."""

    name, capability = "host", "sm00"

    def __init__(self, captures: bool = True) -> None:
        self.captures, self.launched, self.streams = captures, 0, 0
        self.blocks: dict[int, Any] = {}
        self.ready = threading.local()

    def use(self) -> None:
        self.ready.yes = True

    def stream(self) -> int:
        self.streams += 1
        return self.streams

    def allocate(self, size: int) -> int:
        assert self.ready.yes, "used before use()"
        block = ctypes.create_string_buffer(max(size, 1))
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, pointer: int) -> None:
        del self.blocks[pointer]

    def upload(self, pointer: int, array: np.ndarray, stream: int) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= len(self.blocks[pointer])
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, pointer: int, stream: int) -> None:
        assert array.nbytes <= len(self.blocks[pointer])
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)

    def wait(self, stream: int) -> None:
        pass

    def capture(self, stream: int, enqueue: Callable[[], None]) -> cuda.Graph | None:
        return HostGraph(self, enqueue) if self.captures else None


class HostGraph:
    def __init__(self, device: HostDevice, enqueue: Callable[[], None]) -> None:
        self.device, self.enqueue = device, enqueue

    def launch(self, stream: int) -> None:
        self.device.launched += 1
        self.enqueue()


class DoublingPlan:
    """Stands in for `nvinfer.Plan`: tokens are twice the input, logits and gate made of it."""

    input, outputs, largest_batch, scratch = "tokens_in", ["logits", "gate", "tokens"], 32, 64

    def __init__(self) -> None:
        names = ["tokens_in", *self.outputs]
        self.dtypes = dict.fromkeys(names, np.dtype(np.float32))
        self.contexts: list[DoublingContext] = []

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        tails = {"logits": (2,), "gate": ()}
        return (batch, *tails.get(name, (3, WIDTH)))

    def context(self, scratch: int) -> DoublingContext:
        self.contexts.append(DoublingContext(self))
        return self.contexts[-1]


class DoublingContext:
    def __init__(self, plan: DoublingPlan) -> None:
        self.plan, self.fails = plan, False

    def prepare(
        self, stream: int, name: str, shape: Sequence[int], addresses: dict[str, int]
    ) -> None:
        self.batch, self.addresses = shape[0], addresses

    def enqueue(self, stream: int) -> None:
        if self.fails:
            raise TargetError("TensorRT could not start a run")
        given = self._view("tokens_in")
        self._view("tokens")[...] = 2 * given
        self._view("logits")[...] = given[:, 0, :2]
        self._view("gate")[...] = given.sum(axis=(1, 2))

    def _view(self, name: str) -> np.ndarray:
        shape = self.plan.shape(name, self.batch)
        kind = ctypes.c_float * int(np.prod(shape))
        return np.frombuffer(kind.from_address(self.addresses[name]), np.float32).reshape(shape)


def engine_of(device: HostDevice, plan: DoublingPlan) -> tensorrt.TensorRtEngine:
    return tensorrt.TensorRtEngine(plan, device)  # type: ignore[arg-type]


def tokens(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("captures", [True, False])
def test_run_gives_every_output_with_a_graph_and_without(captures: bool) -> None:
    device, plan = HostDevice(captures), DoublingPlan()
    engine = engine_of(device, plan)
    for batch in (1, 8, 3, 8):
        given = tokens(batch, seed=batch)
        found = engine.run(given)
        np.testing.assert_array_equal(found["tokens"], 2 * given)
        np.testing.assert_array_equal(found["logits"], given[:, 0, :2])
        assert found["gate"].shape == (batch,)
    assert len(plan.contexts) == 3, "one for each batch size"
    assert device.launched == (4 if captures else 0)


def test_input_of_any_layout_is_copied_as_it_reads() -> None:
    given = tokens(8)[::2, :, ::-1]
    found = engine_of(HostDevice(), DoublingPlan()).run(given)
    np.testing.assert_array_equal(found["tokens"], 2 * given)


def test_outputs_survive_the_next_run() -> None:
    engine = engine_of(HostDevice(), DoublingPlan())
    first = engine.run(tokens(2, seed=1))
    kept = first["tokens"].copy()
    engine.run(tokens(2, seed=2))
    np.testing.assert_array_equal(first["tokens"], kept)


def test_threads_never_share_memory_or_a_stream() -> None:
    device, plan = HostDevice(), DoublingPlan()
    engine = engine_of(device, plan)
    batches = [tokens(1 + seed % 3, seed) for seed in range(64)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(engine.run, batches))
    for given, found in zip(batches, results, strict=True):
        np.testing.assert_array_equal(found["tokens"], 2 * given)
    assert 1 <= device.streams <= 4


def test_call_that_failed_does_not_hand_its_memory_on() -> None:
    device, plan = HostDevice(captures=False), DoublingPlan()
    engine = engine_of(device, plan)
    engine.run(tokens(2))
    plan.contexts[0].fails = True
    with pytest.raises(TargetError, match="could not start"):
        engine.run(tokens(2))
    assert engine.run(tokens(2))["gate"].shape == (2,)
    assert len(plan.contexts) == 2


def test_memory_goes_back_with_the_engine() -> None:
    device = HostDevice()
    engine = engine_of(device, DoublingPlan())
    engine.run(tokens(2))
    assert len(device.blocks) == 5
    del engine
    gc.collect()
    assert device.blocks == {}


def test_batch_beyond_the_plan_is_refused() -> None:
    with pytest.raises(TargetError, match="a batch of 33, the plan takes 32"):
        engine_of(HostDevice(), DoublingPlan()).run(tokens(33))


@pytest.mark.parametrize(
    ("precision", "device"), [("fp32", "sm87"), ("fp16", "cpu"), ("fp16", "sm"), ("fp16", "smart")]
)
def test_what_tensorrt_does_not_run_is_said(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str
) -> None:
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: object())
    assert "tensorrt runs ['fp16', 'mixed'] on sm75" in str(tensorrt.unavailable(precision, device))


def test_plan_for_another_gpu_is_refused_with_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: object())
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(cuda, "found", HostDevice)
    reason = str(tensorrt.unavailable("fp16", "sm87"))
    assert "built for compute capability sm87, this GPU is sm00 (host)" in reason
    assert tensorrt.device_here() == "sm00"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_onnxruntime_on_a_gpu_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    import onnxruntime

    from cascade_runtime.engines import onnxruntime as engine

    precision = dict((d, p) for p, d in engine.TARGETS)[device]
    if cuda.missing() is not None:
        assert engine.unavailable(precision, device) == cuda.missing()
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "pip install onnxruntime-gpu" in str(engine.unavailable(precision, device))
