"""The process that `litserve` starts: a LitServe server with the plain export behind it.

In: one JSON object as the only argument: model, preprocess, threads, batch, port. Requests are
`{"image": base64 of a file}`, answers `{"label": 0 or 1}`.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import litserve
import msgspec
import numpy as np
import onnxruntime

from cascade_runtime.manifest import Preprocess
from cascade_runtime.preprocess import Pixels, load_image

GATHER_S = 0.005  # how long a batch waits for more


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """Decode, run, take the larger logit."""

    def __init__(self, order: dict[str, Any]) -> None:
        wait = GATHER_S if order["batch"] > 1 else 0.0
        super().__init__(max_batch_size=order["batch"], batch_timeout=wait)
        self.order = order

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.order["threads"]
        self.session = onnxruntime.InferenceSession(
            self.order["model"], options, providers=["CPUExecutionProvider"]
        )
        self.preprocess = msgspec.convert(self.order["preprocess"], Preprocess)

    def decode_request(self, request: dict[str, str]) -> Pixels:
        return load_image(base64.b64decode(request["image"]), self.preprocess)

    def batch(self, inputs: list[Pixels]) -> Pixels:
        return np.stack(inputs)

    def unbatch(self, output: Any) -> list[int]:
        return [int(label) for label in output]

    def predict(self, x: Pixels) -> Any:
        pixels = x if x.ndim == 4 else x[None]
        labels = self.session.run(None, {"pixels": pixels})[0].argmax(axis=1)
        return labels if x.ndim == 4 else labels[0]

    def encode_response(self, output: Any) -> dict[str, int]:
        return {"label": int(output)}


def main() -> None:
    order = json.loads(sys.argv[1])
    server = litserve.LitServer(Classifier(order), accelerator="cpu", track_requests=False)
    server.run("127.0.0.1", order["port"], generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
