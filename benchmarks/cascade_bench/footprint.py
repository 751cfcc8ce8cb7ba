"""What a process that uses the bundle costs: memory, import time, time to the first decision.

In: a bundle, a target, some image files. Out: a `Footprint`, from fresh Python processes that
import the runtime and nothing else; each figure is the median of several. This is the cold start of
a process, not of a machine: only root can empty the system's cache of files, so the bundle's and
the libraries' bytes may come from memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from cascade_bench import fresh
from cascade_bench.fresh import Order

PROCESSES = 3


@dataclass(frozen=True)
class Footprint:
    """Medians over `processes` fresh processes.

    peak_memory_mib: highest resident memory, after `images` images in one batch.
    import_s: `from cascade_runtime import Cascade`, after the interpreter's own start.
    open_s: opening the bundle, engines and their library included, not warmed up.
    first_decision_s: import, open and the first image, altogether.
    """

    processes: int
    images: int
    peak_memory_mib: float
    import_s: float
    open_s: float
    first_decision_s: float


def measure(order: Order, processes: int) -> Footprint:
    """Start `processes` processes one after the other.

    Raises:
        TargetError: a process failed where this one did not; its last line says why.
    """
    runs = [fresh.run(order) for _ in range(processes)]

    def middle(name: str) -> float:
        return float(median(getattr(run, name) for run in runs))

    return Footprint(
        processes=processes,
        images=len(order.files),
        peak_memory_mib=middle("peak_memory_mib"),
        import_s=middle("import_s"),
        open_s=middle("open_s"),
        first_decision_s=middle("first_decision_s"),
    )
