"""What the field would run instead: the same trained network in other people's engines.

In: a `Given`, the network and how the bundle takes its images, and images to try. Out: a
`Contender` for everything that can run here and an `Absent` for everything that cannot, with the
line that installs it, or what it failed with: other people's engines end no comparison. Each
module is one family and has one function, `contenders`; a new family is a new module and a line
in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from click import unstyle

from cascade_bench.peers.contender import Absent, Contender, Given
from cascade_runtime.errors import CascadeError, ConfigError
from cascade_runtime.preprocess import Pixels

FAMILIES = {
    "transformers": "cascade_bench.peers.transformers",
    "torch": "cascade_bench.peers.torch",
    "torch.compile": "cascade_bench.peers.torch_compile",
    "onnxruntime": "cascade_bench.peers.onnxruntime",
    "openvino": "cascade_bench.peers.openvino",
    "litserve": "cascade_bench.peers.litserve",
    "triton": "cascade_bench.peers.triton",
}
"""By name, the module of the family; imported when it is asked for."""


def chosen(wanted: str | None) -> tuple[str, ...]:
    """The families of a comma-separated list; None takes all of them.

    Raises:
        ConfigError: there is no such family.
    """
    names = tuple(name.strip() for name in (wanted or ",".join(FAMILIES)).split(","))
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(f"--peers: {name!r} is unknown; choose of {', '.join(FAMILIES)}")
    return names


def gather(
    given: Given,
    families: Sequence[str],
    tell: Callable[[int], None] = lambda done: None,
    blocks: Sequence[tuple[Sequence[Path], Pixels]] = (),
) -> tuple[list[Contender], list[Absent]]:
    """Every contender of the families, in their order, and what is missing or fails.

    Args:
        tell: is told how many families are ready.
        blocks: one batch of each size to be timed, as files and as pixels; each contender runs
            all of them first, since many compile or start a server only when they are called.
    """
    here: list[Contender] = []
    absent: list[Absent] = []
    with ExitStack() as unless_done:
        for done, family in enumerate(families, start=1):
            for found in _contenders(family, given):
                if isinstance(found, Contender):
                    unless_done.callback(found.close)
                    found = _tried(found, blocks)
                if isinstance(found, Contender):
                    here.append(found)
                else:
                    absent.append(found)
            tell(done)
        unless_done.pop_all()
    return here, absent


def _contenders(family: str, given: Given) -> list[Contender | Absent]:
    try:
        found: list[Contender | Absent] = import_module(FAMILIES[family]).contenders(given)
    except Exception as error:
        return [Absent(family, _reason(error))]
    return found


def _tried(peer: Contender, blocks: Sequence[tuple[Sequence[Path], Pixels]]) -> Contender | Absent:
    try:
        for files, pixels in blocks:
            peer.classify(files, len(files))
            if peer.forward is not None:
                peer.forward(pixels)
    except Exception as error:
        peer.close()
        return Absent(peer.name, _reason(error))
    return peer


def _reason(error: Exception) -> str:
    """One line; what others raise says more with its kind before it."""
    if isinstance(error, CascadeError):
        return " ".join(str(error).split())
    lines = (line.strip() for line in unstyle(str(error)).splitlines())
    first = next(filter(None, lines), "no message")
    return f"failed with {type(error).__name__}: {first}"
