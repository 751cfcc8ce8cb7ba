"""The picture of a run: one point an epoch, the selected one marked, the same bytes each time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_runtime.errors import ConfigError
from cascade_train.curves import TensorBoardLog, draw_curves, read_log, selected_epoch, write_curves


def epochs(n: int, best: int) -> list[dict[str, object]]:
    return [
        {
            "epoch": i,
            "loss": 1 / (i + 1),
            "lr": 1e-3 * (n - i) / n,
            "accuracy": [0.8 + 0.01 * i, 0.85 + 0.01 * i],
            "augrc": 0.1 / (i + 1),
            "fnr": 0.3 / (i + 1),
            "selected": i <= best,
            "images_per_s": 300.0,
            "seconds": 2.0,
        }
        for i in range(n)
    ]


def test_selected_epoch_is_the_last_that_was_kept() -> None:
    assert selected_epoch(epochs(5, best=2))["epoch"] == 2  # type: ignore[index]
    assert selected_epoch([]) is None


def test_curves_are_a_picture_with_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        write_curves(epochs(60, best=40), path, title="run", exits=(2, 6), max_fnr=0.2)
    assert first.read_bytes() == second.read_bytes()
    assert Image.open(first).size[0] > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("n", [1, 6])
def test_selected_epoch_is_marked_in_every_panel(tmp_path: Path, n: int) -> None:
    pictures = []
    for best in (-1, n - 1):
        write_curves(epochs(n, best), tmp_path / f"{best}.png")
        picture = np.asarray(Image.open(tmp_path / f"{best}.png").convert("RGB"), np.int16)
        pictures.append(picture[40:])  # below the title, which says it as well
    changed = np.abs(pictures[0] - pictures[1]).sum(axis=2) > 0
    for rows in np.array_split(changed, 2):
        for panel in np.array_split(rows, 3, axis=1):
            assert panel.any()


def test_run_without_an_epoch_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()


def test_curves_are_drawn_from_a_real_run(base_run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "log.jsonl"):
        (tmp_path / name).write_bytes((base_run / name).read_bytes())
    draw_curves(tmp_path)
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_damaged_log_line_is_named(tmp_path: Path) -> None:
    good = json.dumps(epochs(1, 0)[0])
    (tmp_path / "log.jsonl").write_text(f'{good}\n{{"epoch": 1, "lo')
    with pytest.raises(ConfigError, match=r"log\.jsonl: line 2 is no epoch"):
        read_log(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed"
)
def test_tensorboard_that_is_missing_is_said_with_its_pip_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoardLog(tmp_path)


def test_tensorboard_gets_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    log = TensorBoardLog(tmp_path)
    for entry in epochs(2, 1):
        log.write(entry)
    log.close()
    assert any(tmp_path.glob("events.out.tfevents.*"))
