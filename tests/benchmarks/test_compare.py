"""`cascade-bench compare`: the same weights, the same files, in turns, and nobody's word taken."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cascade_bench import peers
from cascade_bench.compare import record
from cascade_bench.peers import contender, litserve, own, transformers, triton
from cascade_bench.peers.contender import Absent, Contender, Given
from cascade_bench.workload import bundle_sha256
from cascade_calib.path import Request
from cascade_compile import targets
from cascade_compile.bundle import BundleRequest, build
from cascade_runtime import manifest
from cascade_runtime.bundle import MANIFEST
from cascade_runtime.preprocess import load_image
from cascade_train.backbone import build_backbone
from cascade_train.checkpoint import read_config
from cascade_train.exits import CascadeModel, normalize
from cascade_train.keep_exits import keep_exits
from cascade_train.presets import preset

from ..compile.conftest import SIDE, Made, Trained, made, trained
from ..runtime.conftest import make_certificate, rewrite
from .conftest import Done, for_a_gpu
from .test_compare_figures import sample_of
from .test_schemas import check

__all__ = ["made", "trained"]

Bench = Callable[..., Done]
LEAST = ("--rounds", 2, "--seconds", 0, "--batch", "2,4", "--images", 40, "--threads", 1)
NAMES = (own.CASCADE, own.ALWAYS_FULL, "onnxruntime fp32", "triton")
FAST = "transformers,torch,onnxruntime,openvino"
FRAGILE = """
import numpy as np
from pathlib import Path
from cascade_bench.peers.contender import Contender

def contenders(given):
    def classify(files, batch):
        if batch == 4:
            raise ValueError("\\nno kernel for a batch of 4\\nand more lines")
        return np.zeros(len(files), np.int8)

    return [Contender("fragile", "", classify, None, Path({closed!r}).touch)]
