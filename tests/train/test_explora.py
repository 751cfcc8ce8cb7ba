"""Domain-adaptive pretraining as a whole: what is read, what comes out, what an accident leaves."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import DINOv3ViTModel

from cascade_calib.splits_file import read_splits
from cascade_runtime.errors import CascadeError, ConfigError, DataError
from cascade_runtime.manifest import Preprocess
from cascade_train.ancestry import refuse_seen
from cascade_train.backbone import build_backbone
from cascade_train.explora.command import explora
from cascade_train.explora.config import DistillConfig, ExploraConfig
from cascade_train.explora.images import held_out, read_unlabelled
from cascade_train.explora.mae import MaeObjective
from cascade_train.explora.output import load_adapted, read_explored, seen_images
from cascade_train.explora.run import ExploraRequest, ExploraResult, run_explora
from cascade_train.presets import preset

SPEC = Preprocess(height=32, width=32)
# "mean" has a centre that must survive as well
HEADS = DistillConfig(prototypes=32, hidden=32, bottleneck=16, local_crops=1, centering="mean")
QUICK = {
    objective: ExploraConfig(
        objective=objective,
        epochs=2,
        batch_size=10,
        rank=4,
        lr=3e-3,
        amp="none",
        distill=HEADS,
    )
    for objective in ("mae", "distill")
}
Stop = Callable[[str, int, int], None]


def photo(seed: int, side: int = 32) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images without classes, in folders within folders, and a file that is none."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(20):
        folder = root / ("deep/er" if i % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / f"{i}.png")
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A "published" checkpoint of `tiny` at 32 px."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    build_backbone(preset("tiny"), image_size=32).save_pretrained(folder)
    return folder


def adapt_to(
    data: Path | str,
    out: Path,
    start: Path | None,
    config: ExploraConfig = QUICK["mae"],
    said: list[str] | None = None,
    progress: Stop | None = None,
    **changes: object,
) -> ExploraResult:
    asked: dict[str, object] = {"weights": str(start), "image_size": 32} if start else {}
    request = ExploraRequest(data=str(data), out=out, threads=1, **(asked | changes))  # type: ignore[arg-type]
    said = [] if said is None else said
    return run_explora(request, config, say=said.append, progress=progress)


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory, photos: Path, weights: Path) -> Path:
    """A finished adaptation by "mae". Tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("adapted") / "mae"
    adapt_to(photos, out, weights)
    return out


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


# What comes out


@pytest.mark.parametrize("objective", ["mae", "distill"])
def test_out_comes_a_backbone_that_weights_takes(
    photos: Path, weights: Path, tmp_path: Path, objective: str
) -> None:
    out, said = tmp_path / "out", list[str]()
    result = adapt_to(photos, out, weights, QUICK[objective], said)
    base = build_backbone(preset("tiny"), image_size=32, weights=str(weights)).state_dict()
    got = build_backbone(preset("tiny"), image_size=32, weights=str(out / "backbone"))
    loaded = load_adapted(out)
    assert not loaded.training
    changed = set()
    for name, weight in got.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
        if not torch.equal(weight, base[name]):
            changed.add(name)
    moved = ("layer.5.", "norm", "q_proj.weight", "v_proj.weight")
    expected = {name for name in base if any(part in name for part in moved)}
    expected |= {"embeddings.mask_token"} if objective == "distill" else set()
    assert changed == expected
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"loss", "images_per_s", "seconds", "feature_std", "effective_rank"} <= set(lines[0])
    assert (lines[-1]["feature_std"], lines[-1]["effective_rank"]) == (
        result.after.feature_std,
        result.after.effective_rank,
    )
    explored = read_explored(out)
    assert explored.settings == QUICK[objective]
    assert explored.images == 20
    assert explored.made_by.versions["torch"]
    assert f"epoch   2/2  loss {lines[-1]['loss']:.4f}" in said[-2]
    assert not any("warning" in line for line in said)


