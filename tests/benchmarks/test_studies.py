"""The studies run: each on the least that it can do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


def study(script: str, *arguments: object) -> str:
    command = [sys.executable, str(STUDIES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loader_speed_measures_every_reader(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    few = ("--data", "roadworks:day?n=120", "--batch-size", 16, "--steps", 1, "--workers", 0)
    study("loader_speed.py", *few, "--json", out)
    rows = json.loads(out.read_bytes())["rows"]
    assert [row["reader"] for row in rows] == ["memory", "cached", "files"]
    assert all(row["loader"] > 0 and row["kept"] > 0 for row in rows)


def test_heads_only_says_how_many_times_faster() -> None:
    few = ("--preset", "tiny", "--images", 8, "--batch-size", 4, "--pairs", 1, "--epochs", 2)
    assert "times as fast" in study("heads_only.py", *few)


def test_page_of_training_studies_has_a_row_for_every_arm(tmp_path: Path) -> None:
    rows = [
        {"arm": "full", "figure": "accuracy, last exit, %", "values": [95.0, 96.0]},
        {"arm": "LoRA", "figure": "accuracy, last exit, %", "values": [94.0, 95.5]}
        | {"reference": "full", "difference": -0.75, "low": -2.0, "high": 0.5},
    ]
    rows[0] |= {"difference": None, "low": None, "high": None}  # as a study writes them
    kept = {"title": "Adapters", "command": "python it", "setting": "Small.", "rows": rows}
    (tmp_path / "study-adapters.json").write_text(json.dumps(kept))
    study("training_studies.py", "page", "--work", tmp_path, "--write", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| full | accuracy, last exit, % | 95.50 |  |  |  |" in page
    assert "| LoRA | accuracy, last exit, % | 94.75 | -0.75 (-2.00 to +0.50) | full |  |" in page


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("scores", "Objectives and exit scores, roadworks"),
        ("adapters", "From day to night"),
        ("explora", "Few labels at night"),
    ],
)
@pytest.mark.slow
def test_training_study_ends_in_a_page(name: str, heading: str, tmp_path: Path) -> None:
    work, written = tmp_path / "work", tmp_path / "page.md"
    least = ("--seeds", 2, "--epochs", 1, "--count", 300, "--images", 40)
    study("training_studies.py", name, "--work", work, *least)
    study("training_studies.py", "page", "--work", work, "--write", written)
    assert heading in written.read_text()