"""


@pytest.fixture
def given(trained: Trained, tmp_path: Path) -> Given:
    config = read_config(trained.run)
    return Given(trained.model, config.preprocess, config.classes, 1, tmp_path)


@pytest.fixture
def compare(bench: Bench, made: Made, trained: Trained) -> Bench:
    def call(*more: object) -> Done:
        asked = ("--run", trained.run, "--data", trained.run / "splits.json", *LEAST)
        return bench("compare", made.path, *asked, *more, quick=False)

    return call


def test_libcascade_is_compared_with_python_beside_it(compare: Bench, native: None) -> None:
    done = compare("--json", "--peers", "openvino", "--runtime", "native")
    assert done.status == 0, done.err
    check("compare", done.record)
    names = [one["name"] for one in done.record["contenders"]]
    assert names[:3] == list(own.OWN) and done.record["runtime"] == "native"
    said = [one["name"] for one in done.record["contenders"] if one["certified"]]
    assert said == [own.CASCADE, own.IN_PYTHON]
    assert all(batch["best_peer"] not in own.OWN for batch in done.record["batches"])
    rows = {row["name"]: row for row in done.record["contenders"]}
    for figure in ("coverage", "risk", "right"):
        assert rows[own.CASCADE][figure] == rows[own.IN_PYTHON][figure]


def test_everybody_is_measured_and_judged_on_the_same_images(compare: Bench, made: Made) -> None:
    done = compare("--json", "--peers", FAST)
    assert done.status == 0, done.err
    found, text = done.record, str(record.__doc__)
    check("compare", found)
    assert (found["format"], found["version"]) == ("cascade-edge.compare", 1)
    assert all(f"\n    {name}" in text or f", {name}" in text for name in found)
    by_name = {one["name"]: one for one in found["contenders"]}
    assert list(by_name)[:2] == [own.CASCADE, own.ALWAYS_FULL]
    assert {"transformers pipeline fp32", "torch eager bf16", "onnxruntime fp32"} < set(by_name)
    assert [name for name, one in by_name.items() if one["certified"]] == [own.CASCADE]
    assert found["bundle_sha256"] == bundle_sha256(made.path)
    for name, one in by_name.items():
        assert one["coverage"]["of"] == found["sample"]["images"] == 40
        assert name == own.CASCADE or one["coverage"]["value"] == 1.0
        assert name == own.CASCADE or one["right"]["part"] + one["risk"]["part"] == 40
        assert one["agreement"]["value"] > 0.9, name
    assert [batch["batch"] for batch in found["batches"]] == [2, 4]
    for batch in found["batches"]:
        assert {one["name"] for one in batch["speeds"]} == set(by_name)
        assert batch["best_peer"] not in (own.CASCADE, own.ALWAYS_FULL, None)
        assert all(one["files"] > 0 < one["engine"] for one in batch["speeds"])
        [itself] = [one for one in batch["speeds"] if one["name"] == own.CASCADE]
        sure = {"confidence": 0.95}
        assert itself["over_files"] == {"value": 1.0, "low": 1.0, "high": 1.0, **sure}
        assert all(len(one["files_s"]) == batch["rounds"] for one in batch["speeds"])


def test_tables_plot_and_page_name_everybody(compare: Bench, tmp_path: Path) -> None:
    png, page = tmp_path / "pareto.png", tmp_path / "page.html"
    done = compare("--peers", "onnxruntime,triton", "--plot", png, "--report", page)
    assert done.status == 0, done.err
    html = page.read_text(encoding="utf-8")
    for text in (done.out, html):
        assert all(
            name in text for name in ("cascade", "always full", "onnxruntime fp32", "triton")
        )
        assert ("CERTIFIED" in text and "Batch 2" in text) or "batch 2" in text
    assert "times the best peer, onnxruntime fp32" in done.out
    with Image.open(png) as picture:
        assert picture.format == "PNG" and picture.width > 1000
    assert "data:image/svg+xml;base64," in html and "http://" not in html.replace("xmlns", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "pareto.png"]


def test_a_comparison_is_printed_though_its_page_cannot_be_written(
    compare: Bench, tmp_path: Path, full_disk: None
) -> None:
    done = compare("--json", "--peers", "onnxruntime", "--report", tmp_path / "a.html")
    assert done.status == 1 and "No space left" in done.err
    assert len(done.record["batches"]) == 2


def test_files_that_cannot_be_written_are_told_before_anything_is_measured(
    compare: Bench, tmp_path: Path
) -> None:
    for option, name in (("--plot", "a.jpg"), ("--report", "a.png"), ("--report", "no/a.html")):
        done = compare(option, tmp_path / name)
        assert done.status == 1 and done.out == "" and done.err.startswith(f"error: {option}")


def test_target_of_a_gpu_is_refused_beside_peers_of_the_processor(
    bench: Bench, made: Made, trained: Trained, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(made.path, tmp_path / "gpu.cascade"))
    asked = ("--run", trained.run, "--data", trained.run / "splits.json", *LEAST)
    done = bench("compare", bundle, "--target", for_a_gpu(bundle), *asked, quick=False)
    assert done.status == 4 and done.out == "" and done.err.count("\n") == 1
    assert "peers run on the processor" in done.err and "--target openvino/" in done.err


def test_infeasible_bundle_promises_nothing(
    bench: Bench, made: Made, trained: Trained, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(made.path, tmp_path / "nothing.cascade"))
    was = manifest.decode((bundle / MANIFEST).read_bytes())
    replaced, decision = msgspec.structs.replace, next(iter(was.decision.values()))
    shut = replaced(decision, exits=tuple(replaced(x, tau_logit=None) for x in decision.exits))
    certificates = {
        name: replaced(
            make_certificate(was.preprocess, shut, each.engines),
            status="INFEASIBLE",
        )
        for name, each in was.certificates.items()
    }
    decisions = dict.fromkeys(was.decision, shut)
    rewrite(bundle, replaced(was, decision=decisions, certificates=certificates))
    asked = ("--run", trained.run, "--data", trained.run / "splits.json", *LEAST)
    page = tmp_path / "page.html"
    done = bench("compare", bundle, *asked, "--peers", "triton", "--report", page, quick=False)
    assert done.status == 0, done.err
    text = " ".join(page.read_text().split())
    assert "INFEASIBLE: nothing is promised, every image is deferred" in text
    assert "INFEASIBLE, at most" not in text + done.out


def test_unknown_peer_and_batch_are_told(compare: Bench) -> None:
    done = compare("--peers", "onnxruntime,tensorflow")
    assert done.status == 1 and "'tensorflow'" in done.err and "openvino" in done.err
    assert compare("--batch", "8,0").status == 2


def test_a_run_of_another_network_is_refused(
    compare: Bench, trained: Trained, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(trained.run, tmp_path / "other"))
    config = json.loads((trained.run / "config.json").read_bytes())
    config["classes"] = ["cat", "dog"]
    (other / "config.json").write_text(json.dumps(config))
    done = compare("--run", other)
    assert done.status == 1 and done.err.count("\n") == 1
    assert "its classes is ('cat', 'dog')" in done.err


def test_a_run_of_other_weights_is_refused(
    compare: Bench, trained: Trained, tmp_path: Path
) -> None:
    """Of the same shape; one layer's weights are 5 % larger."""
    other = Path(shutil.copytree(trained.run, tmp_path / "other"))
    weights = load_file(trained.run / "model.safetensors")
    weights["backbone.model.layer.1.mlp.up_proj.weight"] *= 1.05
    save_file(weights, other / "model.safetensors")
    done = compare("--run", other)
    assert done.status == 1 and done.err.count("\n") == 1
    assert "is not what the bundle was made from: on the golden images" in done.err


