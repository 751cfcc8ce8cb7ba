"""`cascade-compile` as people meet it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cascade_compile import targets
from cascade_runtime.bundle import Bundle
from cascade_runtime.cascade import Cascade
from cascade_runtime.decision import decide

Command = Callable[..., tuple[int, str, str]]
ONNX = "onnxruntime/fp32/cpu"


def only_error(err: str) -> str:
    """The one `error:` line, when nothing but progress stands beside it."""
    lines = [line for line in err.splitlines() if " left" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_bundle_is_made_at_the_promise_asked_for(
    trained, command: Command, no_export: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "my squares.cascade"
    options = ("--target", ONNX, "--target", ONNX, "--alpha", "0.2", "--coverage", "0.5")
    status, said, _ = command("bundle", trained.run, "--out", out, *options, "--threads", 1)
    assert status == 0
    assert f"{ONNX}: CERTIFIED at alpha 20 %" in said
    assert said.splitlines()[-1] == f"bundle: {out} (report: {out / 'report.html'})"
    manifest = Bundle.open(out).manifest
    certificate = manifest.certificates[ONNX]
    assert (certificate.alpha, certificate.delta, certificate.coverage_floor) == (0.2, 0.05, 0.5)
    assert certificate.claims == 1  # the same target twice is one
    assert manifest.model.name == "my squares"


def test_false_negative_rate_can_be_promised_too(
    trained, command: Command, no_export: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.cascade"
    options = ("--target", ONNX, "--alpha", "0.3", "--coverage", "0.5", "--fnr", "0.3")
    status, said, _ = command("bundle", trained.run, "--out", out, *options, "--threads", 1)
    assert status == 0, said
    certificate = Bundle.open(out).manifest.certificates[ONNX]
    assert certificate.fnr_promised == 0.3
    assert certificate.fnr_upper is not None and certificate.fnr_upper <= 0.3


@pytest.mark.parametrize("policy", ["softmax", "gate", "scrc-i", "scrc-t"])
def test_policy_is_chosen_at_bundling_and_the_runtime_follows_it(
    policy: str, trained, command: Command, no_export: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.cascade"
    options = ("--target", ONNX, "--alpha", "0.3", "--coverage", "0.5", "--policy", policy)
    status, said, _ = command("bundle", trained.run, "--out", out, *options, "--threads", 1)
    assert status == 0, said
    cascade = Cascade.open(out, self_test=True, warm_up=False)
    assert cascade.decision.policy == policy
    assert (cascade.certificate.sets is None) == (policy in ("softmax", "gate"))
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), np.uint8)
    verdict = decide(cascade.stages.forward_all(pixels), cascade.decision)
    assert [r.label for r in cascade.classify(list(pixels))] == verdict.label.tolist()


def test_infeasible_promise_is_exit_status_5_and_a_sentence(
    trained, command: Command, no_export: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.zip"
    options = ("--target", ONNX, "--alpha", "0.001", "--threads", 1)
    status, said, err = command("bundle", trained.run, "--out", out, *options)
    assert status == 5
    assert "INFEASIBLE at alpha 0.1 %" in said
    assert "error" not in err
    assert Bundle.open(out).manifest.certificates[ONNX].status == "INFEASIBLE"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "tensorrt/int4/gpu"), "target 'tensorrt/int4/gpu' cannot be built"),
        (("--alpha", "2"), "--alpha"),
        (("--alpha", "one"), "--alpha"),
        (("--delta", "0"), "--delta"),
        (("--coverage", "1.5"), "--coverage"),
        (("--out", "x"), "must end in .cascade"),
        (("--data", "nowhere.json"), "nowhere.json"),
    ],
)
def test_mistake_is_one_line_and_an_error_status(
    trained, command: Command, tmp_path: Path, options: tuple[str, str], words: str
) -> None:
    base = () if options[0] == "--out" else ("--out", tmp_path / "x.cascade")
    status, _, err = command("bundle", trained.run, *base, *options)
    assert status == (4 if options[0] == "--target" else 1)
    assert words in only_error(err)


def test_folder_that_is_no_run_is_one_line(command: Command, tmp_path: Path) -> None:
    status, _, err = command("bundle", tmp_path, "--out", tmp_path / "x.cascade")
    assert status == 1
    assert "is no run folder" in only_error(err)


def test_targets_lists_every_target_and_whether_it_runs(command: Command) -> None:
    status, said, _ = command("targets")
    assert status == 0
    assert len(said.splitlines()) == len(targets.every_target())
    assert re.search(rf"^{ONNX} +runs here$", said, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--help"], ["bundle", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from cascade_compile.cli import cli\n"
        f"cli({arguments}, standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'openvino', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
