"""What the fuzzers of tests/native/fuzz begin with: small real files, made on the spot.

In: a sealed bundle and an empty folder. Out: one folder a fuzzer, and `words.dict`, the manifest's
names, which a fuzzer of bytes would not find by itself.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade_runtime.bundle import GOLDEN, MANIFEST, SUMS

from .test_engines import external_tensor, hidden_tensor
from .test_native_bundle import zip64
from .test_native_pixels import KINDS, PALETTE, chunk, png

FUZZERS = ("archive", "frame", "jpeg", "manifest", "onnx", "png", "tensors", "webp")
HIDDEN = ("initializer", "sparse initializer", "constant", "subgraph", "function", "training")
SAMPLES = (3, 3, 4, 4, 1, 1)  # bytes a pixel of a frame, by cascade_format
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def encoded(kind: str, mode: str, size: tuple[int, int] = (21, 17), **options: Any) -> bytes:
    """A picture with both edges and slopes."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    colours = np.stack([x * 11, y * 13, (x ^ y) * 17, 255 - x * 5], axis=-1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours, "RGBA").convert(mode).save(out, kind, **options)
    return out.getvalue()


def jpegs() -> Iterator[bytes]:
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            yield encoded("JPEG", mode, progressive=progressive, quality=70)
    for sampling in (0, 1):
        yield encoded("JPEG", "RGB", subsampling=sampling, optimize=True)
    yield encoded("JPEG", "RGB", restart_marker_blocks=1)
    yield encoded("JPEG", "RGB", exif=EXIF)


def pngs() -> Iterator[bytes]:
    allowed = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    for colour, depth in KINDS:
        if depth in allowed[colour]:
            palette = [PALETTE] if colour == 3 else []
            yield png(colour, depth, (9, 7), *palette, interlaced=depth in (4, 8))
    yield png(3, 8, (9, 7), PALETTE, chunk(b"tRNS", bytes(range(0, 250, 5))))
    yield encoded("PNG", "RGBA", exif=EXIF)


def webps() -> Iterator[bytes]:
    for mode in ("RGB", "RGBA"):
        for lossless in (False, True):
            yield encoded("WEBP", mode, lossless=lossless)
    yield encoded("WEBP", "RGB", exif=EXIF)
    yield encoded("WEBP", "RGB", save_all=True, append_images=[Image.new("RGB", (21, 17))])


def frames() -> Iterator[bytes]:
    """Words of fuzz_frame.cpp: format, width, height, stride, chroma stride, first plane, flags."""
    for form, samples in enumerate(SAMPLES):
        for width, height, padding, flags in ((6, 4, 0, 0), (5, 7, 3, 1), (9, 3, 0, 12)):
            stride = width * samples + padding
            luma, chroma = stride * height, (width + 1 + padding) * ((height + 1) // 2)
            words = struct.pack("<7I", form, width, height, stride, 0, luma, flags)
            yield words + bytes(range(256)) * 2 if form < 5 else words + bytes(luma + chroma)


def archives(bundle: Path) -> Iterator[bytes]:
    """Two files of the bundle as a zip, plain, with a comment, zip64; and one that is empty."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.write(bundle / SUMS, SUMS)
        archive.writestr("targets/a/report.html", "<p>")
    plain = out.getvalue()
    yield plain
    yield plain[:-2] + b"\x03\0end"
    yield zip64(plain)
    yield b"PK\5\6" + bytes(18)


def onnx_files() -> Iterator[bytes]:
    for where in HIDDEN:
        model = hidden_tensor(where, external_tensor("stage0.data"))
        for tensor in model.graph.initializer:
            tensor.raw_data = tensor.raw_data[:8]
        yield model.SerializeToString()


def tensors(bundle: Path) -> Iterator[bytes]:
    """The first byte is the side of the images: 8 in the golden file, 0 in an empty one."""
    yield b"\x08" + (bundle / GOLDEN).read_bytes()
    header = b'{"images":{"dtype":"U8","shape":[0,0,0,3],"data_offsets":[0,0]}}'
    yield b"\0" + struct.pack("<Q", len(header)) + header


def manifests(bundle: Path) -> Iterator[bytes]:
    """One target of the bundle; the same with every field that may be absent; odd JSON."""
    whole = json.loads((bundle / MANIFEST).read_bytes())
    name = next(iter(whole["targets"]))
    for table in ("targets", "decision", "certificates"):
        whole[table] = {name: whole[table][name]}
    yield json.dumps(whole, separators=(",", ":")).encode()
    target, certificate = whole["targets"][name], whole["certificates"][name]
    whole["stages"][1]["input"] = "pixels"
    whole["decision"][name] |= {
        "policy": "scrc-i",
        "accept": {"tau_logit": 0.5, "set_logit_at": -1.0},
    }
    counts = {"accepted": 9, "misses": 1, "ambiguous": 2, "empty": 0}
    shares = {"risk_upper": 0.1, "coverage": 0.9, "coverage_lower": 0.8}
    certificate |= {"fnr_promised": 0.1, "fnr_upper": 0.2, "sets": counts | shares, "delta": None}
    recipe = {key: target[key] for key in ("backend", "precision", "stages", "islands", "parity")}
    whole["recipes"] = {name.rpartition("/")[0]: recipe | {"reference": "report.html"}}
    yield json.dumps(whole, separators=(",", ":")).encode()
    yield b'{"a":[1.5e3,-0,true,null,"\\ud83d\\ude00"]}'


def write(folder: Path, files: Iterable[bytes]) -> None:
    folder.mkdir()
    for index, data in enumerate(files):
        (folder / str(index)).write_bytes(data)


def make_corpora(bundle: Path, out: Path) -> None:
    write(out / "archive", archives(bundle))
    write(out / "frame", frames())
    write(out / "jpeg", jpegs())
    write(out / "manifest", manifests(bundle))
    write(out / "onnx", onnx_files())
    write(out / "png", pngs())
    write(out / "tensors", tensors(bundle))
    write(out / "webp", webps())
    names = re.findall(rb'"[\w./-]{1,40}"', b"".join(manifests(bundle)))
    words = [f'"\\"{name[1:-1].decode()}\\""' for name in sorted(set(names))]
    (out / "words.dict").write_text("\n".join(words) + "\n")
