"""`cascade-run`: one line an image, one line an error, and the documented exit statuses."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cascade_runtime import cli, engines
from cascade_runtime.bundle import pack

from .conftest import ONNX, OPENVINO, Sample


@dataclass
class Done:
    """What a run of the command left."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the console script's own entry point."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["cascade-run", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(stop.value.code or 0), captured.out, captured.err)

    return call


def test_classify_prints_one_json_object_a_line(
    run: Any, template: Sample, image_files: list[Path]
) -> None:
    done = run("classify", template.path, *image_files, "--json", "--threads", 1, "--target", ONNX)
    assert done.status == 0
    assert [row["path"] for row in done.rows] == list(map(str, image_files))
    assert set(done.rows[0]) == {
        "path",
        "decision",
        "label",
        "set",
        "p",
        "score",
        "stage",
        "reason",
    }
    assert done.err.startswith("5 images: ")
    assert f"{ONNX} was asked for" in done.err


def test_folder_stands_for_the_images_in_it(
    run: Any, template: Sample, image_files: list[Path]
) -> None:
    folder = image_files[0].parent
    (folder / "notes.txt").write_text("no image")
    done = run("classify", template.path, folder, "--json", "--batch-size", 2, "--threads", 1)
    assert [row["path"] for row in done.rows] == list(map(str, image_files))


def test_unreadable_image_is_a_row_and_not_a_failure(
    run: Any, template: Sample, image_files: list[Path]
) -> None:
    bad = image_files[0].with_name("bad.png")
    bad.write_bytes(b"no picture")
    arguments = ("classify", template.path, bad, image_files[0], "--threads", 1)
    done = run(*arguments, "--json")
    assert done.status == 0
    assert done.rows[0]["p"] is None and done.rows[0]["reason"].startswith("unreadable: ")
    assert "1 unreadable" in done.err
    text = run(*arguments).out.splitlines()
    assert "deferred: unreadable: " in text[0]
    assert " p 0." in text[1] and " stage " in text[1]


def test_folder_without_images_is_an_error(run: Any, template: Sample, tmp_path: Path) -> None:
    done = run("classify", template.path, tmp_path / "nothing.cascade", tmp_path)
    assert done.status == 1 and "no images in this folder" in done.err


def test_damaged_bundle_is_one_line_and_status_three(
    run: Any, sample: Sample, image_files: list[Path]
) -> None:
    (sample.path / "report.html").write_text("forged")
    for command in (("classify", sample.path, image_files[0]), ("info", sample.path)):
        done = run(*command)
        assert done.status == 3 and done.out == ""
        assert done.err.startswith("error: report.html: ") and done.err.count("\n") == 1


def test_wrong_usage_is_status_two(run: Any, template: Sample) -> None:
    assert run("classify", template.path).status == 2
    assert run("classify", template.path, "x.png", "--threads", 0).status == 2
    assert run("fly").status == 2


def test_info_tells_targets_promise_and_choice(run: Any, template: Sample) -> None:
    done = run("info", template.path)
    assert done.status == 0
    for words in (ONNX, OPENVINO, "CERTIFIED: Of the images acted on", "alpha 0.01", "auto: "):
        assert words in done.out
    found = json.loads(run("info", template.path, "--json").out)
    assert found["here"]["auto"] == OPENVINO
    assert found["here"]["unavailable"] == {ONNX: None, OPENVINO: None}
    assert found["manifest"]["model"]["classes"] == ["clear", "roadwork"]


def test_info_works_where_no_target_can_run(
    run: Any, template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "unavailable", lambda _: "the processor is too old")
    done = run("info", template.path)
    assert done.status == 0 and "cannot run here: the processor is too old" in done.out


def test_verify_checks_bytes_and_golden_vectors(run: Any, template: Sample, tmp_path: Path) -> None:
    packed = tmp_path / "a.zip"
    pack(template.path, packed)
    for place in (template.path, packed):
        done = run("verify", place, "--golden", "--threads", 1)
        assert done.status == 0, done.err
        assert "have the hashes they were sealed with" in done.out
        assert f"{ONNX}: answers 6 golden images as recorded" in done.out
        assert f"{OPENVINO}: answers 6 golden images as recorded" in done.out


def test_verify_golden_fails_when_nothing_could_run(
    run: Any, template: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "unavailable", lambda _: "too old")
    done = run("verify", template.path, "--golden")
    assert done.status == 4 and "were not checked" in done.err
    assert run("verify", template.path).status == 0


def test_targets_lists_every_backend_and_the_fix(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.backend("openvino"), "find_spec", lambda _: None)
    done = run("targets")
    assert re.search(rf"^{ONNX} +yes, onnxruntime ", done.out, re.MULTILINE)
    assert (
        "openvino/bf16/cpu          no: openvino is not installed; pip install openvino" in done.out
    )
    found = json.loads(run("targets", "--json").out)["targets"]
    assert found[ONNX] is None and "pip install openvino" in found[OPENVINO]


def test_file_name_that_no_terminal_can_show_is_escaped(
    run: Any, template: Sample, image_files: list[Path]
) -> None:
    odd = image_files[0].with_name("two\nlines\udcff.png")
    odd.write_bytes(image_files[0].read_bytes())
    bad = odd.with_name("bad\n.png")
    done = run("classify", template.path, odd, bad, "--threads", 1)
    assert done.status == 0 and len(done.out.splitlines()) == 2
    assert r"two\nlines\udcff.png" in done.out
    assert r"unreadable: cannot be read" in done.out
    row = run("classify", template.path, odd, "--json", "--threads", 1).rows[0]
    assert row["path"] == str(odd)
