"""What a process that uses the bundle costs: memory, import time, time to the first decision.

In: a bundle, a target, some image files. Out: a `Footprint`, from fresh Python processes that
import the runtime and nothing else; each figure is the median of several.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cascade_runtime.errors import TargetError

PROCESSES = 3
MOST_FILES = 32


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


def measure(
    bundle: Path, target: str, threads: int | None, files: Sequence[Path], processes: int
) -> Footprint:
    """Start `processes` processes one after the other.

    Raises:
        TargetError: a process failed where this one did not; its last line says why.
    """
    used = [str(file) for file in files[:MOST_FILES]]
    order = {"bundle": str(bundle), "target": target, "threads": threads, "files": used}
    runs = [_once(order) for _ in range(processes)]
    middle = {key: float(median(run[key] for run in runs)) for key in runs[0]}
    return Footprint(processes=processes, images=len(used), **middle)


def _once(order: Mapping[str, object]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "cascade_bench.fresh_process"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TargetError(
            f"a fresh process that opens {order['bundle']} ended with status {done.returncode} "
            f"({last}); is there enough memory for a second copy?"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
