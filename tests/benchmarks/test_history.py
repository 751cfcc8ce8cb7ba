"""Commits compared in pairs: noise widens intervals and raises no alarm, a slowdown does."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cascade_runtime
from cascade_bench import journal
from cascade_bench.fresh import Order, Run
from cascade_bench.history import ERROR, METRICS, Plan, entries, judge, start
from cascade_bench.revisions import checked_out, own_checkout, revision
from cascade_runtime.errors import ConfigError, TargetError

from ..runtime.conftest import ONNX, Sample
from .conftest import Done
from .test_schemas import check

Bench = Callable[..., Done]
QUICK = ("--pairs", 8, "--seconds", 0, "--threads", 1, "--target", ONNX)


def simulated(pairs: int, slower: float, noise: float, seed: int) -> tuple[list[Run], list[Run]]:
    """Runs of both sides on a machine that wanders by a half and more, and stalls now and then."""
    rng = np.random.default_rng(seed)
    wander = np.exp(np.cumsum(rng.normal(0, 0.1, pairs)))
    sides = []
    for ratio in (1.0, slower):
        own = np.exp(rng.normal(0, noise, (len(METRICS), pairs)))
        own[:, rng.random(pairs) < 0.05] *= 5
        times = ratio * wander * own
        sides.append([Run(a, 0.0, 0.0, b, "", (c,), (d,)) for a, b, c, d in times.T.astype(float)])
    return sides[0], sides[1]


def verdicts(slower: float, allowed: float, noise: float = 0.02) -> np.ndarray:
    """Whether each metric is a regression, in each of 400 simulated histories: bool [400, 4]."""
    pairs = Plan(Path("x"), "HEAD").pairs
    return np.array(
        [
            [x.verdict == "regression" for x in judge(*sides, allowed=allowed, images=1)]
            for sides in (simulated(pairs, slower, noise, seed) for seed in range(400))
        ]
    )


def alarms(slower: float, allowed: float, noise: float = 0.02) -> float:
    """The share of simulated histories with a regression in any metric."""
    return float(verdicts(slower, allowed, noise).any(axis=1).mean())


def test_equal_commits_raise_no_alarm_however_noisy_the_machine() -> None:
    assert alarms(slower=1.0, allowed=1.05) == 0
    assert alarms(slower=1.0, allowed=1.05, noise=0.3) <= 0.02


def test_false_alarms_at_the_very_limit_are_as_rare_as_stated() -> None:
    """At most half of ERROR in the long run; 400 draws of 2.5 % are seldom above 4.5 %."""
    assert alarms(slower=1.05, allowed=1.05) <= ERROR / 2 + 0.02


def test_a_slowdown_of_ten_percent_is_found() -> None:
    """Of any one metric, with processes that vary by 2 %; docs/benchmarks.md has more noise."""
    assert (verdicts(slower=1.10, allowed=1.05).mean(axis=0) >= 0.9).all()
    assert alarms(slower=1.10, allowed=1.05) >= 0.95


def test_a_noisy_machine_says_undecided_and_never_within() -> None:
    sides = simulated(8, 1.0, noise=0.3, seed=1)
    assert {x.verdict for x in judge(*sides, allowed=1.05, images=1)} == {"undecided"}
    quiet = simulated(32, 1.0, noise=0.005, seed=1)
    assert {x.verdict for x in judge(*quiet, allowed=1.05, images=1)} == {"within"}


def git(repository: Path, *words: str) -> str:
    named = ["-c", "user.name=T", "-c", "user.email=t@example.org", *words]
    return subprocess.run(
        ["git", "-C", repository, *named], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits: this runtime, one whose first decision takes a while, and one without any."""
    root = tmp_path / "repository"
    package = root / "runtime" / "cascade_runtime"
    source = Path(cascade_runtime.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "as it is")
    slow = "\nimport time as _time\n_time.sleep(2)\n"
    with (package / "cascade.py").open("a") as file:
        file.write(slow)
    git(root, "commit", "-qam", "sleeps on import")
    git(root, "rm", "-rq", "runtime")
    git(root, "commit", "-qm", "no runtime")
    return root