def test_peers_of_chosen_exits_answer_as_deep_as_was_trained(
    bench: Bench, trained: Trained, tmp_path: Path
) -> None:
    kept, bundle = tmp_path / "kept", tmp_path / "kept.cascade"
    keep_exits(trained.run, (1,), kept)
    promise = Request(Fraction(2, 5), Fraction(1, 20), Fraction(1, 2))
    name = targets.parse("onnxruntime/fp32/cpu")
    build(BundleRequest(kept, bundle, (name,), promise, threads=1), say=lambda line: None)
    asked = ("--data", trained.run / "splits.json", *LEAST, "--peers", "torch")
    done = bench("compare", bundle, "--run", trained.run, *asked, quick=False)
    assert done.status == 0, done.err
    assert "the cascade answers after block 1, peers after block 2" in done.out
    done = bench("compare", bundle, "--run", kept, *asked, "--json", quick=False)
    assert (done.record["exits"], done.record["peers_exit"]) == ([1], 1)


def test_a_run_with_fewer_exits_is_refused(
    compare: Bench, trained: Trained, tmp_path: Path
) -> None:
    keep_exits(trained.run, (2,), tmp_path / "kept")
    done = compare("--run", tmp_path / "kept")
    assert done.status == 1 and "its exits is (2,), the bundle has (1, 2)" in done.err


