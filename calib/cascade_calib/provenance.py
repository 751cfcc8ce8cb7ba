"""Who made an artifact: versions, git commit, seed, command, machine. Goes into every artifact."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from cascade_runtime import __version__
from cascade_runtime.engines import processor
from cascade_runtime.manifest import MadeBy

CPU = ("numpy", "pillow", "onnxruntime", "openvino", "torch", "transformers", "peft", "onnx")
GPU = ("onnxruntime-gpu", "tensorrt", "tensorrt-cu13", "tensorrt-lean-cu13", "cuda-bindings")
PACKAGES = CPU + GPU


def made_by(seed: int) -> MadeBy:
    """Record this process. SOURCE_DATE_EPOCH, when set, fixes the time for repeatable builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = (
        datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
        if epoch
        else datetime.datetime.now(datetime.UTC)
    )
    return MadeBy(
        version=__version__,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        git_commit=_git_commit(),
        seed=seed,
        created=now.isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **_versions()},
        machine=cpu_name(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str:
    """The commit of the working folder, "+dirty" when it has changes, "unknown" outside git."""
    try:
        run = ["git", "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """The processor's own name and the number of usable cores.

    Virtual machines give several generations one name; family and model tell them apart.
    """
    known = processor.fields()
    name = known.get("model name", platform.processor() or platform.machine())
    if "cpu family" in known and "model" in known:
        name += f" (family {known['cpu family']} model {known['model']})"
    return f"{name}, {len(processor.usable_cores())} cores"
