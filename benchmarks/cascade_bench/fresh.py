"""Starting fresh processes: what they are told, and what comes back.

In: an `Order`. Out: a `Run`, from a Python process that imports the runtime and nothing else. The
child's code is `fresh_process`, run as a file: it imports the runtime that it is to measure, and
nothing of this package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cascade_bench import fresh_process
from cascade_runtime.errors import TargetError

MOST_FILES = 32


@dataclass(frozen=True)
class Order:
    """What a fresh process does: open `target` of `bundle` and decide `files`.

    cores: to be pinned to, before anything is imported; none: wherever the system puts it.
    seconds: to go on deciding for, half of it one by one, half with all files at once; None: not.
    """

    bundle: str
    target: str
    threads: int | None
    files: tuple[str, ...]
    cores: tuple[int, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Run:
    """What one process found; see `footprint.Footprint` for the first four.

    runtime: the file of the package it imported. single_s, whole_s: seconds of each
    decision of one image and of each pass over all, empty unless `Order.seconds` was given.
    """

    peak_memory_mib: float
    import_s: float
    open_s: float
    first_decision_s: float
    runtime: str
    single_s: tuple[float, ...] = ()
    whole_s: tuple[float, ...] = ()


def run(order: Order, path: str | None = None) -> Run:
    """Start one process and wait for it.

    Args:
        path: where it looks for packages before the installed ones; None: as this process does.

    Raises:
        TargetError: it failed where this process did not; its last line says why.
    """
    env = dict(os.environ) if path is None else os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-P", fresh_process.__file__],
        input=json.dumps(asdict(order)),
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TargetError(
            f"a fresh process that opens {order.bundle} ended with status {done.returncode} "
            f"({last}); is there enough memory for a second copy?"
        )
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def used(files: tuple[Path, ...]) -> tuple[str, ...]:
    """The files of a workload that a fresh process is given."""
    return tuple(str(file) for file in files[:MOST_FILES])
