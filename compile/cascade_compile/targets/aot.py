"""aot: the stage compiled to a shared library by AOTInductor, `stageN.pt2`.

It is compiled for this processor (`-march=native`) and takes a C++ compiler and about a minute a
stage; what it was compiled for is written inside, so that no other processor runs it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_compile.targets import Built, StageSource
from cascade_runtime.errors import TargetError

if TYPE_CHECKING:
    from torch import nn

TARGETS = (("fp32", "cpu"), ("fp32", "cuda"))
BATCH = 3  # of the example: 1 would be taken for a constant


def build(source: StageSource, folder: Path, precision: str, device: str) -> Built:
    """Export and compile one stage.

    Raises:
        TargetError: there is no C++ compiler, no such device, or torch cannot compile the stage.
    """
    import torch

    from cascade_compile.stages import example
    from cascade_compile.torch_engines.aot import built_for

    _need_compiler()
    path = folder / f"stage{source.index}.pt2"
    settings = {
        "aot_inductor.metadata": built_for(),
        "cpp.dynamic_threads": True,  # as many as are asked for when it runs, not as here
    }
    batch = ({0: torch.export.Dim.DYNAMIC},)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".aot-") as scratch, _quiet():
        made = Path(scratch) / path.name
        try:
            with torch.no_grad(), placed(source.module, device) as module:
                tensor = example(module, BATCH).to(device)
                program = torch.export.export(module, (tensor,), dynamic_shapes=batch)
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(made), inductor_configs=settings
                )
        except Exception as error:  # export, inductor and the compiler raise many kinds
            text = str(error).strip().splitlines()[0]
            raise TargetError(
                f"stage {source.index} cannot be compiled by AOTInductor: {text}"
            ) from error
        made.replace(path)
    return Built((path.name,))


@contextlib.contextmanager
def placed(module: nn.Module, device: str) -> Iterator[Any]:
    """The stage on a device; a copy, where that is not the one it is on.

    Raises:
        TargetError: torch sees no such device.
    """
    import torch

    if device == "cpu":
        yield module
        return
    if not torch.cuda.is_available():
        raise TargetError("torch sees no CUDA device here, so nothing can be compiled for one")
    yield copy.deepcopy(module).to(device)


def _need_compiler() -> None:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise TargetError(
            "aot needs a C++ compiler and finds none; apt install g++, or name one in CXX"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
