"""The options by which a promise is asked for, of every command that takes them whole.

In: what was typed. Out: a `Request`, its fractions exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cascade_calib.path import Request

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--alpha", default="0.01", show_default=True, help="The risk to promise."),
    click.option(
        "--delta", default="0.05", show_default=True, help="How often the promise may fail."
    ),
    click.option(
        "--coverage", default="0.7", show_default=True, help="Least share of images acted on."
    ),
    click.option("--fnr", help="Also promise this share of missed positives."),
)


def promise_options(command: F) -> F:
    """`--alpha`, `--delta`, `--coverage` and `--fnr`, as text for `request_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def request_of(alpha: str, delta: str, coverage: str, fnr: str | None, **more: Any) -> Request:
    """The promise that was asked for; `more` are the other fields of a `Request`.

    Raises:
        ConfigError: one of them is no fraction in its range.
    """
    from cascade_calib.bounds import as_fraction
    from cascade_calib.path import Request

    return Request(
        as_fraction(alpha, "--alpha"),
        as_fraction(delta, "--delta"),
        as_fraction(coverage, "--coverage", closed=True),
        fnr=None if fnr is None else as_fraction(fnr, "--fnr"),
        **more,
    )
