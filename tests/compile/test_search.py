"""`--precision auto`: the fastest that is proven ships, and all the others are accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cascade_calib.bounds import clopper_pearson_upper
from cascade_calib.candidates import METHOD
from cascade_compile import build_target, parity, targets
from cascade_compile import search as searching
from cascade_compile.bundle import BundleRequest, build
from cascade_compile.ledger import LEDGER
from cascade_compile.search import SearchRequest, default_candidates
from cascade_compile.speed import Speed, Timed, measure_speed
from cascade_runtime.bundle import Bundle
from cascade_runtime.cascade import Cascade
from cascade_runtime.command import INFEASIBLE_STATUS
from cascade_runtime.decision import Verdict
from cascade_runtime.engines import unavailable
from cascade_runtime.errors import ConfigError, TargetError
from cascade_runtime.manifest import Decision, Manifest, Target

Command = Callable[..., tuple[int, str, str]]
RequestFor = Callable[..., BundleRequest]
ONNX, OPENVINO = "onnxruntime/fp32/cpu", "openvino/fp32/cpu"
BOTH = (ONNX, OPENVINO)


@pytest.fixture
def search_for(
    request_for: RequestFor, no_export: list[Path], tmp_path: Path
) -> Callable[..., Manifest]:
    """Build by search among candidates: `search_for(*candidates, alpha=..., keep_all=...)`."""

    def make(*names: str, alpha: str = "0.2", keep_all: bool = False, **fields: object) -> Manifest:
        asked = request_for(tmp_path / "x.cascade", *(names or BOTH), alpha=alpha, **fields)
        promise = replace(asked.promise, claims=1)
        how = SearchRequest(batch=4, keep_all=keep_all)
        return build(replace(asked, promise=promise, search=how), say=lambda line: None)

    return make


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that says what is written here; the engines run all the same."""
    said: dict[str, float] = {ONNX: 100.0, OPENVINO: 200.0}

    def measured(cascades: Mapping[str, object], *_: object, **__: object) -> Timed:
        of = {name: Speed(said[name], said[name] - 1, said[name] + 1) for name in cascades}
        return Timed(of, images=8, batch=4, rounds=7)

    monkeypatch.setattr(searching, "measure_speed", measured)
    return said


