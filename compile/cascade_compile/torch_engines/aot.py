"""AOTInductor, torch's newer compiled form: a stage as a shared library in a `.pt2` archive.

In: the bytes of `stageN.pt2`. Out: an `Engine`. The archive is handed to torch's C++ loader, which
unpacks the library and opens it; torch's Python loader, which also knows pickled parts, is not
used. A library is compiled for one processor and one torch: others are refused before it is opened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascade_compile import torch_engines
from cascade_compile.torch_engines import TorchEngine
from cascade_runtime.engines import processor
from cascade_runtime.errors import TargetError

TARGETS = torch_engines.TARGETS
MODEL = "model"  # what torch calls the one model of an archive
VECTORS = ("avx", "amx", "bmi", "f16c", "fma", "sse", "vaes", "asimd", "sve")


def unavailable(precision: str, device: str) -> str | None:
    """Why this machine cannot run `precision` on `device`, or None."""
    return torch_engines.unavailable("aot", precision, device)


def version() -> str:
    """The library and its version, as recorded beside measurements."""
    return torch_engines.version("aot")


def built_for() -> dict[str, str]:
    """What a library compiled here depends on; written into the archive, compared when loading."""
    import torch

    flags = sorted(flag for flag in processor.flags() if flag.startswith(VECTORS))
    release = ".".join(torch.__version__.split(".")[:2])
    return {"CASCADE_TORCH": release, "CASCADE_PROCESSOR": " ".join(flags)}


def load(
    files: Mapping[str, bytes],
    main: str,
    *,
    precision: str,
    device: str,
    threads: int | None,
) -> TorchEngine:
    """Load one stage; see `engines.load`.

    The library can only be opened from a file: the verified bytes are written to one that nobody
    else can read or change, in a folder of its own that is gone afterwards.
    """
    import torch

    torch_engines.use_threads(threads)
    loader: Any = torch._C._aoti.AOTIModelPackageLoader
    with tempfile.TemporaryDirectory(prefix="cascade-aot-") as folder:  # mode 0700
        path = Path(folder) / "stage.pt2"
        path.touch(mode=0o600)
        path.write_bytes(files[main])
        try:
            found = loader.load_metadata_from_package(str(path), MODEL)
            _check(found, main)
            runner = loader(str(path), MODEL, False, 1, 0 if device == "cuda" else -1)
        except RuntimeError as error:
            text = str(error).strip().splitlines()[0]
            raise TargetError(f"{main}: {version()} cannot load it ({text})") from error
    return TorchEngine(lambda batch: runner.run([batch]), device)


def _check(found: Mapping[str, Any], main: str) -> None:
    here = built_for()
    wanted = found.get("CASCADE_TORCH")
    if wanted != here["CASCADE_TORCH"]:
        raise TargetError(
            f"{main} was compiled by torch {wanted}, this is {here['CASCADE_TORCH']}; install that "
            "one or build the bundle again here"
        )
    known = processor.flags()
    missing = sorted(set(found.get("CASCADE_PROCESSOR", "").split()) - known)
    if known and missing:
        raise TargetError(
            f"{main} was compiled for a processor with {', '.join(missing)}, which this one lacks; "
            "build the bundle again here"
        )
