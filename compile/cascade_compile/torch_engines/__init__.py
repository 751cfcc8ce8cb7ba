"""Engines that need torch, for the two forms that torch itself compiles a stage to.

The runtime finds them by the entry points of `pyproject.toml` and imports nothing of them until
asked; torch is imported by `load` alone. In: the bytes of one engine file. Out: an `Engine` of
`cascade_runtime.engines`. Both forms are programs, as an engine plan is: loading one runs what is
in it, so its hash is checked first, and where it matters its signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = (("fp32", "cpu"), ("fp32", "cuda"))
NAMES = ("logits", "gate", "tokens")  # the order in which a stage gives its outputs


def unavailable(name: str, precision: str, device: str) -> str | None:
    """Why this machine cannot run `precision` on `device`, or None."""
    if (precision, device) not in TARGETS:
        return f"{name} runs {TARGETS} here, not ({precision!r}, {device!r})"
    if find_spec("torch") is None:
        return "torch is not installed; pip install torch"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return (
                "torch sees no CUDA device here; it needs an NVIDIA GPU and a CUDA build of torch"
            )
    return None


def version(name: str) -> str:
    """The form and the torch it runs in, as recorded beside measurements."""
    return f"{name} (torch {installed_version('torch')})"


def use_threads(threads: int | None) -> None:
    """How many threads torch computes with; it knows one number for the whole process."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


class TorchEngine:
    """A compiled stage; `call` takes one tensor on `device` and gives the outputs in order."""

    def __init__(self, call: Callable[[Tensor], Sequence[Tensor]], device: str) -> None:
        self._call = call
        self._device = device

    def run(self, batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float32]]:
        import torch

        rows = np.ascontiguousarray(batch)
        # torch warns of what it must not write to, and takes no row of a reversed batch.
        if not rows.flags.writeable or min(rows.strides) < 0:
            rows = rows.copy()
        with torch.inference_mode():
            outputs = self._call(torch.from_numpy(rows).to(self._device))
            arrays = [value.cpu().numpy() for value in outputs]
        return dict(zip(NAMES, arrays, strict=False))
