"""Reading labelled images: folders, tables, splits files, and what they may hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade_calib.labelled import (
    LabelledImages,
    content_sha256,
    load_pixels,
    pixels_sha256,
    read_labelled,
)
from cascade_calib.splits_file import Entry, Splits, content_hash, write_splits
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Preprocess

SPEC = Preprocess(height=12, width=12)
Maker = Callable[..., Path]


def table(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def parquet(tmp_path: Path, columns: dict[str, list[object]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


# Folders


def test_a_folder_lists_its_images_in_order(vehicles: Maker) -> None:
    images = read_labelled(vehicles(2))
    assert images.classes == ("car", "truck")
    assert images.paths == ("car/000.png", "car/001.png", "truck/000.png", "truck/001.png")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.labels.dtype == np.int8
    assert images.groups is None


def test_positive_chooses_class_one(vehicles: Maker) -> None:
    images = read_labelled(vehicles(2), positive="car")
    assert images.classes == ("truck", "car")
    assert images.labels[images.paths.index("car/000.png")] == 1
    with pytest.raises(DataError, match="no class 'bus'"):
        read_labelled(vehicles(2, name="other"), positive="bus")


def test_hidden_and_other_files_are_left_alone(vehicles: Maker) -> None:
    root = vehicles(1)
    for name in (".hidden.png", "notes.txt", "._000.png"):
        (root / "car" / name).write_bytes(b"x")
    for name in (".cache", "__MACOSX"):
        (root / name).mkdir()
    assert len(read_labelled(root)) == 2


def test_deeper_folders_and_any_case_of_suffix_count(vehicles: Maker) -> None:
    root = vehicles(1)
    (root / "car" / "site a" / "雪").mkdir(parents=True)
    (root / "car" / "000.png").rename(root / "car" / "site a" / "雪" / "X.PNG")
    assert read_labelled(root).paths[0] == "car/site a/雪/X.PNG"


def test_a_link_back_into_the_tree_ends(vehicles: Maker) -> None:
    root = vehicles(2)
    (root / "car" / "again").symlink_to(root / "car", target_is_directory=True)
    (root / "truck" / "up").symlink_to(root, target_is_directory=True)
    images = read_labelled(root)
    assert images.paths == ("car/000.png", "car/001.png", "truck/000.png", "truck/001.png")


def test_a_link_to_images_elsewhere_is_followed(vehicles: Maker) -> None:
    root, other = vehicles(1), vehicles(2, name="other")
    (root / "car" / "more").symlink_to(other / "car", target_is_directory=True)
    assert read_labelled(root).paths[:2] == ("car/000.png", "car/more/000.png")


@pytest.mark.parametrize(
    ("folders", "word"),
    [
        ([], "found 0"),
        (["car"], "found 1"),
        (["car", "truck", "bus"], "found 3"),
        (["train", "test"], "look like splits"),
    ],
)
def test_a_folder_needs_two_class_folders(tmp_path: Path, folders: list[str], word: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=word):
        read_labelled(tmp_path)


def test_a_ready_made_split_is_read_as_one(vehicles: Maker) -> None:
    root = vehicles(2, name="all/train").parent
    vehicles(3, name="all/test")
    images = read_labelled(root)
    assert images.classes == ("car", "truck")
    assert len(images) == 10
    assert images.paths[0] == "test/car/000.png"
    assert images.labels.tolist() == ["truck" in path for path in images.paths]
    assert load_pixels(images, SPEC).skipped == ()
    (root / "test" / "bus").mkdir()
    with pytest.raises(DataError, match="do not each hold the same two"):
        read_labelled(root)


def test_a_class_without_images_is_named(vehicles: Maker) -> None:
    root = vehicles(1)
    (root / "truck" / "000.png").unlink()
    with pytest.raises(DataError, match="truck holds no image"):
        read_labelled(root)


def test_a_missing_source_says_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder; give a folder"):
        read_labelled(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"not '\.txt'"):
        read_labelled(table(tmp_path, "x", "labels.txt"))


# Tables


def test_csv_paths_start_at_the_file(tmp_path: Path) -> None:
    text = "path,label,group\na.png,no,north\n\nsub/b.png,yes,south\n"
    images = read_labelled(table(tmp_path, text))
    assert images.root == tmp_path
    assert images.paths == ("a.png", "sub/b.png")
    assert images.classes == ("no", "yes")
    assert images.labels.tolist() == [0, 1]
    assert images.groups == ("north", "south")


def test_csv_with_byte_order_mark_windows_lines_and_more_columns(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbfWhen,Label,PATH\r\n1,b,x.png\r\n2,a,"y, z.png"\r\n'
    images = read_labelled(table(tmp_path, text))
    assert images.paths == ("x.png", "y, z.png")
    assert images.labels.tolist() == [1, 0]
    assert images.groups is None


def test_number_labels_sort_by_value(tmp_path: Path) -> None:
    images = read_labelled(table(tmp_path, "path,label\na.png,10\nb.png,9\n"))
    assert images.classes == ("9", "10")
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("path,label\n", "no image below its header"),
        ("file,label\na,b\n", "no column path; the header is file, label"),
        ("path,path,label\na,a,b\n", "path is there twice"),
        ("path,label\na.png,x\nb.png\n", "row 3 has 1 cells, the header has 2"),
        ("path,label\na.png,x\n\nb.png,\n", "row 4 has no label"),
        ("path,label,group\na.png,x,\n", "row 2 has no group; fill it in, or leave the column"),
        ("path,label\na.png,x\nb.png,x\n", "every label is 'x'"),
        ("path,label\na,x\nb,y\nc,x\nd,z\n", r"row 5 has a third label, 'z', after 'x' \(row 2\)"),
        ("path,label\na,x\nb,y\na,x\n", "row 4 lists 'a' again, first in row 2"),
        ('path,label\na,x\n"b,y\n', "not CSV"),
        (b"path,label\na,\xff\n", "is not UTF-8"),
        (b"path,label\na\0b,x\n\0,y\n", ""),
    ],
)
def test_a_bad_table_names_the_row(tmp_path: Path, text: str | bytes, word: str) -> None:
    path = table(tmp_path, text)
    if word:
        with pytest.raises(DataError, match=word) as caught:
            read_labelled(path)
        assert str(path) in str(caught.value)
    else:  # accepted or refused by Python's csv; the images are then refused by name
        with pytest.raises(DataError):
            load_pixels(read_labelled(path), SPEC)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["no", "yes"], ("no", "yes")),
        ([9, 10], ("9", "10")),
        ([False, True], ("False", "True")),
    ],
)
def test_parquet_labels_of_any_kind(
    tmp_path: Path, labels: list[object], classes: tuple[str, str]
) -> None:
    path = parquet(tmp_path, {"path": ["a.png", "b.png"], "label": labels, "size": [1, 2]})
    images = read_labelled(path)
    assert images.classes == classes
    assert images.labels.tolist() == [0, 1]


def test_a_bad_parquet_file_names_the_row_or_the_file(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"path": ["a.png", None], "label": ["x", "y"]})
    with pytest.raises(DataError, match="row 2 has no path"):
        read_labelled(path)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_labelled(path)


# Pixels


def test_pixels_keep_the_order_of_the_list(vehicles: Maker) -> None:
    images = read_labelled(vehicles(40))
    seen: list[tuple[str, int, int]] = []
    loaded = load_pixels(images, SPEC, workers=3, progress=lambda *event: seen.append(event))
    assert loaded.pixels.shape == (80, 12, 12, 3)
    assert loaded.pixels.dtype == np.uint8
    assert loaded.names == images.paths
    for i in (0, 39, 40, 79):
        assert np.array_equal(loaded.pixels[i], np.asarray(Image.open(images.file(i))))
    assert seen[-1] == ("reading images", 80, 80)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_bad_files_are_listed_and_the_rest_goes_on(
    vehicles: Maker, refused: dict[Path, str]
) -> None:
    root = vehicles(3)
    for path in refused:
        path.rename(root / "car" / path.name)
    images = read_labelled(root)
    loaded = load_pixels(images, SPEC, workers=2)
    assert len(loaded) == 6
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.names == tuple(p for p in images.paths if Path(p).stem.isdigit())
    reasons = {item.path: item.reason for item in loaded.skipped}
    assert len(reasons) == len(refused)
    for path, word in refused.items():
        assert word in reasons[f"car/{path.name}"]
    summary = loaded.summary()
    assert summary.startswith(f"6 images read, {len(refused)} skipped:")
    assert all(f"car/{path.name}" in summary for path in refused if path.name != "vector.png")


def test_a_format_that_is_not_read_is_refused_not_overlooked(vehicles: Maker) -> None:
    root = vehicles(1)
    (root / "car" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    loaded = load_pixels(read_labelled(root), SPEC)
    assert [item.path for item in loaded.skipped] == ["car/phone.heic"]


def test_a_name_that_is_not_utf8_is_skipped_by_a_name_that_prints(vehicles: Maker) -> None:
    root = vehicles(1)
    bad = os.fsencode(root / "car") + b"/\xff.png"
    try:
        Path(os.fsdecode(bad)).write_bytes((root / "car" / "000.png").read_bytes())
    except OSError:
        pytest.skip("this file system allows only UTF-8 names")
    loaded = load_pixels(read_labelled(root), SPEC)
    assert [item.path.encode() for item in loaded.skipped] == [b"car/\\udcff.png"]
    assert "not valid UTF-8" in loaded.summary()


def test_missing_files_of_a_table_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (12, 12)).save(tmp_path / "here.png")
    (tmp_path / "folder.png").mkdir()
    text = "path,label\nhere.png,a\ngone.png,b\nfolder.png,a\n"
    loaded = load_pixels(read_labelled(table(tmp_path, text)), SPEC)
    assert loaded.names == ("here.png",)
    assert ["No such file" in loaded.skipped[0].reason, "folder" in loaded.skipped[1].reason] == [
        True,
        True,
    ]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\na.png,a\nb.png,b\n")
    with pytest.raises(DataError, match=r"none of the 2 images can be read; the first is a\.png"):
        load_pixels(read_labelled(path), SPEC)


def test_groups_follow_the_images_that_are_left(tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        Image.new("RGB", (12, 12)).save(tmp_path / name)
    text = "path,label,group\na.png,x,one\nb.png,y,two\nc.png,y,three\n"
    loaded = load_pixels(read_labelled(table(tmp_path, text)), SPEC)
    assert loaded.groups == ("one", "three")
    assert loaded.select([1]).groups == ("three",)


def test_a_bug_in_decoding_is_not_hidden(vehicles: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cascade_calib.labelled.fit", broken)
    with pytest.raises(ZeroDivisionError):
        load_pixels(read_labelled(vehicles(1)), SPEC)


# Hashes


def test_pixel_hash_is_of_size_and_bytes() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixels_sha256(image) == hashlib.sha256(b"RGB 4x2\n" + image.tobytes()).hexdigest()
    assert pixels_sha256(image) != pixels_sha256(image.reshape(4, 2, 3))
    assert pixels_sha256(image[:, ::-1]) == pixels_sha256(image[:, ::-1].copy())


def test_the_same_picture_in_another_format_has_the_same_hash(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.bmp")
    path = table(tmp_path, "path,label\na.png,x\nb.bmp,y\n")
    loaded = load_pixels(read_labelled(path), SPEC, hashes=True)
    assert loaded.hashes == (pixels_sha256(np.asarray(picture)),) * 2


def test_content_hash_forgets_order_but_not_labels_or_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1, 1, 0], dtype=np.int8)
    expected = content_sha256(pixels, labels)
    order = rng.permutation(6)
    assert content_sha256(pixels[order], labels[order]) == expected
    assert content_sha256(pixels, 1 - labels) != expected
    assert content_sha256(pixels[:5], labels[:5]) != expected
    changed = pixels.copy()
    changed[3, 0, 0, 0] ^= 1
    assert content_sha256(changed, labels) != expected
    lines = sorted(f"{pixels_sha256(p)} {y}\n" for p, y in zip(pixels, labels, strict=True))
    assert expected == hashlib.sha256("".join(lines).encode()).hexdigest()


# Splits files


def splits_file(root: Path, relative: bool = False) -> Path:
    images = read_labelled(root)
    splits = ["train", "val_select", "val_calib", "val_test"]
    entries = tuple(
        Entry(path=p, label=int(y), split=splits[i % 4], sha256=f"{i:064x}")
        for i, (p, y) in enumerate(zip(images.paths, images.labels, strict=True))
    )
    content = {
        s: content_hash(
            [e.sha256 for e in entries if e.split == s], [e.label for e in entries if e.split == s]
        )
        for s in splits
    }
    path = root.parent / "splits.json"
    write_splits(
        Splits(
            source=str(root),
            root=root.name if relative else str(root),
            classes=images.classes,
            seed=0,
            fractions=dict.fromkeys(splits, 0.25),
            content_sha256=content,
            entries=entries,
            skipped=(),
        ),
        path,
    )
    return path


@pytest.mark.parametrize("relative", [False, True])
def test_a_splits_file_gives_one_split_or_all(vehicles: Maker, relative: bool) -> None:
    path = splits_file(vehicles(4), relative)
    everything, calib = read_labelled(path), read_labelled(path, split="val_calib")
    assert len(everything) == 8
    assert calib.paths == ("car/002.png", "truck/002.png")
    assert calib.labels.tolist() == [0, 1]
    assert len(load_pixels(calib, SPEC)) == 2


def test_only_splits_files_have_splits(vehicles: Maker) -> None:
    root = vehicles(4)
    with pytest.raises(DataError, match=r"only a splits\.json has splits"):
        read_labelled(root, split="train")
    path = splits_file(root)
    with pytest.raises(DataError, match="no split 'val'; there are train, val_select"):
        read_labelled(path, split="val")
    with pytest.raises(DataError, match="made with 'truck'"):
        read_labelled(path, positive="car")


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('"version": 1', '"version": 2', "version 2, this reader knows"),
        ("cascade-edge.splits", "coco", "is 'coco'"),
        ('"split":"val_calib"', '"split":"calib"', "split is 'calib'"),
        ('"label":1', '"label":2', "label is 2"),
        ('"label":1', '"label":0', "does not match its entries"),
        ("car/001.png", "car/000.png", "listed twice"),
        ('"seed": 0', '"seed": "x"', r"Expected `int`.*seed"),
        ("{\n", "[\n", "not a splits file"),
    ],
)
def test_a_changed_splits_file_is_refused(vehicles: Maker, old: str, new: str, word: str) -> None:
    path = splits_file(vehicles(4))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=word):
        read_labelled(path)


def test_a_splits_file_whose_images_are_gone_says_where_they_were(vehicles: Maker) -> None:
    root = vehicles(4)
    path = splits_file(root)
    root.rename(root.parent / "moved")
    with pytest.raises(DataError, match="correct the field root"):
        read_labelled(path)


def test_select_keeps_everything_together(vehicles: Maker) -> None:
    images = read_labelled(vehicles(2))
    picked = images.select(np.array([3, 0]))
    assert isinstance(picked, LabelledImages)
    assert picked.paths == ("truck/001.png", "car/000.png")
    assert picked.labels.tolist() == [1, 0]
