"""From a source to four splits in memory, the rendered sets, and the contact sheet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_calib.labelled import content_sha256, load_pixels, pixels_sha256, read_labelled
from cascade_runtime.errors import ConfigError, DataError
from cascade_runtime.manifest import Preprocess
from cascade_train.data import load_split_pixels, load_splits, prepare, rendered
from cascade_train.data.contact_sheet import contact_sheet
from cascade_train.data.rendered import RenderSpec, parse, rendered_folder
from cascade_train.data.roadworks import CLASSES, render
from cascade_train.data.splits import SPLITS, describe

SPEC = Preprocess(height=12, width=12)
Maker = Callable[..., Path]


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# Preparing


def test_a_folder_becomes_four_splits(vehicles: Maker, tmp_path: Path) -> None:
    root = vehicles(20)
    prepared = prepare(str(root), tmp_path / "run", SPEC)
    assert [len(prepared.pixels[s]) for s in SPLITS] == [22, 4, 8, 6]
    assert load_splits(tmp_path / "run") == prepared.splits
    assert sum(len(prepared.splits.of(s)) for s in SPLITS) == 40
    for split in SPLITS:
        loaded = prepared.pixels[split]
        assert loaded.names == tuple(e.path for e in prepared.splits.of(split))
        for i, name in enumerate(loaded.names):
            assert np.array_equal(loaded.pixels[i], np.asarray(Image.open(root / name)))
            assert loaded.labels[i] == name.startswith("truck")
    assert "val_calib" in describe(prepared.splits)


def test_later_readers_get_the_same_pixels(vehicles: Maker, tmp_path: Path) -> None:
    prepared = prepare(str(vehicles(20)), tmp_path / "run", SPEC)
    for split in SPLITS:
        first, later = prepared.pixels[split], load_split_pixels(tmp_path / "run", split, SPEC)
        assert np.array_equal(first.pixels, later.pixels)
        assert np.array_equal(first.labels, later.labels)
        # At the images' own size the file's hash is the hash of the pixels in hand.
        expected = prepared.splits.content_sha256[split]
        assert content_sha256(later.pixels, later.labels) == expected
    listed = read_labelled(tmp_path / "run" / "splits.json", split="val_calib")
    assert listed.paths == prepared.pixels["val_calib"].names


def test_images_are_decoded_once(
    vehicles: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascade_calib import labelled

    seen: list[str] = []
    decode = labelled.decode_for

    def counted(image: str, spec: Preprocess, name: str | None = None) -> Image.Image:
        seen.append(image)
        return decode(image, spec, name)

    monkeypatch.setattr(labelled, "decode_for", counted)
    prepare(str(vehicles(10)), tmp_path / "run", SPEC)
    assert len(seen) == len(set(seen)) == 20


def test_the_file_has_the_same_bytes_every_time(vehicles: Maker, tmp_path: Path) -> None:
    root = vehicles(10)
    for name in ("one", "two"):
        prepare(str(root), tmp_path / name, SPEC, seed=4)
    one, two = ((tmp_path / name / "splits.json").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one.splitlines()) > 20  # one image a line
    assert files_below(tmp_path / "one") == ["splits.json"]
    prepare(str(root), tmp_path / "two", SPEC, seed=5)
    assert (tmp_path / "two" / "splits.json").read_bytes() != one


def test_bad_files_and_contradictions_are_left_out_by_name(
    vehicles: Maker, tmp_path: Path, refused: dict[Path, str]
) -> None:
    root = vehicles(10)
    for path in refused:
        path.rename(root / "car" / path.name)
    shutil.copy(root / "car" / "003.png", root / "truck" / "same.png")
    shutil.copy(root / "car" / "004.png", root / "car" / "copy.png")
    prepared = prepare(str(root), tmp_path / "run", SPEC)
    used = {entry.path: entry.split for entry in prepared.splits.entries}
    reasons = {item.path: item.reason for item in prepared.splits.skipped}
    assert len(used) == 20  # 20 - 1 contradicted + 1 copy
    assert set(reasons) == {f"car/{p.name}" for p in refused} | {"car/003.png", "truck/same.png"}
    assert reasons["car/003.png"] == "the same pixels as truck/same.png, with the other label"
    assert used["car/004.png"] == used["car/copy.png"]
    assert prepared.summary().startswith(f"20 images read, {len(refused) + 2} skipped:")
    assert json.loads((tmp_path / "run" / "splits.json").read_text())["skipped"]


def test_groups_of_a_table_stay_together(vehicles: Maker, tmp_path: Path) -> None:
    root = vehicles(40)
    rows = [
        f"{label}/{i:03d}.png,{label},video {i // 4}"
        for label in ("car", "truck")
        for i in range(40)
    ]
    (root / "labels.csv").write_text("path,label,group\n" + "\n".join(rows))
    prepared = prepare(str(root / "labels.csv"), tmp_path / "run", SPEC, positive="car")
    assert prepared.splits.classes == ("truck", "car")
    where = {entry.group: entry.split for entry in prepared.splits.entries}
    assert len(where) == 10
    assert all(where[entry.group] == entry.split for entry in prepared.splits.entries)
    assert set(prepared.pixels["val_test"].groups or ()) == {
        group for group, split in where.items() if split == "val_test"
    }


def test_a_split_with_a_changed_or_lost_image_is_refused(vehicles: Maker, tmp_path: Path) -> None:
    root = vehicles(20)
    prepared = prepare(str(root), tmp_path / "run", SPEC)
    name = prepared.splits.of("val_calib")[0].path
    Image.new("RGB", (12, 12), "red").save(root / name)
    with pytest.raises(DataError, match=rf"1 of 8 images of val_calib.*{name} \(other pixels\)"):
        load_split_pixels(tmp_path / "run", "val_calib", SPEC)
    (root / name).unlink()
    with pytest.raises(DataError, match="No such file"):
        load_split_pixels(tmp_path / "run", "val_calib", SPEC)
    assert len(load_split_pixels(tmp_path / "run", "val_test", SPEC)) == 6


def test_a_failed_run_leaves_no_splits_file(vehicles: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every split needs some"):
        prepare(str(vehicles(2)), tmp_path / "run", SPEC)
    assert not (tmp_path / "run").exists()


# Rendered sets


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASCADE_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_names_of_rendered_sets_are_read() -> None:
    assert parse("roadworks:day") == RenderSpec("day", 10_000, 0)
    assert parse("roadworks:night?n=8000&seed=1") == RenderSpec("night", 8000, 1)
    assert parse("roadworks:day?seed=7").folder == "roadworks-day-n10000-s7"


@pytest.mark.parametrize(
    "source",
    [
        "roadworks:",
        "roadworks:dusk",
        "roadworks:day?n",
        "roadworks:day?n=",
        "roadworks:day?n=-5",
        "roadworks:day?n=1e4",
        "roadworks:day?n=8&seed=1",
        "roadworks:day?n=99999999",
        "roadworks:day?size=64",
        "roadworks:day?n=100&n=200",
        "roadworks:day?seed=x",
        "roadworks:day/../../etc",
    ],
)
def test_a_wrong_name_says_what_is_accepted(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"roadworks:day|whole number from"):
        prepare(source, tmp_path, SPEC)


def test_a_rendered_set_is_the_renderers_frames(cache: Path, tmp_path: Path) -> None:
    spec = Preprocess(height=64, width=64)
    seen: list[tuple[str, int, int]] = []
    source = "roadworks:day?n=60&seed=2"
    prepared = prepare(source, tmp_path / "run", spec, progress=lambda *e: seen.append(e))
    assert prepared.splits.classes == CLASSES
    assert prepared.splits.source == source
    assert len(prepared.splits.entries) == 60
    assert (seen[0], seen[-1]) == (("rendering day", 0, 60), ("reading images", 60, 60))
    assert ("rendering day", 60, 60) in seen
    for entry in prepared.splits.of("val_test"):
        scene = render("day", int(Path(entry.path).stem), seed=2)
        assert entry.label == scene.label
        assert entry.sha256 == pixels_sha256(scene.pixels)
    assert sorted(p.name for p in cache.iterdir()) == ["roadworks-day-n60-s2"]


def fake_renders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Render in this process, and count how often; the pool is tested above."""
    calls: list[int] = []

    def render_all(spec: RenderSpec, folder: Path, workers: int, progress: object) -> None:
        calls.append(workers)
        for name in CLASSES:
            (folder / name).mkdir()
        rendered._render(spec, folder, range(spec.n))

    monkeypatch.setattr(rendered, "_render_all", render_all)
    return calls


