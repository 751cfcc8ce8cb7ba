"""The plain export behind LitServe on this machine: files go out over HTTP, labels come back.

The server is a process of its own (`litserve_server`), started anew for each batch size, which is
the most that it gathers. As many requests are under way at once as two such batches hold. Its
engine is ONNX Runtime; decoding happens in the server, as there it would.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from cascade_bench.peers.contender import Absent, Contender, Given, Labels
from cascade_runtime.errors import TargetError

NAME = "litserve"
START_S = 60.0


def contenders(given: Given) -> list[Contender | Absent]:
    if find_spec("litserve") is None:
        return [Absent(NAME, "litserve is not installed; pip install litserve")]
    client = _Client(given)
    return [Contender(NAME, "plain export, over HTTP", client.classify, None, client.close)]


class _Client:
    """A server for the batch size asked for last."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._batch = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._url = ""

    def classify(self, files: Sequence[Path], batch: int) -> Labels:
        if batch != self._batch:
            self._start(batch)
        with ThreadPoolExecutor(2 * batch) as pool:
            return np.array(list(pool.map(self._ask, files)), dtype=np.int8)

    def close(self) -> None:
        """End the server and its workers."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGTERM)  # its workers outlive it otherwise
            self._server.wait()
            self._server = None

    def _ask(self, file: Path) -> int:
        body = json.dumps({"image": base64.b64encode(file.read_bytes()).decode()}).encode()
        request = urllib.request.Request(
            f"{self._url}/predict", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            return int(json.load(answer)["label"])

    def _start(self, batch: int) -> None:
        self.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        order = {
            "model": str(self._given.plain_onnx),
            "preprocess": msgspec.to_builtins(self._given.preprocess),
            "threads": self._given.threads,
            "batch": batch,
            "port": port,
        }
        log = self._given.folder / "litserve.log"
        with log.open("wb") as out:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "cascade_bench.peers.litserve_server", json.dumps(order)],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._url, self._batch = f"http://127.0.0.1:{port}", batch
        end = time.monotonic() + START_S
        while not self._healthy():
            if self._server.poll() is not None or time.monotonic() > end:
                self.close()
                last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise TargetError(
                    f"the litserve server did not start ({last}); leave it out with --peers"
                )
            time.sleep(0.1)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
