"""The commands of docs/guarantees.md print what the page says they print."""

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from cascade_calib.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"


def test_console_examples_print_what_the_page_shows():
    examples = re.findall(r"\$ cascade-calibrate (.*)\n([^$`]*)```", PAGE.read_text())
    assert examples
    for arguments, shown in examples:
        assert CliRunner().invoke(cli, shlex.split(arguments)).output == shown
