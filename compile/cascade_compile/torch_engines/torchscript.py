"""TorchScript, torch's older compiled form: deprecated there, kept here for what still runs it.

In: the bytes of `stageN.ts`. Out: an `Engine`. The archive holds code of TorchScript's own small
language and is read by its own reader, never by Python's pickle.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

from cascade_compile import torch_engines
from cascade_compile.torch_engines import TorchEngine
from cascade_runtime.errors import TargetError

TARGETS = torch_engines.TARGETS


def unavailable(precision: str, device: str) -> str | None:
    """Why this machine cannot run `precision` on `device`, or None."""
    return torch_engines.unavailable("torchscript", precision, device)


def version() -> str:
    """The library and its version, as recorded beside measurements."""
    return torch_engines.version("torchscript")


def load(
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    device: str,
    threads: int | None,
) -> TorchEngine:
    """Load one stage from memory; see `engines.load`."""
    import torch

    jit: Any = torch.jit
    torch_engines.use_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated: said once, when it was built
            module = jit.load(io.BytesIO(files[main]), map_location=device)
    except Exception as error:  # RuntimeError mostly, its text is many lines of C++
        text = str(error).strip().splitlines()[0]
        raise TargetError(f"{main}: {version()} cannot load it ({text})") from error
    return TorchEngine(module.eval(), device)
