"""What is known only while training: environment.json, and the curves at the end.

In: a run that trains. Out: `environment.json`, a row for each time that the run was started or
resumed, with its time and peak memory. Versions, machine, commit and the first command stand in
config.json's `made_by`.
"""

from __future__ import annotations

import datetime
import os
import shlex
import sys
import time
from pathlib import Path

import msgspec

from cascade_runtime.errors import ConfigError
from cascade_train.curves import draw_curves, read_log

ENVIRONMENT = "environment.json"
_KEPT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE")


class Session(msgspec.Struct, kw_only=True):
    """One time that a run was started or resumed; `seconds` include reading the data."""

    started: str
    command: str
    threads: int
    device: str
    variables: dict[str, str]
    first_epoch: int
    epochs: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None


class Environment(msgspec.Struct, kw_only=True):
    """environment.json. Memory in bytes; `finished` when training came to its own end."""

    trainable: int
    parameters: int
    finished: bool = False
    sessions: list[Session] = []


class Recorder:
    """Keeps a run's environment.json up to date, and draws its curves at the end.

    Made when training starts, told of each epoch, and finished when it is over; what a killed run
    had reached stays written.
    """

    def __init__(self, run: Path, *, trainable: int, parameters: int, began: float | None = None):
        """`began` is the `time.monotonic()` of the command's start, else now."""
        import torch

        self.run, self.began = run, time.monotonic() if began is None else began
        earlier = read_environment(run)
        self.environment = Environment(
            trainable=trainable,
            parameters=parameters,
            sessions=earlier.sessions if earlier else [],
        )
        self.session = Session(
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            variables={name: os.environ[name] for name in _KEPT if name in os.environ},
            first_epoch=_epochs_logged(run),
        )
        self.environment.sessions.append(self.session)
        self._write()

    def epoch(self) -> None:
        """One more epoch is done and logged."""
        self.session.epochs += 1
        self._write()

    def finish(self) -> None:
        """Training came to its end: note it and draw the curves."""
        self.environment.finished = True
        self._write()
        draw_curves(self.run)

    def _write(self) -> None:
        self.session.seconds = round(time.monotonic() - self.began, 3)
        self.session.peak_memory = peak_memory()
        data = msgspec.json.format(msgspec.json.encode(self.environment), indent=2) + b"\n"
        temporary = self.run / f".{ENVIRONMENT}.part"
        try:
            temporary.write_bytes(data)
            temporary.replace(self.run / ENVIRONMENT)
        finally:
            temporary.unlink(missing_ok=True)


def peak_memory() -> int | None:
    """The most memory this process has held, in bytes (resident set); None where unknown.

    Linux's own mark of the running program comes first: `ru_maxrss` of a program that was started
    by a larger one begins at that one's size.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def read_environment(run: Path) -> Environment | None:
    """What a run's environment.json says; None where it is missing or damaged."""
    try:
        return msgspec.json.decode((run / ENVIRONMENT).read_bytes(), type=Environment)
    except (OSError, msgspec.DecodeError):
        return None


def _epochs_logged(run: Path) -> int:
    try:
        return len(read_log(run))
    except ConfigError:
        return 0
