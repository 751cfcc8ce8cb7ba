"""The network in PyTorch, in float32 and under bfloat16 autocast, with PyTorch's own attention."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from cascade_bench.peers.contender import Absent, Contender, Given, Logits, decoding
from cascade_bench.peers.network import Whole
from cascade_runtime.preprocess import Pixels


def contenders(given: Given) -> list[Contender | Absent]:
    torch.set_num_threads(given.threads)
    whole = attending(given)
    runs = {"fp32": forward(whole, False), "bf16": forward(whole, True)}
    return [
        Contender(f"torch eager {precision}", _note(precision), decoding(given, run), run)
        for precision, run in runs.items()
    ]


def attending(given: Given) -> Whole:
    """The network with scaled_dot_product_attention, which people run; exports take it apart."""
    network = copy.deepcopy(given.network)
    network.backbone.set_attn_implementation("sdpa")
    return Whole(network).eval()


def _note(precision: str) -> str:
    return "eager mode, autocast" if precision == "bf16" else "eager mode"


def forward(network: Callable[..., torch.Tensor], bf16: bool) -> Callable[[Pixels], Logits]:
    """The network on arrays; also a compiled one."""

    def run(pixels: Pixels) -> Logits:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits: Logits = network(torch.from_numpy(pixels)).float().numpy()
        return logits

    return run
