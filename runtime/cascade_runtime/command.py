"""How every console script ends: one line and exit status 1 for what is not our fault."""

from __future__ import annotations

import errno
import sys

import click

from cascade_runtime.errors import CascadeError

INFEASIBLE_STATUS = 3  # a promise was asked for that could not be proven

# The machine's state, not a bug: no space, no permission, a read-only or full quota'd disk.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT}


def run_command(group: click.Group) -> None:
    """Run a command line; an error of the input or the machine is one line, a bug a traceback."""
    try:
        group()
    except CascadeError as error:
        _fail(" ".join(str(error).split()))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}")


def _fail(message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(1)
