"""One plain float32 ONNX export of the network in ONNX Runtime."""

from __future__ import annotations

from cascade_bench.peers.contender import Absent, Contender, Given, Logits, decoding
from cascade_runtime.engines import onnxruntime as engine
from cascade_runtime.preprocess import Pixels

NAME = "onnxruntime fp32"


def contenders(given: Given) -> list[Contender | Absent]:
    if reason := engine.unavailable("fp32", "cpu"):
        return [Absent(NAME, reason)]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(
        given.plain_onnx, options, providers=["CPUExecutionProvider"]
    )

    def run(pixels: Pixels) -> Logits:
        logits: Logits = session.run(None, {"pixels": pixels})[0]
        return logits

    return [Contender(NAME, "plain export", decoding(given, run), run)]
