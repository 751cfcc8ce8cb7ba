"""libcascade beside what it stands between: the bare engine below it, the Python runtime beside it.

In: a bundle and the images. Out: a `Native`. Ratios are of interleaved pairs on the same images;
memory and the first decision are those of fresh processes without an interpreter, started by
`cascade_overhead`, which `make native` builds next to the library.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from cascade_bench.ratios import Ratio, ratio_of
from cascade_bench.timing import interleaved
from cascade_bench.workload import Workload
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import TargetError
from cascade_runtime.native import engine_environment
from cascade_runtime.native_abi import library_path

COMMAND = "cascade_overhead"
LEAST_PAIRS = 8
MOST_FRAMES = 64


@dataclass(frozen=True)
class Native:
    """What libcascade costs and gives.

    overhead: `cascade_classify` of one frame over the bare calls of its stages' engines, in several
        processes and in both orders of loading: where memory comes to lie is worth a few percent.
    speedup: the Python runtime's time over libcascade's, from files to decisions in `batch`.
    images_per_s: libcascade's there; python_images_per_s: the Python runtime's.
    engine_memory_mib: resident memory of a process that has loaded the engines alone and run them
        on one image and on 32.
    memory_mib: what a process that has opened the bundle and decided as many files has beyond that.
    open_s, first_decision_s: of such a process, from its start of main.
    """

    overhead: Ratio
    speedup: Ratio
    batch: int
    images_per_s: float
    python_images_per_s: float
    engine_memory_mib: float
    memory_mib: float
    open_s: float
    first_decision_s: float


def measure(
    bundle: Path,
    cascade: Cascade,
    native: Cascade,
    work: Workload,
    batch: int,
    seconds: float,
    processes: int,
) -> Native:
    """All of it.

    Args:
        cascade, native: the bundle opened by the Python runtime and by libcascade.
        seconds: for each of the two ratios.
        processes: fresh ones, of each kind.

    Raises:
        TargetError: the command is not built, or it fails.
    """
    words = [str(bundle), cascade.target, str(cascade.threads or 0)]
    opened = [_run("open", *words, str(work.files[0])) for _ in range(processes)]
    bare = [_run("bare", *words, str(run["stage"])) for run in opened]
    engines = median(run["resident_mib"] for run in bare)
    speedup, rates = _speedup(cascade, native, work, batch, seconds)
    return Native(
        overhead=_overhead(words, work, seconds, processes),
        speedup=speedup,
        batch=batch,
        images_per_s=rates[1],
        python_images_per_s=rates[0],
        engine_memory_mib=engines,
        memory_mib=median(run["resident_mib"] for run in opened) - engines,
        open_s=median(run["open_s"] for run in opened),
        first_decision_s=median(run["first_decision_s"] for run in opened),
    )


def _overhead(words: Sequence[str], work: Workload, seconds: float, processes: int) -> Ratio:
    frames = work.pixels[:MOST_FRAMES]
    share, orders = str(seconds / (2 * processes)), processes * ("bare", "cascade")
    with NamedTemporaryFile(prefix="cascade-bench-") as file:
        file.write(np.ascontiguousarray(frames).tobytes())
        file.flush()
        runs = [_run("pairs", *words, share, file.name, first) for first in orders]
    ours, bare = (np.concatenate([run[side] for run in runs]) for side in ("cascade_s", "bare_s"))
    return ratio_of(ours, bare, len(frames))


def _speedup(
    cascade: Cascade, native: Cascade, work: Workload, batch: int, seconds: float
) -> tuple[Ratio, tuple[float, float]]:
    images = max(batch, len(work) // batch * batch)
    files = [work.files[index % len(work)] for index in range(images)]
    times = interleaved(
        lambda _: cascade.classify(files, batch),
        lambda _: native.classify(files, batch),
        seconds=seconds,
        least=LEAST_PAIRS,
    )
    rates = images / np.median(times, axis=0)
    return ratio_of(times[:, 0], times[:, 1], images), (float(rates[0]), float(rates[1]))


def command() -> Path:
    """What starts the fresh processes.

    Raises:
        TargetError: it is not built.
    """
    found = Path(library_path()).with_name(COMMAND)
    if not found.exists():
        raise TargetError(f"{found} is not there; make native builds it beside libcascade")
    return found


def _run(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [command(), *words],
        env=engine_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TargetError(f"{' '.join([COMMAND, *words])}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
