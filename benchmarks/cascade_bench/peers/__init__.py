"""What the field would run instead: the same trained network in other people's engines.

In: a `Given`, the network and how the bundle takes its images. Out: a `Contender` for everything
that can run here and an `Absent` for everything that cannot, with the line that installs it. Each
module is one family and has one function, `contenders`; a new family is a new module and a line
in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from cascade_bench.peers.contender import Absent, Contender, Given
from cascade_runtime.errors import ConfigError, TargetError

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
    given: Given, families: Sequence[str], tell: Callable[[int], None] = lambda done: None
) -> tuple[list[Contender], list[Absent]]:
    """Every contender of the families, in their order, and what is missing.

    Args:
        tell: is told how many families are ready.
    """
    here: list[Contender] = []
    absent: list[Absent] = []
    for done, family in enumerate(families, start=1):
        for found in _contenders(family, given):
            if isinstance(found, Contender):
                here.append(found)
            else:
                absent.append(found)
        tell(done)
    return here, absent


def _contenders(family: str, given: Given) -> list[Contender | Absent]:
    try:
        found: list[Contender | Absent] = import_module(FAMILIES[family]).contenders(given)
    except TargetError as error:
        return [Absent(family, str(error))]
    return found