def test_one_target_ships_and_the_table_has_every_candidate(
    search_for: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = search_for()
    assert Bundle.open(tmp_path / "x.cascade").manifest == manifest
    [name] = manifest.targets
    folders = [path.name for path in (tmp_path / "x.cascade" / "targets").iterdir()]
    assert folders == [name.replace("/", "-")]  # the engines of the others are gone
    search = manifest.search
    assert search is not None
    assert {row.name for row in search.candidates} == set(BOTH)
    found = [row.images_per_s or 0 for row in search.candidates]
    assert found == sorted(found, reverse=True)
    for row in search.candidates:
        assert (row.outcome == "shipped") == (row.name == name)
        assert row.reason and row.engine_bytes > 10_000
        assert row.slowest and row.fastest and row.images_per_s
        assert row.slowest <= row.images_per_s <= row.fastest
        assert row.parity["max_difference"] <= row.parity["limit"] * row.parity["largest_logit"]
        assert 0 <= row.errors < row.accepted <= search.n_select
    assert manifest.targets[name].images_per_s == next(
        row.images_per_s for row in search.candidates if row.outcome == "shipped"
    )
    cascade = Cascade.open(tmp_path / "x.cascade", self_test=True, warm_up=False)
    assert cascade.target == name


def test_certificate_is_of_the_whole_sequence_at_the_whole_of_delta(
    search_for: Callable[..., Manifest], trained
) -> None:
    manifest = search_for()
    assert manifest.search is not None
    [c] = manifest.certificates.values()
    assert (c.status, c.method, c.claims, c.delta) == ("CERTIFIED", METHOD, 1, 0.05)
    assert c.path_length == manifest.search.sequence_length
    assert c.path_tested == manifest.search.sequence_tested
    share = Fraction(str(c.delta)) / c.claims
    assert c.risk_upper == clopper_pearson_upper(c.errors, c.accepted, share) <= c.alpha
    assert c.confidence == 0.95
    assert c.n == len(trained.calib.pixels)
    assert c.coverage >= c.coverage_floor


def test_search_counts_as_one_use_of_the_calibration_images(
    search_for: Callable[..., Manifest], request_for: RequestFor, tmp_path: Path
) -> None:
    first = search_for()
    plain = build(request_for(tmp_path / "y.cascade"), say=lambda line: None)
    [searched], [named] = first.certificates.values(), plain.certificates.values()
    assert named.calibration_uses == searched.calibration_uses + 1


def comparable(manifest: Manifest) -> list[object]:
    """The table without the sizes: OpenVINO numbers its layers on through a process."""
    assert manifest.search is not None
    return [msgspec.structs.replace(row, engine_bytes=0) for row in manifest.search.candidates]


def test_same_speeds_give_the_same_choice(
    search_for: Callable[..., Manifest], speeds: dict[str, float]
) -> None:
    first, second = search_for(), search_for(*reversed(BOTH), overwrite=True)
    assert list(first.targets) == [OPENVINO]
    assert comparable(first) == comparable(second)
    assert first.decision == second.decision
    speeds[ONNX] = 400.0
    assert list(search_for(overwrite=True).targets) == [ONNX]


def test_only_candidates_whose_turn_comes_see_val_calib(
    search_for: Callable[..., Manifest], speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    collected = searching.collected

    def noted(stages: object, data: object, what: str, progress: object) -> object:
        ran.append(what)
        return collected(stages, data, what, progress)

    monkeypatch.setattr(searching, "collected", noted)
    manifest = search_for()
    assert manifest.search is not None
    for row in manifest.search.candidates:
        assert (f"{row.name} val_calib" in ran) == (row.tested > 0)
    assert all("val_calib" not in what for what in ran[:2])  # proposals come first


def test_candidate_that_fails_is_listed_with_its_reason_and_is_no_error(
    search_for: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse_onnx(target: Target) -> str | None:
        return "no such instructions" if target.backend == "onnxruntime" else unavailable(target)

    monkeypatch.setattr(build_target, "unavailable", refuse_onnx)
    manifest = search_for()
    assert manifest.search is not None
    [row] = [row for row in manifest.search.candidates if row.name == ONNX]
    assert row.outcome == "left out"
    assert "no such instructions" in row.reason
    assert (row.images_per_s, row.accepted, row.tested) == (None, 0, 0)
    assert list(manifest.targets) == [OPENVINO]
    report = (tmp_path / "x.cascade" / "report.html").read_text()
    assert "no such instructions" in report


def test_no_candidate_left_is_an_error_with_every_reason(
    search_for: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(parity.LIMITS, "fp32", 1e-12)
    with pytest.raises(TargetError) as caught:
        search_for()
    for name in BOTH:
        assert f"{name}: the engine is not what was trained" in str(caught.value)
    assert list(tmp_path.glob("*.cascade")) == []


def test_where_nothing_holds_the_safest_ships_and_defers_everything(
    search_for: Callable[..., Manifest], trained, tmp_path: Path
) -> None:
    manifest = search_for(alpha="0.001")
    assert manifest.search is not None
    [(name, c)] = manifest.certificates.items()
    assert c.status == "INFEASIBLE"
    assert any(character.isdigit() for character in c.advice)
    outcomes = {row.name: row.outcome for row in manifest.search.candidates}
    assert outcomes[name] == "failed"
    assert "shipped" not in outcomes.values()
    cascade = Cascade.open(tmp_path / "x.cascade", warm_up=False)
    assert {r.label for r in cascade.classify(list(trained.calib.pixels[:16]))} == {-1}


@pytest.mark.parametrize("alpha", ["0.2", "0.001"])
def test_kept_candidates_that_were_not_proven_defer_everything(
    search_for: Callable[..., Manifest], speeds: dict[str, float], alpha: str, tmp_path: Path
) -> None:
    manifest = search_for(alpha=alpha, keep_all=True)
    assert set(manifest.targets) == set(BOTH)
    assert Bundle.open(tmp_path / "x.cascade").manifest == manifest
    assert manifest.search is not None
    for row in manifest.search.candidates:
        c = manifest.certificates[row.name]
        proven = row.outcome in ("shipped", "certified")
        assert (c.status == "CERTIFIED") == proven
        assert proven or all(rule.tau_logit is None for rule in manifest.decision[row.name].exits)
        assert proven or c.advice
        assert c.claims == 1
    if alpha == "0.2":
        assert Cascade.open(tmp_path / "x.cascade", warm_up=False).target == OPENVINO


@pytest.mark.parametrize("policy", ["scrc-i", "scrc-t"])
def test_promise_about_sets_is_refused_before_val_calib_counts_as_used(
    request_for: RequestFor, trained, tmp_path: Path, policy: str
) -> None:
    ledger = trained.run / LEDGER
    before = ledger.read_bytes() if ledger.exists() else None
    asked = request_for(tmp_path / "x.cascade", *BOTH)
    promise = replace(asked.promise, claims=1, policy=policy)
    with pytest.raises(ConfigError, match="name one --target"):
        build(replace(asked, promise=promise, search=SearchRequest()), say=lambda line: None)
    assert (ledger.read_bytes() if ledger.exists() else None) == before


def test_engine_that_differs_cannot_be_forced_into_a_search(
    search_for: Callable[..., Manifest],
) -> None:
    with pytest.raises(ConfigError, match="leaves out engines that differ"):
        search_for(force=True)


def test_default_candidates_are_all_that_run_here_without_torch() -> None:
    here = default_candidates()
    left_out = {name for name in targets.every_target() if targets.runs_here(name)} - set(here)
    assert {name.backend for name in left_out} == {"torchscript", "aot"}
    assert targets.parse(ONNX) in here


def test_command_prints_the_table_and_the_report_has_it(
    trained, command: Command, no_export: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.cascade"
    options = ("--alpha", "0.2", "--coverage", "0.5", "--threads", 1, "--batch", 2)
    both = ("--candidate", ONNX, "--candidate", OPENVINO)
    asked = ("bundle", trained.run, "--out", out, "--precision", "auto", *both, *options)
    status, said, _ = command(*asked)
    assert status == 0
    assert "candidate 2 of 2, openvino/fp32/cpu: building it" in said
    table = said[said.index("Candidates") :]
    for words in (ONNX, OPENVINO, "shipped", "the fastest whose certificate holds", "2 at a time"):
        assert words in table
    manifest = Bundle.open(out).manifest
    assert manifest.search is not None and manifest.search.batch == 2
    report = (out / "report.html").read_text()
    assert "How the target was chosen" in report
    assert "images a second" in report  # the picture's axis
    for row in manifest.search.candidates:
        assert f"{row.images_per_s:g}" in report
        assert row.reason in report
    status, said, _ = command(*asked, "--overwrite", "--alpha", "0.001")
    assert status == INFEASIBLE_STATUS
    assert "failed" in said


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "auto", "--target", ONNX),
        ("--precision", "auto", "--force"),
        ("--candidate", ONNX),
        ("--keep-all",),
        ("--batch", 4),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    trained, command: Command, tmp_path: Path, options: tuple[object, ...]
) -> None:
    status, _, err = command("bundle", trained.run, "--out", tmp_path / "x.cascade", *options)
    assert status == 2
    assert "--precision auto" in err


class Recorded:
    """Stands where a cascade stands, and notes what it is given."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self.log = name, log

    def forward(self, pixels: np.ndarray, decision: Decision) -> Verdict | None:
        self.log.append((self.name, len(pixels)))
        return None


def test_speed_gives_every_cascade_its_turn_on_the_same_images() -> None:
    log: list[tuple[str, int]] = []
    cascades = {name: (Recorded(name, log), None) for name in "abc"}
    pixels = np.zeros((10, 2, 2, 3), np.uint8)
    timed = measure_speed(cascades, pixels, 4, rounds=3)  # type: ignore[arg-type]
    assert (timed.images, timed.batch, timed.rounds) == (8, 4, 3)  # whole batches only
    turns = [name for name, _ in log[6:]][::2]  # after two tries of each; a turn is two batches
    assert turns == list("cba" + "abc" + "cba" + "abc")
    assert {size for _, size in log} == {4}
    for speed in timed.speeds.values():
        assert 0 < speed.slowest <= speed.images_per_s <= speed.fastest


def test_speed_of_fewer_images_than_a_batch_is_measured_on_what_there_is() -> None:
    log: list[tuple[str, int]] = []
    pixels = np.zeros((3, 2, 2, 3), np.uint8)
    timed = measure_speed({"a": (Recorded("a", log), None)}, pixels, 8, rounds=1)  # type: ignore[dict-item]
    assert timed.images == 3
    assert {size for _, size in log} == {3}
