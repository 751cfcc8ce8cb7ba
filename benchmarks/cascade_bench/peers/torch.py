"""The network in PyTorch as it is, in float32 and under bfloat16 autocast."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cascade_bench.peers.contender import Absent, Contender, Given, Logits, decoding
from cascade_runtime.preprocess import Pixels


def contenders(given: Given) -> list[Contender | Absent]:
    torch.set_num_threads(given.threads)
    runs = {"fp32": forward(given.whole, False), "bf16": forward(given.whole, True)}
    return [
        Contender(f"torch eager {precision}", _note(precision), decoding(given, run), run)
        for precision, run in runs.items()
    ]


def _note(precision: str) -> str:
    return "eager mode, autocast" if precision == "bf16" else "eager mode"


def forward(network: Callable[..., torch.Tensor], bf16: bool) -> Callable[[Pixels], Logits]:
    """The network on arrays; also a compiled one."""

    def run(pixels: Pixels) -> Logits:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits: Logits = network(torch.from_numpy(pixels)).float().numpy()
        return logits

    return run
