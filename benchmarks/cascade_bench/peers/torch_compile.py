"""The network under torch.compile, for each batch size anew, in float32 and bfloat16."""

from __future__ import annotations

import shutil

import torch

from cascade_bench.peers.contender import Absent, Contender, Given, decoding
from cascade_bench.peers.torch import attending, forward

NAMES = {"torch.compile fp32": False, "torch.compile bf16": True}
COMPILERS = ("c++", "g++", "clang++")
MOST_GRAPHS = 64
"""One a batch size and precision; torch's own limit is 8, beyond which it runs the network
uncompiled and only warns (torch._dynamo.config.recompile_limit)."""


def contenders(given: Given) -> list[Contender | Absent]:
    if not any(map(shutil.which, COMPILERS)):
        reason = f"torch.compile needs a C++ compiler ({', '.join(COMPILERS)}); apt install g++"
        return [Absent(name, reason) for name in NAMES]
    torch.set_num_threads(given.threads)
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    compiled = torch.compile(attending(given), dynamic=False)
    found: list[Contender | Absent] = []
    for name, bf16 in NAMES.items():
        run = forward(compiled, bf16)
        note = "compiled for the batch size" + (", autocast" if bf16 else "")
        found.append(Contender(name, note, decoding(given, run, pad=True), run))
    return found
