"""How every console script ends: one line for what is not our fault, and an exit status.

The statuses are one set for all commands; docs/commands.md is their table. 2, a wrong command line,
is click's.
"""

from __future__ import annotations

import errno
import sys

import click

from cascade_runtime.errors import BundleError, CascadeError, TargetError

FAILURE_STATUS = 1  # the input or the machine's state is at fault
BUNDLE_STATUS = 3  # a bundle is damaged, tampered with, or not what was certified
TARGET_STATUS = 4  # this machine cannot run the target, or answers otherwise than recorded
INFEASIBLE_STATUS = 5  # a promise was asked for that could not be proven
MISSED_STATUS = 6  # cascade-bench: a limit is missed
ALARM_STATUS = 7  # cascade-calibrate drift: an alarm

# The machine's state, not a bug: no space, no permission, a read-only or full quota'd disk.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG}


def run_command(group: click.Group) -> None:
    """Run a command line; an error of the input or the machine is one line, a bug a traceback."""
    try:
        group()
    except CascadeError as error:
        _fail(" ".join(str(error).split()), status_of(error))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}", FAILURE_STATUS)


def status_of(error: CascadeError) -> int:
    """The exit status that an error ends a command with."""
    if isinstance(error, BundleError):
        return BUNDLE_STATUS
    return TARGET_STATUS if isinstance(error, TargetError) else FAILURE_STATUS


def _fail(message: str, status: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(status)
