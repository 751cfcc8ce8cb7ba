"""The studies run: each on the least that it can do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cascade_runtime.manifest import POLICIES

from ..runtime.conftest import Sample
from ..runtime.native_build import native_folder

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


def test_native_identity_compares_every_policy_and_finds_no_difference(template: Sample) -> None:
    probe = native_folder() / "pixels_probe"
    if not probe.exists():
        pytest.skip("pixels_probe is not built: needs GoogleTest's development files")
    given = ("--images", 150, "--probe", probe, "--json")
    found = json.loads(study("native_identity.py", template.path, *given))
    pixels, rows = found["pixels"], found["decisions"]
    assert (pixels["images"], pixels["images_off"], pixels["one_sided"]) == (150, 0, 0)
    assert len(pixels["by_kind"]) == 5
    assert rows[0]["policy"] == "certified, from files"
    assert {(row["target"], row["policy"]) for row in rows[1:]} == {
        (target, policy)
        for target in template.manifest.targets
        for policy in (*POLICIES, "certified, its own")
    }
    assert all((row["images"], row["differ"]) == (150, 0) for row in rows)
    assert all(row["verdicts"] >= 3 for row in rows), "the images must differ"


def test_native_identity_counts_what_differs() -> None:
    """Its own count, on two results that are not the same."""
    code = (
        "from native_identity import Tally; from cascade_runtime.cascade import Result;"
        "one = Result('a', 'x', 0, ('x',), 0.25, 0.5, 0, 'acted');"
        "other = Result('a', None, -1, ('x',), 0.25, 0.5, 1, 'below threshold');"
        "tally = Tally('t', 'p'); tally.add([one, one], [one, other]);"
        "assert (tally.images, tally.differ, len(tally.first)) == (2, 1, 1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=STUDIES, check=True)


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


@pytest.mark.slow
def test_exit_placement_sets_what_was_expected_beside_what_was_measured(tmp_path: Path) -> None:
    fit = [sys.executable, "-m", "cascade_train.cli", "fit", "--data", "roadworks:day?n=400"]
    least = ["--out", str(tmp_path / "run"), "--exits", "1,2", "--epochs", "1", "--threads", "1"]
    subprocess.run([*fit, *least, "--splits", ".4,.2,.2,.2"], check=True, timeout=240)
    few = ("--exits", "1,2", "--alpha", 0.6, "--coverage", 0.1, "--best", 1, "--rounds", 1)
    said = study("exit_placement.py", tmp_path / "run", *few, "--target", "onnxruntime/fp32/cpu")
    assert said.startswith("exits | expected ms")
    assert "\n1,2 | " in said and "CERTIFIED" in said
