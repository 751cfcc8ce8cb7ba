"""One plain ONNX export of the network in OpenVINO: float32, bfloat16, and as it thinks best.

The first two have the hint for latency and answer one batch after the other. "best" has the hint
for throughput and no word on precision: the library chooses precision, streams and requests, and a
queue keeps all of them busy while the next files are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cascade_bench.peers.contender import (
    Absent,
    Contender,
    Given,
    Labels,
    Logits,
    as_labels,
    batches,
    decoding,
)
from cascade_runtime.engines import openvino as engine
from cascade_runtime.preprocess import Pixels

HINTS = {"fp32": "f32", "bf16": "bf16"}
BEST = "openvino best"


def contenders(given: Given) -> list[Contender | Absent]:
    found: list[Contender | Absent] = []
    for precision, hint in HINTS.items():
        name = f"openvino {precision}"
        if reason := engine.unavailable(precision, "cpu"):
            found.append(Absent(name, reason))
            continue
        asked = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        run = _one_by_one(_compiled(given, asked))
        found.append(Contender(name, "plain export, latency hint", decoding(given, run), run))
    if reason := engine.unavailable("fp32", "cpu"):
        return [*found, Absent(BEST, reason)]
    queue = _Queue(_compiled(given, {"PERFORMANCE_HINT": "THROUGHPUT"}), given)
    note = f"plain export, throughput hint, {queue.requests} requests at once, {queue.precision}"
    return [*found, Contender(BEST, note, queue.classify, queue.forward)]


def _compiled(given: Given, hints: dict[str, Any]) -> Any:
    core = engine.import_quietly().Core()
    model = core.read_model(given.plain_onnx)
    return core.compile_model(model, "CPU", {**hints, "INFERENCE_NUM_THREADS": given.threads})


def _one_by_one(compiled: Any) -> Callable[[Pixels], Logits]:
    request = compiled.create_infer_request()

    def run(pixels: Pixels) -> Logits:
        return np.array(request.infer({0: pixels}, share_inputs=True)[0])

    return run


def _split(pixels: Pixels, parts: int) -> list[Pixels]:
    return np.array_split(pixels, min(parts, len(pixels)))


class _Queue:
    """Batches in flight at once, as many as the library wants."""

    def __init__(self, compiled: Any, given: Given) -> None:
        self._given = given
        self._queue = engine.import_quietly().AsyncInferQueue(compiled)
        self._queue.set_callback(self._done)
        self._logits: dict[int, Logits] = {}
        self.requests = len(self._queue)
        kind = compiled.get_property("INFERENCE_PRECISION_HINT")
        self.precision = {"f32": "fp32"}.get(kind.get_type_name(), kind.get_type_name())

    def classify(self, files: Sequence[Path], batch: int) -> Labels:
        """Batches that are enough for all requests; else the parts of each, as in `forward`."""
        parts = 1 if len(files) >= batch * self.requests else self.requests
        found = batches(files, batch, self._given)
        return as_labels(self._run(part for pixels in found for part in _split(pixels, parts)))

    def forward(self, pixels: Pixels) -> Logits:
        return self._run(_split(pixels, self.requests))

    def _run(self, parts: Any) -> Logits:
        self._logits.clear()
        for index, pixels in enumerate(parts):
            self._queue.start_async({0: pixels}, userdata=index)
        self._queue.wait_all()
        return np.concatenate([self._logits[index] for index in sorted(self._logits)])

    def _done(self, request: Any, index: int) -> None:
        self._logits[index] = np.array(request.get_output_tensor(0).data)