def test_a_whole_set_is_used_again_and_a_damaged_one_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, spec = fake_renders(monkeypatch), RenderSpec("night", 16)
    folder = rendered_folder(spec)
    assert rendered_folder(spec) == folder
    assert len(calls) == 1
    next(folder.glob("*/*.png")).unlink()
    rendered_folder(spec)
    assert len(calls) == 2
    (folder / "rendered.json").write_text("of an older renderer")
    rendered_folder(spec)
    assert len(calls) == 3
    assert len(list(folder.glob("*/*.png"))) == 16
    assert [p.name for p in cache.iterdir()] == ["roadworks-night-n16-s0"]


def test_a_run_that_breaks_off_leaves_no_half_set(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(spec: RenderSpec, folder: Path, *_: object) -> None:
        (folder / "clear").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(rendered, "_render_all", breaks)
    with pytest.raises(KeyboardInterrupt):
        rendered_folder(RenderSpec("day", 16))
    assert list(cache.iterdir()) == []


def test_two_runs_at_once_end_with_one_whole_set(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RenderSpec("day", 16)
    fake_renders(monkeypatch)
    render_all = rendered._render_all

    def late(spec: RenderSpec, folder: Path, workers: int, progress: None) -> None:
        render_all(spec, folder, workers, progress)
        monkeypatch.setattr(rendered, "_render_all", render_all)
        rendered_folder(spec)  # the other run is quicker

    monkeypatch.setattr(rendered, "_render_all", late)
    assert len(load_pixels(read_labelled(rendered_folder(spec)), SPEC)) == 16
    assert [p.name for p in cache.iterdir()] == ["roadworks-day-n16-s0"]


def test_a_cache_that_cannot_be_written_says_how_to_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CASCADE_EDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set CASCADE_EDGE_CACHE"):
        rendered_folder(RenderSpec("day", 16))


# The contact sheet


def test_the_sheet_shows_each_image_enlarged_in_its_frame(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pixels = np.array([np.full((16, 16, 3), c) for c in colours], dtype=np.uint8)
    labels = np.array([0, 1, 0])
    path = contact_sheet(pixels, labels, ("car", "truck"), tmp_path / "new" / "sheet.png")
    sheet = np.asarray(Image.open(path))
    for colour in colours:
        assert int((sheet == colour).all(axis=2).sum()) == 128 * 128
    frames = {}
    for i, colour in enumerate(colours):
        rows, columns = np.nonzero((sheet == colour).all(axis=2))
        frames[i] = tuple(sheet[rows[0] - 2, columns[0]])
    assert frames[0] == frames[2] != frames[1]
    assert files_below(tmp_path) == ["new", "new/sheet.png"]


def test_the_sheet_takes_the_first_64_and_long_captions(tmp_path: Path) -> None:
    pixels = np.zeros((70, 5, 9, 3), dtype=np.uint8)
    labels = np.arange(70) % 2
    few = contact_sheet(pixels[:64], labels[:64], ("a" * 90, "b"), tmp_path / "64.png")
    many = contact_sheet(pixels, labels, ("a" * 90, "b"), tmp_path / "70.png")
    assert np.array_equal(np.asarray(Image.open(few)), np.asarray(Image.open(many)))
    contact_sheet(pixels, labels, ("a", "b"), tmp_path / "c.png", ["far\naway " * 30] * 70)


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    nothing = np.zeros((0, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="no image to show"):
        contact_sheet(nothing, np.zeros(0, dtype=int), ("a", "b"), tmp_path / "s.png")
    with pytest.raises(DataError, match="do not belong together"):
        contact_sheet(
            np.zeros((2, 4, 4, 3), dtype=np.uint8), np.zeros(1), ("a", "b"), tmp_path / "s"
        )