def test_what_is_not_installed_is_listed_with_what_installs_it(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (litserve, triton, transformers):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    here, absent = peers.gather(given, ("transformers", "litserve", "triton"))
    assert here == [] and len(absent) == 3
    assert all("pip install" in one.reason for one in absent)


def test_triton_without_its_server_is_absent(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "find_spec", lambda name: True)
    monkeypatch.setattr(triton.shutil, "which", lambda name: None)
    [absent] = triton.contenders(given)
    assert isinstance(absent, Absent) and "not on the PATH" in absent.reason


def test_triton_without_a_part_of_its_client_starts_no_server(
    given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `pip install tritonclient` without [http] leaves."""
    lacking = 'raise RuntimeError("The installation does not include http support.")'
    started = triton_of(tmp_path, lacking, monkeypatch)
    here, absent = peers.gather(given, ("triton",))
    assert here == [] and not started.exists()
    assert "does not include http support" in absent[0].reason


def test_triton_that_never_serves_is_ended_and_absent(
    given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(triton, "START_S", 1.0)
    refusing = "class InferenceServerClient:\n    def __init__(self, url): pass"
    started = triton_of(tmp_path, refusing, monkeypatch)
    here, absent = peers.gather(given, ("triton",))
    assert here == [] and "did not make the model ready" in absent[0].reason
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def triton_of(folder: Path, client: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server that only runs, and this text as its client; the file that tells of its start."""
    package = folder / "site" / "tritonclient"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "http.py").write_text(client)
    imported_from(package.parent, monkeypatch, "tritonclient", "tritonclient.http")
    started = folder / "started"
    program(folder / "site", triton.SERVER, f"echo $$ > {started}; exec sleep 60", monkeypatch)
    return started


def test_triton_repository_holds_the_plain_export(given: Given) -> None:
    root = triton.write_repository(given)
    assert (root / "plain/1/model.onnx").read_bytes() == given.plain_onnx.read_bytes()
    assert f"dims: [{SIDE}, {SIDE}, 3]" in (root / "plain/config.pbtxt").read_text()


@pytest.mark.skipif(find_spec("litserve") is None, reason="litserve is not installed")
def test_litserve_answers_as_the_network_and_ends(given: Given, files: list[Path]) -> None:
    [peer] = litserve.contenders(given)
    assert isinstance(peer, Contender)
    try:
        assert peer.classify(files, 2).tolist() == expected(given, files).argmax(1).tolist()
    finally:
        peer.close()


@pytest.mark.parametrize("exits", [(1, 2), (2, 4), (2, 6)])
def test_pipeline_model_has_the_logits_of_the_network(exits: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = CascadeModel(build_backbone(preset("tiny"), image_size=SIDE), exits).eval()
    for head in network.exits.heads:  # a norm that was trained away from the backbone's
        torch.nn.init.normal_(head.norm.weight)
    pixels = torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    model = transformers.classifier(network, ("no", "yes"))
    with torch.no_grad():
        theirs = model(normalize(pixels)).logits
        ours = network(pixels)[-1].logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_every_peer_answers_files_as_the_network_does(given: Given, files: list[Path]) -> None:
    here, absent = peers.gather(given, FAST.split(","))
    wanted = expected(given, files)
    sure = np.abs(wanted[:, 1] - wanted[:, 0]) > 0.1  # bfloat16 may turn the others round
    assert {one.name for one in absent} <= {"openvino bf16"} and len(here) >= 7 and sure.any()
    for peer in here:
        for batch in (1, 3):
            labels = peer.classify(files, batch)
            assert labels.dtype == np.int8 and len(labels) == len(files), peer.name
            assert (labels == wanted.argmax(1))[sure].all(), peer.name


def test_pipeline_scales_images_as_the_bundle_does(given: Given, files: list[Path]) -> None:
    processor = transformers.image_processor(given)
    with Image.open(files[0]) as picture:
        theirs = processor(images=picture, return_tensors="pt")["pixel_values"]
    ours = normalize(torch.from_numpy(load_image(files[0], given.preprocess))[None])
    # 2 levels of 255: a processor that resizes floats does not round in between
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2 / 255 / 0.224)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A family that fails in batches of 4 and one that cannot be imported; back comes the file
    that tells that the first was closed."""
    closed = tmp_path / "closed"
    (tmp_path / "fragile_peer.py").write_text(FRAGILE.format(closed=str(closed)))
    (tmp_path / "broken_peer.py").write_text("raise OSError('libgone.so: cannot open')")
    imported_from(tmp_path, monkeypatch, "fragile_peer", "broken_peer")
    monkeypatch.setitem(peers.FAMILIES, "fragile", "fragile_peer")
    monkeypatch.setitem(peers.FAMILIES, "broken", "broken_peer")
    return closed


def test_a_peer_that_fails_is_listed_and_the_rest_goes_on(compare: Bench, fragile: Path) -> None:
    done = compare("--json", "--peers", "fragile,broken,onnxruntime")
    assert done.status == 0, done.err
    names = [one["name"] for one in done.record["contenders"]]
    assert names == [own.CASCADE, own.ALWAYS_FULL, "onnxruntime fp32"] and fragile.exists()
    assert done.record["absent"] == [
        {"name": "fragile", "reason": "failed with ValueError: no kernel for a batch of 4"},
        {"name": "broken", "reason": "failed with OSError: libgone.so: cannot open"},
    ]


def test_what_was_started_ends_with_an_interrupted_comparison(
    given: Given, fragile: Path, files: list[Path]
) -> None:
    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        peers.gather(given, ("fragile",), interrupted, [sample_of(files).block(0, 2)])
    assert fragile.exists()


@pytest.mark.slow
def test_torch_compile_with_a_compiler_that_fails_is_absent(
    given: Given, files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(tmp_path, "g++", "echo 'Python.h: No such file' >&2; exit 1", monkeypatch)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    pixels = np.stack([load_image(file, given.preprocess) for file in files])
    here, absent = peers.gather(given, ("torch.compile",), blocks=[(files, pixels)])
    assert here == [] and len(absent) == 2
    assert all(one.reason.startswith("failed with ") for one in absent)


@pytest.mark.slow
def test_torch_compile_answers_as_the_network_does(given: Given, files: list[Path]) -> None:
    here, _ = peers.gather(given, ("torch.compile",))
    wanted = expected(given, files).argmax(1).tolist()
    for peer in here:
        assert peer.classify(files, 3).tolist() == wanted


def test_peer_compiled_for_a_size_meets_no_other(given: Given, files: list[Path]) -> None:
    met: list[int] = []

    def forward(pixels: np.ndarray) -> np.ndarray:
        met.append(len(pixels))
        return np.stack([np.zeros(len(pixels)), np.arange(len(pixels))], axis=1).astype(np.float32)

    classify = contender.decoding(given, forward, pad=True)
    assert len(classify(files, 3)) == 7 and met == [3, 3, 3]


def imported_from(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These modules are those of this folder, and are forgotten behind the test."""
    monkeypatch.syspath_prepend(folder)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


def program(folder: Path, name: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that the PATH has before all others."""
    (folder / name).write_text(f"#!/bin/sh\n{order}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def expected(given: Given, files: list[Path]) -> np.ndarray:
    """The float32 network's logits."""
    pixels = np.stack([load_image(file, given.preprocess) for file in files])
    with torch.no_grad():
        logits: np.ndarray = given.network(torch.from_numpy(pixels))[-1].logits.numpy()
    return logits
