"""What is known of runs: finished, stopped and damaged ones, and what training noted."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from cascade_runtime.errors import ConfigError
from cascade_train.record import list_runs, show_run
from cascade_train.record_commands import ab_command, list_command, show_command
from cascade_train.record_tables import duration, list_tables, show_tables
from cascade_train.recorder import Recorder, peak_memory, read_environment


@pytest.fixture
def run(base_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that nothing was noted of while it trained, to be damaged."""
    copy = Path(shutil.copytree(base_run, tmp_path / "runs" / "base"))
    (copy / "environment.json").unlink(missing_ok=True)
    return copy


def shown(tables: list[object]) -> str:
    console = Console(width=240, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_finished_run_is_listed_with_what_it_reached(adapted_run: Path, base_run: Path) -> None:
    assert adapted_run.parent == base_run.parent
    found = {run.path: run for run in list_runs(base_run.parent)}
    assert set(found) == {"adapted", "base"}
    base, adapted = found["base"], found["adapted"]
    best = [json.loads(x) for x in (base_run / "log.jsonl").read_text().splitlines()]
    best = [entry for entry in best if entry["selected"]][-1]
    assert (base.status, base.epochs, base.wanted) == ("finished", 3, 3)
    assert (base.augrc, list(base.accuracy)) == (best["augrc"], best["accuracy"])
    assert (base.adapter, adapted.adapter, adapted.init) == (None, "lora 4", "../base")
    assert "lora 4" in shown(list_tables([base, adapted]))


def test_run_that_was_stopped_is_unfinished(run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text(lines[0] + "\n")
    (found,) = list_runs(run.parent)
    assert (found.status, found.epochs, found.wanted) == ("unfinished", 1, 3)
    assert "unfinished, 1 of 3" in shown(list_tables([found]))
    (run / "log.jsonl").unlink()
    (found,) = list_runs(run.parent)
    assert (found.status, found.epochs, found.augrc) == ("unfinished", 0, None)


def test_run_that_ran_out_of_patience_is_finished(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["fit"] |= {"epochs": 50, "patience": 1}
    (run / "config.json").write_text(json.dumps(config))
    assert list_runs(run)[0].status == "unfinished"
    log = [json.loads(x) for x in (run / "log.jsonl").read_text().splitlines()]
    log += [{**log[-1], "epoch": 3, "selected": False}]
    (run / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    assert list_runs(run)[0].status == "finished"


def damage_config(run: Path) -> None:
    (run / "config.json").write_text('{"format": "casc')


def damage_log(run: Path) -> None:
    (run / "log.jsonl").write_text('{"epoch": 0, "loss"')


def damage_fields(run: Path) -> None:
    (run / "config.json").write_text('{"format": "cascade-edge.run", "preset": "tiny"}')


def no_config(run: Path) -> None:
    (run / "config.json").unlink()


def no_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def odd_log(run: Path) -> None:
    (run / "log.jsonl").write_text('{"epoch": 0, "selected": true, "augrc": null}\n')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_config, "config.json cannot be read"),
        (damage_log, "log.jsonl: line 1 is no epoch"),
        (damage_fields, "KeyError: 'fit'"),
        (no_config, "config.json is missing"),
        (no_weights, "the selected weights are missing"),
        (odd_log, "its files do not hold what they should"),
    ],
)
def test_damaged_run_is_listed_as_such_beside_the_others(
    run: Path, base_run: Path, damage: object, words: str
) -> None:
    shutil.copytree(base_run, run.with_name("other"))
    damage(run)  # type: ignore[operator]
    broken, whole = list_runs(run.parent)
    assert (broken.path, broken.status, whole.status) == ("base", "damaged", "finished")
    assert words in broken.problem
    assert "damaged" in shown(list_tables([broken, whole]))
    assert "damaged" in shown(show_tables(show_run(run)))
    json.dumps(show_run(run).to_dict(), allow_nan=False)


def test_folders_that_are_no_runs_are_passed_over(run: Path) -> None:
    other = run.parent / "backbone"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "dinov3_vit"}')
    assert [found.path for found in list_runs(run.parent)] == ["base"]
    with pytest.raises(ConfigError, match="is no run folder"):
        show_run(other)
    with pytest.raises(ConfigError, match="is no folder"):
        list_runs(run.parent / "nowhere")


