"""From rendered images to decisions, by the commands alone; and on a machine without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
BASE = ("numpy", "pillow", "msgspec", "click", "onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """Day base, night adapter, two targets; the promise is small enough for a minute's training.

    Less of it, and the network guesses: a gate fitted to guesses magnifies what bfloat16 rounds by
    more than parity allows, on one kind of processor or another.
    """
    work = tmp_path_factory.mktemp("way")
    cache = {"CASCADE_EDGE_CACHE": str(work / "cache")}
    fit = "cascade-train fit --batch-size 32 --data"
    run(f"{fit} 'roadworks:day?n=900' --out day --epochs 8", work, **cache)
    adapt = f"{fit} 'roadworks:night?n=600' --out night --init day --adapter lora"
    run(f"{adapt} --epochs 4 --splits .4,.2,.2,.2", work, **cache)
    promise = "--alpha 0.6 --coverage 0.5"
    run(f"cascade-compile bundle night --out night.cascade {promise}", work)
    return work / "night.cascade"


def test_bundle_answers_evaluates_and_benches(bundle: Path, run: Run) -> None:
    splits = bundle.parent / "night" / "splits.json"
    root = Path(json.loads(splits.read_text())["root"])
    image = next(iter(sorted(root.rglob("*.png"))))
    answer = run(f"cascade-run classify night.cascade '{image}' missing.png --json", bundle.parent)
    first, second = map(json.loads, answer.stdout.splitlines())
    assert first["decision"] in ("clear", "roadwork", None)
    assert second["decision"] is None and "unreadable" in second["reason"]
    told = run(
        "cascade-calibrate evaluate night.cascade --data night/splits.json --split val_test --json",
        bundle.parent,
    )
    assert json.loads(told.stdout)["images"] == 120
    run("cascade-run verify night.cascade --golden", bundle.parent)


def test_report_states_the_promise_in_words(bundle: Path) -> None:
    page = (bundle / "report.html").read_text(encoding="utf-8")
    assert "at most 60 % are wrong" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_base_install_classifies_without_torch(bundle: Path, tmp_path: Path) -> None:
    venv = tmp_path / "lean"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "-c", ROOT / "constraints.txt", ROOT], capture_output=True, text=True
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    code = (
        "import sys, numpy as np\n"
        "from cascade_runtime import Cascade\n"
        f"cascade = Cascade.open({str(bundle)!r})\n"
        "result, = cascade.classify([np.zeros((80, 60, 3), np.uint8)])\n"
        "assert cascade.target == 'onnxruntime/fp32/cpu', cascade.why\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules\n"
        "print(result.reason)\n"
    )
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
    assert "torch" not in listed and all(name in listed for name in BASE)
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    script = venv / "bin" / "cascade-run"
    shown = subprocess.run([script, "info", bundle], capture_output=True, text=True)
    assert shown.returncode == 0 and "onnxruntime/fp32/cpu" in shown.stdout