def test_what_ships_is_what_was_measured(adapted: Path, photos: Path) -> None:
    """The log's last health is of the network with adapters, the file holds the merged one."""
    from cascade_train.explora.health import examine

    pixels = torch.from_numpy(read_unlabelled(str(photos), SPEC).pixels)
    health = examine(load_adapted(adapted), pixels, 16)
    after = read_explored(adapted).after
    assert after is not None
    assert health.feature_std == pytest.approx(after.feature_std, rel=1e-3)
    assert health.effective_rank == pytest.approx(after.effective_rank, rel=1e-3)


def test_fit_starts_from_the_adapted_backbone(
    adapted: Path, tmp_path: Path, fit_squares: Callable[..., list[str]]
) -> None:
    run = tmp_path / "run"
    fit_squares(run, weights=str(adapted / "backbone"))
    assert json.loads((run / "config.json").read_text())["weights"] == str(adapted / "backbone")


def test_an_earlier_run_gives_the_start(photos: Path, base_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapt_to(photos, out, None, init=base_run)
    explored = read_explored(out)
    assert explored.init is not None
    assert (out / explored.init.path).resolve() == base_run.resolve()
    base = load_file(base_run / "model.safetensors")
    assert torch.equal(
        load_adapted(out).embeddings.patch_embeddings.weight,
        base["backbone.embeddings.patch_embeddings.weight"],
    )


def test_an_adaptation_can_be_adapted_again(adapted: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    adapt_to(photos / "deep", out, None, init=adapted)
    frozen = "layer.0.mlp.up_proj.weight"
    first, second = (load_adapted(folder).model.state_dict() for folder in (adapted, out))
    assert torch.equal(first[frozen], second[frozen])
    assert not torch.equal(
        first["layer.5.mlp.up_proj.weight"], second["layer.5.mlp.up_proj.weight"]
    )
    assert read_explored(out).images == 10
    assert seen_images(out) == seen_images(adapted)  # of which the start has seen the rest


# What is read, and what never is


def train_hashes(run: Path) -> set[str]:
    return {entry.sha256 for entry in read_splits(run / "splits.json").of("train")}


def test_only_train_images_of_a_split_are_opened(
    base_run: Path, square_folder: Path, weights: Path, tmp_path: Path
) -> None:
    """Every val image is replaced by something unreadable, and nothing notices."""
    data = copied(square_folder, tmp_path / "data")
    splits = json.loads((base_run / "splits.json").read_text())
    splits["root"] = "data"
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    for entry in splits["entries"]:
        if entry["split"] != "train":
            (data / entry["path"]).write_bytes(b"not to be opened")
    out = tmp_path / "out"
    adapt_to(tmp_path / "splits.json", out, weights)
    assert seen_images(out) == train_hashes(base_run)
    assert read_explored(out).images == len(read_splits(base_run / "splits.json").of("train"))


def test_a_run_folder_stands_for_its_train_images(base_run: Path) -> None:
    """Also: the contact sheet that lies in it is no data."""
    assert set(read_unlabelled(str(base_run), SPEC).hashes) == train_hashes(base_run)


def test_held_out_images_are_kept_out_of_any_folder(
    base_run: Path, square_folder: Path, weights: Path, tmp_path: Path
) -> None:
    everything = read_unlabelled(str(square_folder), SPEC)
    held = held_out(base_run)
    assert held < set(everything.hashes)
    left = read_unlabelled(str(square_folder), SPEC, keep_out=[base_run / "splits.json"])
    assert set(left.hashes) == train_hashes(base_run)
    assert f"{len(everything) - len(left)} left out" in left.summary
    out = tmp_path / "out"  # and of itself, when the start is a run that was measured on them
    adapt_to(square_folder, out, None, init=base_run)
    assert seen_images(out).isdisjoint(held)


def test_a_renamed_copy_of_a_held_out_image_is_recognised(base_run: Path, tmp_path: Path) -> None:
    splits = read_splits(base_run / "splits.json")
    folder = tmp_path / "copies"
    folder.mkdir()
    for i, entry in enumerate([*splits.of("val_calib")[:2], *splits.of("train")[:3]]):
        shutil.copy(Path(splits.root) / entry.path, folder / f"innocent-{i}.png")
    kept = read_unlabelled(str(folder), SPEC, keep_out=[base_run])
    assert len(kept) == 3
    only_held = tmp_path / "held"
    only_held.mkdir()
    shutil.copy(folder / "innocent-0.png", only_held)
    with pytest.raises(DataError, match="0 of its 1 images may be used"):
        read_unlabelled(str(only_held), SPEC, keep_out=[base_run])


def test_changed_train_images_are_refused(
    base_run: Path, square_folder: Path, tmp_path: Path
) -> None:
    data = copied(square_folder, tmp_path / "data")
    splits = json.loads((base_run / "splits.json").read_text()) | {"root": "data"}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    first = next(e for e in splits["entries"] if e["split"] == "train")
    photo(1).save(data / first["path"])
    with pytest.raises(DataError, match="are not what they were"):
        read_unlabelled(str(tmp_path / "splits.json"), SPEC)


def test_a_split_whose_val_images_took_part_is_refused(
    base_run: Path, square_folder: Path, weights: Path, tmp_path: Path
) -> None:
    splits = read_splits(base_run / "splits.json")
    adapt_to(base_run, tmp_path / "train", weights)
    refuse_seen(tmp_path / "train", splits)
    adapt_to(square_folder, tmp_path / "all", weights)
    count = len(splits.of("val_select"))
    for start in (tmp_path / "all", tmp_path / "all" / "backbone"):
        with pytest.raises(DataError, match=f"{count} of {count} images of val_select have shaped"):
            refuse_seen(start, splits)


def test_folders_are_searched_to_the_bottom(photos: Path) -> None:
    images = read_unlabelled(str(photos), SPEC)
    assert images.pixels.shape == (20, 32, 32, 3)
    assert len(set(images.hashes)) == 20


def test_labels_are_not_looked_at(photos: Path, tmp_path: Path) -> None:
    """One label, three, none: all the same to a table that is read for its paths."""
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    tables = {
        "none.csv": ["path", *paths],
        "one.csv": ["path,label", *(f"{path},x" for path in paths)],
        "many.csv": ["label,path", *(f"{i % 3},{path}" for i, path in enumerate(paths))],
    }
    for name, lines in tables.items():
        (tmp_path / name).write_text("\n".join(lines))
    hashes = {read_unlabelled(str(tmp_path / name), SPEC).content_sha256 for name in tables}
    assert hashes == {read_unlabelled(str(photos), SPEC).content_sha256}


def test_parquet_is_read_for_its_paths(photos: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = [str(path) for path in photos.rglob("*.png")]
    parquet.write_table(pyarrow.table({"path": paths, "when": paths}), tmp_path / "all.parquet")
    assert len(read_unlabelled(str(tmp_path / "all.parquet"), SPEC)) == 20


def test_rendered_images_are_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASCADE_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert len(read_unlabelled("roadworks:night?n=16", SPEC)) == 16


def test_unreadable_images_are_skipped_and_said(photos: Path, tmp_path: Path) -> None:
    data = copied(photos, tmp_path / "data")
    (data / "0.png").write_bytes(b"")
    images = read_unlabelled(str(data), SPEC)
    assert len(images) == 19
    assert "1 x the file is empty (0 bytes): 0.png" in images.summary


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "broken", "no path column"])
def test_unusable_data_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    source, words = tmp_path / "data", "no such file or folder"
    if kind == "empty":
        source.mkdir()
        words = "holds no image"
    elif kind == "text":
        source = tmp_path / "data.txt"
        source.write_text("a.png")
        words = "expected a folder, a .csv or .parquet file, or a splits.json"
    elif kind == "broken":
        source.mkdir()
        (source / "a.png").write_bytes(b"no")
        words = "none of the 1 images can be read"
    elif kind == "no path column":
        source = tmp_path / "data.csv"
        source.write_text("file\na.png\n")
        words = "no column path"
    with pytest.raises(DataError, match=words):
        read_unlabelled(str(source), SPEC)


# Accidents


def stop_in(epoch: int) -> Stop:
    """A progress that interrupts in the middle of an epoch of two steps."""

    def progress(what: str, done: int, total: int) -> None:
        if what == "adapting" and done == 2 * epoch + 1:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("objective", ["mae", "distill"])
def test_a_resumed_run_ends_with_the_same_bytes(
    photos: Path, weights: Path, tmp_path: Path, objective: str
) -> None:
    config = QUICK[objective]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    adapt_to(photos, whole, weights, config)
    with pytest.raises(KeyboardInterrupt):
        adapt_to(photos, parts, weights, config, progress=stop_in(0))
    with pytest.raises(KeyboardInterrupt):
        adapt_to(photos, parts, weights, config, progress=stop_in(1), resume=True)
    with pytest.raises(ConfigError, match=r"is not finished; .*--resume"):
        load_adapted(parts)
    adapt_to(photos, parts, weights, config, resume=True)
    for name in ("backbone/model.safetensors", "seen.txt"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    ends = [load_file(folder / "last.safetensors") for folder in (whole, parts)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (whole, parts)]
    assert len(logs[1]) == 2
    assert [json.loads(a)["loss"] for a in logs[0]] == [json.loads(b)["loss"] for b in logs[1]]


def test_a_finished_run_resumes_to_itself(
    adapted: Path, photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = copied(adapted, tmp_path / "out")
    before = (out / "backbone" / "model.safetensors").read_bytes()
    adapt_to(photos, out, weights, resume=True)
    assert (out / "backbone" / "model.safetensors").read_bytes() == before
    assert load_adapted(out)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_number_stops_with_the_last_good_state(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    out, good = tmp_path / "out", MaeObjective.loss
    state = dict[str, bytes]()

    def bad(self: MaeObjective, *args: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, parts = good(self, *args)  # type: ignore[arg-type]
        if not (out / "last.safetensors").exists():
            return loss, parts
        state["then"] = (out / "last.safetensors").read_bytes()
        if where == "loss":
            return loss * math.nan, parts
        weight = self.head.paint.weight
        return loss + (0 * weight.abs().sum().sqrt() + (weight - weight).sqrt().sum()), parts

    monkeypatch.setattr(MaeObjective, "loss", bad)
    with pytest.raises(ConfigError, match=rf"the {where}|a {where}") as caught:
        adapt_to(photos, out, weights)
    assert "no longer a number in epoch 2; the state after epoch 1 is kept" in str(caught.value)
    assert (out / "last.safetensors").read_bytes() == state["then"]
    monkeypatch.setattr(MaeObjective, "loss", good)
    assert len(adapt_to(photos, out, weights, resume=True).log) == 2


def test_a_full_disk_at_the_end_loses_nothing(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "out", DINOv3ViTModel.save_pretrained

    def full(self: DINOv3ViTModel, folder: Path, **_: object) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(DINOv3ViTModel, "save_pretrained", full)
    with pytest.raises(ConfigError, match=r"backbone: cannot be written .*No space left"):
        adapt_to(photos, out, weights)
    assert not list(out.glob("*backbone*")) + list(out.glob(".*backbone*"))
    monkeypatch.setattr(DINOv3ViTModel, "save_pretrained", save)
    adapt_to(photos, out, weights, resume=True)
    assert load_adapted(out)


def test_a_collapse_is_said(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flatten(self: MaeObjective, progress: float) -> None:
        with torch.no_grad():
            self.backbone.norm.weight.zero_()

    monkeypatch.setattr(MaeObjective, "after_step", flatten)
    said: list[str] = []
    adapt_to(photos, tmp_path / "out", weights, said=said)
    assert said[-1].startswith("warning: the representation has collapsed")


def test_a_changed_backbone_is_refused(adapted: Path, tmp_path: Path) -> None:
    out = copied(adapted, tmp_path / "out")
    path = out / "backbone" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="missing or changed"):
        load_adapted(out)
    path.unlink()
    with pytest.raises(ConfigError, match="missing or changed"):
        load_adapted(out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": ExploraConfig(objective="mae")}, "epochs is 20 now and was 2"),
        ({"weights": "copy"}, r"weights is '.*copy' now and was"),
        ({"data": "fewer"}, "data is"),
    ],
)
def test_resume_asks_for_the_same(
    adapted: Path,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    changes: dict[str, object],
    words: str,
) -> None:
    out = copied(adapted, tmp_path / "out")
    asked = {"data": photos, "config": QUICK["mae"], **changes}
    if "weights" in asked:
        asked["weights"] = str(copied(weights, tmp_path / "copy"))
    if asked["data"] == "fewer":
        asked["data"] = photos / "deep"
    data, config = asked.pop("data"), asked.pop("config")
    with pytest.raises(ConfigError, match=words):
        adapt_to(data, out, weights, config, resume=True, **asked)  # type: ignore[arg-type]


def test_resume_notices_other_images(photos: Path, weights: Path, tmp_path: Path) -> None:
    data, out = copied(photos, tmp_path / "data"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        adapt_to(data, out, weights, progress=stop_in(1))
    photo(99).save(data / "0.png")
    with pytest.raises(ConfigError, match="images_sha256"):
        adapt_to(data, out, weights, resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "random"}, "needs a trained backbone: give --init RUN, or --weights"),
        ({"init": Path("nowhere")}, "image_size comes from the --init run"),
        ({"init": Path("nowhere"), "image_size": None}, "leave --weights out"),
        ({"init": Path("nowhere"), "image_size": None, "weights": "random"}, "is no run folder"),
        ({"resume": True}, "holds no adaptation to resume"),
        ({"image_size": 8}, "a single patch of 8"),
        ({"image_size": 20}, "not a multiple of the patch size"),
        ({"config": ExploraConfig(distill=DistillConfig(local_size=20))}, "try 16|try 24"),
        ({"config": ExploraConfig(unfreeze=6)}, "unfreeze is 6 but 6 blocks"),
    ],
)
def test_what_cannot_be_done_is_said(
    photos: Path, weights: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(CascadeError, match=words):
        adapt_to(photos, tmp_path / "out", weights, **changes)  # type: ignore[arg-type]
    if "resume" not in changes:  # and the folder is still free for the corrected command
        with pytest.raises(ConfigError, match="holds no adaptation to resume"):
            adapt_to(photos, tmp_path / "out", weights, resume=True)


def test_no_run_is_written_over(adapted: Path, base_run: Path, photos: Path, weights: Path) -> None:
    for out in (adapted, base_run):
        with pytest.raises(ConfigError, match="already holds a run"):
            adapt_to(photos, out, weights)


# The command


def test_command_adapts(photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = f"--data {photos} --out {out} --weights {weights} --image-size 32 --epochs 1"
    options += " --objective distill --batch-size 16 --prototypes 32 --local-crops 0"
    options += " --rank 2 --amp none --threads 1 --centering mean --no-norms"
    done = CliRunner().invoke(explora, options.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"backbone: {out / 'backbone'}"
    settings = read_explored(out).settings
    assert (settings.rank, settings.norms, settings.distill.prototypes) == (2, False, 32)
    assert settings.distill.centering == "mean"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cascade_train.explora.command import explora;"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules); assert not heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
