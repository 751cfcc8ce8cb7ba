"""How a console script ends."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import click
import pytest

from cascade_runtime import command
from cascade_runtime.command import run_command
from cascade_runtime.errors import BundleError, CascadeError, ConfigError, TargetError


def group_raising(error: Exception) -> click.Group:
    def fail() -> None:
        raise error

    return click.Group("x", invoke_without_command=True, callback=fail)


def end(error: Exception, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        run_command(group_raising(error))
    return stop.value.code


def test_error_of_the_input_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(ConfigError("lr is 0,\nwhich is out of range"), monkeypatch) == 1
    assert capsys.readouterr().err == "error: lr is 0, which is out of range\n"


@pytest.mark.parametrize(
    ("kind", "status"),
    [(CascadeError, 1), (ConfigError, 1), (BundleError, 3), (TargetError, 4)],
)
def test_status_tells_whose_fault_it_is(
    kind: type[CascadeError], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end(kind("it does not fit"), monkeypatch) == status


def test_every_status_is_in_the_table_of_the_docs_and_there_once() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d) \|", page, re.MULTILINE)
    ours = [value for name, value in vars(command).items() if name.endswith("_STATUS")]
    assert sorted(map(int, listed)) == sorted([0, 2, *ours])


def test_full_disk_is_one_line_that_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/model.safetensors")
    assert end(full, monkeypatch) == 1
    assert capsys.readouterr().err == "error: runs/a/model.safetensors: No space left on device\n"


@pytest.mark.parametrize("bug", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor")])
def test_bug_keeps_its_traceback(bug: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(type(bug)):
        run_command(group_raising(bug))
