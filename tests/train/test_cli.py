"""`cascade-train` as people meet it: one line for their mistakes, and exit status 1."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Command = Callable[..., tuple[int, str, str]]
QUICK = ("--exits", "1,2", "--image-size", 32, "--epochs", 1, "--batch-size", 64)
QUICK += ("--amp", "none", "--threads", 1)


def only_error(err: str) -> str:
    """The one `error:` line, when nothing but progress stands beside it."""
    lines = [line for line in err.splitlines() if " left" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_fit_makes_a_run_and_says_where(
    square_folder: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "run"
    status, said, _ = command("fit", "--data", square_folder, "--out", out, *QUICK)
    assert status == 0
    assert said.splitlines()[-1] == f"run: {out}"
    assert json.loads((out / "config.json").read_text())["fit"]["epochs"] == 1
    status, _, err = command("fit", "--data", square_folder, "--out", out, *QUICK)
    assert status == 1
    assert "already holds a run" in only_error(err)
    status, _, _ = command("fit", "--data", square_folder, "--out", out, *QUICK, "--resume")
    assert status == 0
    adapted = tmp_path / "adapted"
    options = ("--init", out, "--adapter", "lora", "--rank", 2, "--adapter-targets", "qv")
    status, said, _ = command(
        "fit", "--data", square_folder, "--out", adapted, *QUICK[4:], *options, "--augment", "none"
    )
    assert status == 0
    config = json.loads((adapted / "config.json").read_text())
    assert (config["adapter"]["rank"], config["fit"]["augment"]["policy"]) == (2, "none")
    assert (adapted / "curves.png").exists() and (adapted / "scores.json").exists()


def folder_of(root: Path, **classes: int) -> Path:
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 100 * label, 0)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"plain": 20}, "plain"),
        ({"a": 5, "b": 5, "c": 5}, "c"),
        ({"plain": 20, "square": 1}, "square"),
        ({"plain": 20, "square": 0}, "square"),
    ],
)
def test_folder_without_two_full_classes_is_one_line(
    tmp_path: Path, command: Command, classes: dict[str, int], words: str
) -> None:
    data = folder_of(tmp_path / "data", **classes)
    status, _, err = command("fit", "--data", data, "--out", tmp_path / "run", *QUICK)
    assert status == 1
    assert words in only_error(err)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "no/such/folder"), "no/such/folder"),
        (("--data", "roadworks:noon"), "noon"),
        (("--preset", "vith16"), "preset 'vith16' is unknown"),
        (("--exits", "1,9"), "exits 1,9"),
        (("--image-size", "33"), "image size 33"),
        (("--adapter", "lora"), "an adapter needs trained weights"),
        (("--epochs", "0"), "epochs is 0"),
        (("--lr", "nan"), "lr is nan"),
        (("--splits", "1,1,1,1"), "fractions"),
        (("--splits", ".5,.5"), "four shares"),
        (("--set", "fit.lrr=1"), "did you mean fit.lr?"),
        (("--freeze", "backbone", "--amp", "fp16"), "fp16, which needs a GPU"),
        (("--sharded",), "spreads the network over several processes"),
        (("--resume",), "holds no run to resume"),
        (("--init", "nowhere"), "nowhere is no run folder"),
        (("--weights", "nowhere/at/all"), "cannot be loaded"),
    ],
)
def test_mistake_is_one_line_and_status_1(
    square_folder: Path,
    tmp_path: Path,
    command: Command,
    options: tuple[str, ...],
    words: str,
) -> None:
    base = {"--data": str(square_folder), "--out": str(tmp_path / "run")}
    given = [x for pair in base.items() if pair[0] not in options for x in pair]
    status, _, err = command("fit", *given, "--threads", 1, *options)
    assert status == 1
    assert words in only_error(err)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--exits", "two"), "'two' is not a comma-separated list of numbers"),
        (("--threads", "0"), "'--threads'"),
        (("--amp", "fp8"), "'fp8' is not one of"),
    ],
)
def test_option_that_is_no_value_is_a_usage_error(
    square_folder: Path, tmp_path: Path, command: Command, options: tuple[str, ...], words: str
) -> None:
    status, _, err = command("fit", "--data", square_folder, "--out", tmp_path / "run", *options)
    assert status == 2
    assert words in err


def test_out_that_is_a_file_is_one_line(
    square_folder: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        status, _, err = command("fit", "--data", square_folder, "--out", out, *QUICK)
        assert status == 1
        assert "the folder cannot be made" in only_error(err)


def test_data_splits_and_draws_without_training(
    square_folder: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "looked"
    status, said, _ = command("data", square_folder, "--out", out, "--size", 32)
    assert status == 0
    assert {path.name for path in out.iterdir()} == {"splits.json", "contact_sheet.png"}
    assert "240 images read, none skipped" in said
    assert "val_calib" in said


def test_presets_lists_every_size(command: Command) -> None:
    status, said, _ = command("presets")
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines()[1:]}
    assert rows["vith16plus"] == ["1280", "32", "20", "16", "224", "10,32"]
    assert list(rows) == [
        "tiny",
        "vits16",
        "vits16plus",
        "vitb16",
        "vitl16",
        "vith16plus",
        "vit7b16",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from cascade_train.cli import cli\n"
        f"cli({arguments}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
