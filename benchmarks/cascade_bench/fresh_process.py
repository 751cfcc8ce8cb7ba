"""The process that `fresh` starts: import, open, decide, and say what it took.

In: one JSON object on stdin: bundle, target, threads, files; perhaps `cores`, to be pinned to, and
`seconds`, to go on deciding for. Out: one on stdout: the fields of `Footprint`; with `seconds` also
what was timed then. Only the standard library is imported before the clock starts, and nothing but
`cascade_runtime` afterwards: `history` runs this file on the runtime of other commits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 3
LEAST = 3
_STATUS = Path("/proc/self/status")


def main() -> None:
    order = json.load(sys.stdin)
    files = order["files"]
    if order.get("cores"):
        os.sched_setaffinity(0, order["cores"])
    started = time.perf_counter()
    import cascade_runtime
    from cascade_runtime import Cascade

    imported = time.perf_counter()
    cascade = Cascade.open(
        order["bundle"], order["target"], threads=order["threads"], warm_up=False
    )
    opened = time.perf_counter()
    cascade.classify(files[:1])
    decided = time.perf_counter()
    cascade.classify(files, batch_size=len(files))
    found = {
        "peak_memory_mib": peak_memory_mib(),
        "import_s": imported - started,
        "open_s": opened - imported,
        "first_decision_s": decided - started,
        "runtime": cascade_runtime.__file__,
    }
    if order.get("seconds") is not None:
        found |= speeds(cascade, files, order["seconds"])
    print(json.dumps(found))


def speeds(cascade: Any, files: list[str], seconds: float) -> dict[str, object]:
    """Seconds of every decision at batch 1, and of every pass over all files as one batch."""
    for index in range(WARM_UP):
        cascade.classify([files[index % len(files)]])
    single: list[float] = []
    whole: list[float] = []
    for times, batches in ((single, [[file] for file in files]), (whole, [files])):
        end = time.perf_counter() + seconds / 2
        while len(times) < LEAST or time.perf_counter() < end:
            batch = batches[len(times) % len(batches)]
            started = time.perf_counter()
            cascade.classify(batch, batch_size=len(batch))
            times.append(time.perf_counter() - started)
    return {"single_s": single, "whole_s": whole}


def peak_memory_mib() -> float:
    """The highest resident memory of this process, in MiB.

    Linux: VmHWM of proc_pid_status(5). `ru_maxrss` would be wrong there for a child process: it
    starts from the memory of the parent that it was forked from.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    main()
