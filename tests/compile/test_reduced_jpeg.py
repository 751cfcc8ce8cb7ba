"""A bundle that decodes JPEGs at a fraction of their size is certified on what it will see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from cascade_calib.labelled import pixels_sha256
from cascade_calib.splits_file import SPLITS_NAME, content_hash, read_splits, write_splits
from cascade_compile.bundle import BundleRequest, build
from cascade_runtime.bundle import GOLDEN
from cascade_runtime.cascade import Cascade
from cascade_runtime.golden import load_golden
from cascade_runtime.preprocess import decode_rgb, load_image

from .conftest import SIDE, Trained


def as_jpegs(trained: Trained, folder: Path) -> Path:
    """The run's certifying splits as JPEGs four times as large, in a splits.json of their own."""
    splits = read_splits(trained.run / SPLITS_NAME)
    entries = []
    for entry in splits.of("val_select") + splits.of("val_calib"):
        file = (folder / entry.path).with_suffix(".jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(Path(splits.root) / entry.path) as picture:
            large = picture.convert("RGB").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)
            large.save(file, quality=95)
        digest = pixels_sha256(np.asarray(decode_rgb(file, max_pixels=10**6)))
        path = file.relative_to(folder).as_posix()
        entries.append(msgspec.structs.replace(entry, path=path, sha256=digest))
    hashes = {
        split: content_hash(
            [e.sha256 for e in entries if e.split == split],
            [e.label for e in entries if e.split == split],
        )
        for split in ("val_select", "val_calib")
    }
    fields = {"root": str(folder), "entries": tuple(entries), "content_sha256": hashes}
    write_splits(msgspec.structs.replace(splits, **fields), folder / SPLITS_NAME)
    return folder / SPLITS_NAME


def test_certified_and_served_at_a_fraction(
    request_for: Callable[..., BundleRequest], no_export: list[Path], trained, tmp_path: Path
) -> None:
    splits = as_jpegs(trained, tmp_path / "jpegs")
    out = tmp_path / "reduced.cascade"
    manifest = build(request_for(out, splits=splits, jpeg="reduced"), say=lambda line: None)
    reduced = manifest.preprocess
    assert reduced.jpeg == "reduced"
    cascade = Cascade.open(out, self_test=True, threads=1, warm_up=False)
    assert cascade.certificate.status == "CERTIFIED"

    files = sorted((tmp_path / "jpegs").rglob("*.jpg"))
    full = msgspec.structs.replace(reduced, jpeg="full")
    seen = {load_image(file, reduced).tobytes() for file in files}
    whole = {load_image(file, full).tobytes() for file in files}
    golden = {image.tobytes() for image in load_golden(cascade.bundle.read(GOLDEN)).images}
    assert golden <= seen and not golden & whole
    pixels = [load_image(file, reduced) for file in files[:8]]
    assert [r.p for r in cascade.classify(files[:8])] == [r.p for r in cascade.classify(pixels)]