def test_show_has_settings_epochs_and_where_it_was_made(base_run: Path) -> None:
    detail = show_run(base_run)
    text = shown(show_tables(detail))
    assert "lr 0.002" in text
    assert "exits after blocks 1, 2" in text
    assert "selected" in text
    assert json.loads(json.dumps(detail.to_dict()))["config"]["preset"] == "tiny"


def test_names_are_not_read_as_markup(run: Path) -> None:
    strange = run.rename(run.with_name("[red]x"))
    assert "[red]x" in shown(list_tables(list_runs(run.parent)))
    assert "[red]x" in shown(show_tables(show_run(strange)))


def test_recorder_keeps_a_row_for_every_start(run: Path) -> None:
    log = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").unlink()
    killed = Recorder(run, trainable=10, parameters=1000, began=time.monotonic() - 5)
    (run / "log.jsonl").write_text(log[0] + "\n")
    killed.epoch()
    assert list_runs(run)[0].status == "unfinished"
    resumed = Recorder(run, trainable=10, parameters=1000)
    (run / "log.jsonl").write_text("\n".join(log) + "\n")
    resumed.epoch()
    resumed.epoch()
    resumed.finish()
    environment = read_environment(run)
    assert environment is not None
    assert environment.finished
    assert [(s.first_epoch, s.epochs) for s in environment.sessions] == [(0, 1), (1, 2)]
    assert environment.sessions[0].seconds >= 5
    assert (run / "curves.png").exists()
    (found,) = list_runs(run)
    assert (found.status, found.share) == ("finished", 0.01)
    assert found.peak_memory == max(s.peak_memory or 0 for s in environment.sessions)
    assert "1 % of the parameters" in shown(show_tables(show_run(run)))


def test_recorder_begins_anew_over_a_damaged_environment(run: Path) -> None:
    (run / "environment.json").write_text("{")
    assert list_runs(run)[0].status == "finished"
    Recorder(run, trainable=1, parameters=2)
    environment = read_environment(run)
    assert environment is not None
    assert len(environment.sessions) == 1


def test_peak_memory_is_of_this_program_not_of_the_one_that_started_it() -> None:
    ballast = bytearray(b"x") * (300 * 2**20)  # this process is large now, its child is not
    here = peak_memory()
    if here is None:
        pytest.skip("no measure of peak memory on this platform")
    code = "from cascade_train.recorder import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert here > len(ballast)
    assert int(child.stdout) < here / 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (4.26, "4.3 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (7320.0, "2 h 2 min")],
)
def test_duration_reads_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_verbs_print_tables_for_people_and_json_for_programs(run: Path) -> None:
    call = CliRunner().invoke
    listed = call(list_command, [str(run.parent)], catch_exceptions=False)
    assert "3 epochs" in listed.output
    (found,) = json.loads(call(list_command, [str(run.parent), "--json"]).output)["runs"]
    assert (found["path"], found["status"]) == ("base", "finished")
    assert "exits after blocks 1, 2" in call(show_command, [str(run)]).output
    assert len(json.loads(call(show_command, [str(run), "--json"]).output)["log"]) == 3
    (run.parent / "none").mkdir()
    assert "no runs in" in call(list_command, [str(run.parent / "none")]).output


def test_ab_checks_both_configs_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: somewhere\n")
    (tmp_path / "b.yaml").write_text("data: somewhere\nfit: {epoch: 3}\n")
    out = tmp_path / "ab"
    done = CliRunner().invoke(ab_command, [*map(str, tmp_path.glob("*.yaml")), "--out", str(out)])
    assert isinstance(done.exception, ConfigError)
    assert "fit.epoch is unknown, did you mean fit.epochs?" in str(done.exception)
    assert not out.exists()
