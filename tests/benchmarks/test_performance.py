"""docs/performance.md is made by one command, which measures what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..compile.conftest import Made, Trained, made, trained

__all__ = ["made", "trained"]

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "benchmarks" / "studies"
LEAST = ("--seconds", 0, "--rounds", 1, "--threads", 1, "--peers", "transformers,onnxruntime")


def performance(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(STUDIES / "performance.py"), *map(str, arguments)]
    given = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=given)


@dataclass(frozen=True)
class Kept:
    """A folder of work with every record of one tiny network, and how it is measured again."""

    work: Path
    measure: Callable[[], subprocess.CompletedProcess[str]]

    @property
    def records(self) -> list[Path]:
        return sorted((self.work / "records").iterdir())


@pytest.fixture(scope="module")
def kept(made: Made, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("performance")
    nothing, work = root / "nothing", root / "work"
    for folder in (nothing, work):
        folder.mkdir()
    (work / "tiny").symlink_to(trained.run)
    (work / "tiny.cascade").symlink_to(made.path)  # else a search would be made

    def measure() -> subprocess.CompletedProcess[str]:
        asked = ("measure", "--work", root / "work", "--only", "tiny", *LEAST)
        return performance(*asked, CASCADE_NATIVE_BUILD=str(nothing))

    done = measure()
    assert done.returncode == 0, done.stderr
    return Kept(root / "work", measure)


def page(kept: Kept, folder: Path) -> str:
    done = performance("page", "--work", kept.work, "--write", folder / "performance.md")
    assert done.returncode == 0, done.stderr
    return (folder / "performance.md").read_text()


def change(record: Path, spoil: Callable[[dict[str, Any]], object]) -> bytes:
    """What the record was before."""
    before = record.read_bytes()
    found = json.loads(before)
    spoil(found)
    record.write_text(json.dumps(found))
    return before


def test_what_is_there_is_not_measured_again(kept: Kept) -> None:
    names = [path.stem for path in kept.records]
    assert names[0] == "tiny-compare" and names[-1] == "tiny-run-python"
    assert all(name.startswith("tiny-roofline-") for name in names[1:-1]) and len(names) == 4
    lost = kept.records[-1]
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept.records}
    done = kept.measure()
    assert done.returncode == 0 and done.stderr.count("is there") == 3
    assert lost.exists() and {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("was", ["0" * 64, None])
def test_record_of_another_bundle_is_measured_again(
    kept: Kept, was: str | None, tmp_path: Path
) -> None:
    run = kept.records[-1]
    mine = json.loads(run.read_bytes())["bundle_sha256"]
    change(
        run, lambda found: found.update(bundle_sha256=was) if was else found.pop("bundle_sha256")
    )
    refused = performance("page", "--work", kept.work, "--write", tmp_path / "page.md")
    assert refused.returncode == 1
    assert ("of 2 bundles" if was else "bundle_sha256") in refused.stderr
    done = kept.measure()
    assert done.returncode == 0 and done.stderr.count("is there") == 3
    assert f"{run.stem}: is of another bundle" in done.stderr
    assert json.loads(run.read_bytes())["bundle_sha256"] == mine


def test_page_has_a_table_for_every_record_and_is_the_same_each_time(
    kept: Kept, tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    first, second = (page(kept, folder) for folder in folders)
    assert first == second
    for title in ("Beside its peers", "Latency and throughput", "Below this machine's ceilings"):
        assert f"### {title}" in first
    for part in (
        "| **cascade** |",
        "| transformers pipeline fp32 |",
        "libcascade was not measured",
    ):
        assert part in first
    assert str(kept.work.parent) not in first and "/tmp" not in first
    assert "`cascade-bench compare tiny.cascade --run tiny --data tiny/splits.json" in first
    pictures = sorted((folders[0] / "performance").iterdir())
    assert [path.name for path in pictures] == ["tiny-peers.svg", "tiny-rooflines.svg"]
    for path in pictures:
        assert path.read_bytes() == (folders[1] / "performance" / path.name).read_bytes()
        assert f"(performance/{path.name})" in first


def test_verdicts_turn_with_the_figures(kept: Kept, tmp_path: Path) -> None:
    """Each record's figures are put on one side of their limits, then on the other."""
    compare, run = kept.records[0], kept.records[-1]
    was = compare.read_bytes(), run.read_bytes()
    said = []
    for ratio, own in ((10.5, 0.049), (1.9, 0.051)):

        def peers(found: dict[str, Any], ratio: float = ratio) -> None:
            for batch in found["batches"]:
                for speed in batch["speeds"]:
                    speed["over_files"]["value"] = ratio

        def shares(found: dict[str, Any], own: float = own) -> None:
            for part in found["own"]:
                part["own"] = own

        change(compare, peers)
        change(run, shares)
        lines = page(kept, tmp_path).splitlines()
        asked = [
            x for x in lines if x.startswith("| tiny |") and (" over " in x or "own share" in x)
        ]
        said.append([line.rpartition("|")[0].rpartition("|")[2].strip() for line in asked])
    compare.write_bytes(was[0])
    run.write_bytes(was[1])
    assert len(said[0]) >= 4 + 2
    assert set(said[0]) == {"reached"} and set(said[1]) == {"**not reached**"}


def test_a_damaged_record_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    done = performance("page", "--work", tmp_path, "--write", tmp_path / "page.md")
    assert done.returncode == 1 and "measure makes them" in done.stderr
    (tmp_path / "records" / "tiny-compare.json").write_text('{"format": 1}')
    done = performance("page", "--work", tmp_path, "--write", tmp_path / "page.md")
    assert done.returncode == 1 and "tiny-compare.json" in done.stderr
    assert not (tmp_path / "page.md").exists()


def test_help_and_an_unknown_network(tmp_path: Path) -> None:
    help_text = performance("--help").stdout
    assert "build/performance" in help_text and "--rounds" in help_text
    done = performance("measure", "--work", tmp_path, "--only", "vith")
    assert done.returncode == 2 and "choose of tiny, vits16, vitb16" in done.stderr


def test_a_folder_in_the_way_of_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tiny-day").mkdir()
    (tmp_path / "tiny-day" / "config.json").write_text("mine")
    done = performance("measure", "--work", tmp_path, "--only", "tiny")
    assert done.returncode == 1 and "cascade-train fit" in done.stderr, done.stderr
    assert (tmp_path / "tiny-day" / "config.json").read_text() == "mine"
