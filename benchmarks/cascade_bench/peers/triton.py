"""The plain export behind NVIDIA Triton on this machine, asked through its HTTP client.

Where `tritonserver` and `tritonclient` are installed, the server is started on a model repository
of this one model; pixels, decoded here as its clients do, go out over HTTP and logits come back.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cascade_bench.peers.contender import Absent, Contender, Given, Logits, decoding
from cascade_runtime.errors import TargetError
from cascade_runtime.preprocess import Pixels

NAME = "triton"
SERVER = "tritonserver"
MODEL = "plain"
START_S = 120.0
CONFIG = """\
platform: "onnxruntime_onnx"
max_batch_size: 1024
input [{{ name: "pixels", data_type: TYPE_UINT8, dims: [{height}, {width}, 3] }}]
output [{{ name: "logits", data_type: TYPE_FP32, dims: [2] }}]
parameters {{ key: "intra_op_thread_count", value: {{ string_value: "{threads}" }} }}
"""


def contenders(given: Given) -> list[Contender | Absent]:
    if find_spec("tritonclient") is None:
        return [Absent(NAME, "tritonclient is not installed; pip install 'tritonclient[http]'")]
    command = shutil.which(SERVER)
    if command is None:
        return [Absent(NAME, f"{SERVER} is not on the PATH; it comes with NVIDIA's container")]
    address = _free_address()
    run = ask(address)  # before the server, which nobody would end if the client lacks a part
    server = _serve(command, given, address)

    def close() -> None:
        server.terminate()
        server.wait()

    return [Contender(NAME, "plain export, over HTTP", decoding(given, run), run, close)]


def write_repository(given: Given) -> Path:
    """The folder that the server reads: one model, one version."""
    root = given.folder / "triton"
    version = root / MODEL / "1"
    version.mkdir(parents=True)
    for file in given.plain_onnx.parent.glob(f"{given.plain_onnx.name}*"):
        name = file.name.replace(given.plain_onnx.name, "model.onnx", 1)
        shutil.copyfile(file, version / (name if file == given.plain_onnx else file.name))
    text = CONFIG.format(
        height=given.preprocess.height, width=given.preprocess.width, threads=given.threads
    )
    (root / MODEL / "config.pbtxt").write_text(text, encoding="utf-8")
    return root


def _serve(command: str, given: Given, address: str) -> subprocess.Popen[bytes]:
    client = _client(address)
    words = [command, f"--model-repository={write_repository(given)}", "--http-address=127.0.0.1"]
    words += [f"--http-port={address.split(':')[1]}", "--allow-grpc=0", "--allow-metrics=0"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + START_S
    try:
        while server.poll() is None and time.monotonic() < end:
            with suppress(Exception):  # the client raises what its transport raises
                if client.is_model_ready(MODEL):
                    return server
            time.sleep(0.2)
        raise TargetError(f"{SERVER} did not make the model ready; leave triton out with --peers")
    except BaseException:
        server.terminate()
        server.wait()
        raise


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _client(address: str) -> Any:
    return import_module("tritonclient.http").InferenceServerClient(address)


def ask(address: str) -> Callable[[Pixels], Logits]:
    """The model at this address on arrays."""
    http, client = import_module("tritonclient.http"), _client(address)

    def run(pixels: Pixels) -> Logits:
        asked = http.InferInput("pixels", list(pixels.shape), "UINT8")
        asked.set_data_from_numpy(pixels)
        logits: Logits = client.infer(MODEL, [asked]).as_numpy("logits")
        return logits

    return run
