"""The process that `footprint` starts: import, open, decide, and say what it took.

In: one JSON object on stdin: bundle, target, threads, files. Out: one on stdout, with the fields
of `Footprint`. Only the standard library is imported before the clock starts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_STATUS = Path("/proc/self/status")


def main() -> None:
    order = json.load(sys.stdin)
    files = order["files"]
    started = time.perf_counter()
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
    }
    print(json.dumps(found))


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