def test_slower_commit_is_status_six_and_is_kept(
    bench: Bench,
    template: Sample,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    state, plot, page = (tmp_path / name for name in ("h.jsonl", "h.png", "h.html"))
    revisions = ["--repository", repository, "--baseline", "HEAD~2", "--rev", "HEAD~1"]
    words = ["history", template.path, *revisions, *QUICK, "--state", state]
    done = bench(*words, quick=False)
    assert done.status == 6, done.err
    assert "REGRESSION" in done.out and "sleeps on import" in done.out
    assert "first decision" in done.out
    entry = json.loads(state.read_text())
    check("history", entry)
    found = {finding["metric"]: finding for finding in entry["findings"]}
    assert found["first decision"]["verdict"] == "regression"
    assert found["peak memory"]["verdict"] != "regression"
    assert entry["revision"]["commit"] == git(repository, "rev-parse", "HEAD~1")
    assert git(repository, "worktree", "list").count("\n") == 0  # nothing is left behind

    state.write_text(state.read_text() * 2)
    shown = bench(
        *("history", "--show", "--state", state, "--plot", plot, "--report", page), quick=False
    )
    assert shown.status == 6 and "2 comparisons, 2 with a regression" in shown.out
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    assert "Ratios" in page.read_text()
    listed = bench("history", "--show", "--state", state, "--json", quick=False).record
    assert [x["passed"] for x in listed["entries"]] == [False, False]

    kept = entries(journal.read(state), state)[0]
    monkeypatch.setattr("cascade_bench.history.compare", lambda *_: kept)
    assert bench(*words, "--json", quick=False).record == entry
    assert len(journal.read(state)) == 3
    request.getfixturevalue("full_disk")
    done = bench(*words, "--json", "--plot", plot, quick=False)  # printed, though it is not kept
    assert done.status == 1 and "No space left" in done.err and done.record == entry


def test_process_that_imports_another_runtime_is_refused(template: Sample, tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()  # empty: the installed runtime would answer instead
    files = (str(tmp_path / "x.png"),)
    Image.new("RGB", (8, 8)).save(files[0])
    with pytest.raises(TargetError):
        start(Order(str(template.path), ONNX, 1, files, seconds=0.0), tmp_path)


def test_commits_that_cannot_be_had_are_told(
    bench: Bench, template: Sample, repository: Path, tmp_path: Path
) -> None:
    words = ["history", template.path, *QUICK, "--state", tmp_path / "h.jsonl"]
    for repo, baseline, said in (
        (repository, "no-such-branch", "no-such-branch"),
        (repository, "HEAD", "no runtime/cascade_runtime"),
        (tmp_path, "HEAD", "not a git repository"),
    ):
        done = bench(*words, "--repository", repo, "--baseline", baseline, quick=False)
        assert done.status == 1 and said in done.err and done.err.count("error:") == 1
    with pytest.raises(ConfigError, match="no name of a commit"):
        revision(repository, "--output=x")
    assert git(repository, "worktree", "list").count("\n") == 0


def test_worktrees_are_gone_when_what_used_them_failed(repository: Path) -> None:
    side = revision(repository, "HEAD~2")
    with pytest.raises(RuntimeError), checked_out(repository, [side, side]) as folders:
        assert all((folder / "runtime" / "cascade_runtime").is_dir() for folder in folders)
        raise RuntimeError
    assert not any(folder.exists() for folder in folders)
    assert git(repository, "worktree", "list").count("\n") == 0


def test_default_repository_is_this_one() -> None:
    assert (own_checkout() / "benchmarks" / "cascade_bench").is_dir()


def test_wrong_usage_of_history_is_status_two_and_an_empty_file_is_told(
    bench: Bench, template: Sample, tmp_path: Path
) -> None:
    assert bench("history", quick=False).status == 2
    assert bench("history", template.path, quick=False).status == 2
    assert bench("history", template.path, "--show", quick=False).status == 2
    state = tmp_path / "h.jsonl"
    assert bench("history", "--show", "--state", state, quick=False).status == 1
    state.write_text("")
    done = bench("history", "--show", "--state", state, quick=False)
    assert done.status == 1 and "nothing was compared yet" in done.err
    state.write_text('{"format": "cascade-edge.bench"}\n')
    assert "line 1" in bench("history", "--show", "--state", state, quick=False).err
