"""The commands of docs/calibration.md, run in its order, print what the page says they print."""

import re
import shlex
import shutil
from pathlib import Path

import pyarrow
from click.testing import CliRunner
from pyarrow import csv
from test_scores import model_scores

from cascade_calib.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "calibration.md"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[tuple[str, str]]:
    """(command, what is printed below it), in the order of reading."""
    found = []
    for block in BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


def run(command: str) -> tuple[str, int]:
    program, *arguments = shlex.split(command)
    if program == "cp":
        shutil.copytree(*arguments[1:])
        return "", 0
    assert program == "cascade-calibrate"
    done = CliRunner().invoke(cli, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output, done.exit_code


def test_console_examples_print_what_the_page_shows(casts, tmp_path, monkeypatch):
    for folder in ("select", "calib", "more", "test", "today", "dusk"):
        (tmp_path / folder).symlink_to(casts / folder)
    shutil.copytree(casts / "one.cascade", tmp_path / "roadworks.cascade")
    csv.write_csv(pyarrow.table(model_scores(2000, 0)), tmp_path / "other_model.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    statuses = []
    for command, shown in examples(PAGE.read_text("utf-8")):
        output, status = run(command)
        statuses.append(status)
        assert output == shown, command
    assert len(statuses) >= 9
    assert statuses.count(7) == 2  # the two tests against the images taken at dusk


def test_every_verb_is_on_the_page():
    page = PAGE.read_text("utf-8")
    verbs = {name for name in cli.commands if name != "scores"} | {"scores export"}
    for verb in verbs | {"scores certify"}:
        assert f"$ cascade-calibrate {verb} " in page, verb
