"""The rendered data sets by name, `roadworks:day?n=8000&seed=1`, as folders of PNG files.

In: such a name. Out: a folder with one sub-folder a class, made once and found again later. It is
rendered under a temporary name and renamed when it is whole, so that a kill leaves no half set.
The cache lies in `$CASCADE_EDGE_CACHE`, or `~/.cache/cascade-edge`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

from cascade_calib.labelled import Progress
from cascade_runtime.errors import ConfigError

SCHEME = "roadworks:"
DEFAULT_N = 10_000
SIZE = 64

_LIMITS = {"n": (16, 1_000_000), "seed": (0, 2**31 - 1)}
_MARK = "rendered.json"
_CHUNK = 25  # frames a task
_STALE_S = 24 * 3600.0  # a temporary folder this old belongs to no living process


class RenderSpec(msgspec.Struct, frozen=True):
    """Which rendered set: `n` frames of a variant, numbers 0 to n-1 of `seed`."""

    variant: str
    n: int = DEFAULT_N
    seed: int = 0

    @property
    def folder(self) -> str:
        return f"roadworks-{self.variant}-n{self.n}-s{self.seed}"


def is_rendered(source: str) -> bool:
    """Whether a data source names a rendered set rather than a file or folder."""
    return source.startswith(SCHEME)


def parse(source: str) -> RenderSpec:
    """Read `roadworks:<variant>[?n=<frames>&seed=<number>]`.

    Raises:
        ConfigError: another variant, an unknown option, or a number out of range.
    """
    from cascade_train.data.roadworks import VARIANTS

    forms = f"{SCHEME}{'|'.join(VARIANTS)}, with ?n=8000, ?seed=1 or ?n=8000&seed=1 after it"
    variant, _, query = source.removeprefix(SCHEME).partition("?")
    if not is_rendered(source) or variant not in VARIANTS:
        raise ConfigError(f"data {source!r}: no such rendered set; write {forms}")
    options: dict[str, int] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(f"data {source!r}: {query!r} is no option; write {forms}") from error
    for key, text in pairs:
        if key not in _LIMITS or key in options:
            problem = "given twice" if key in options else "no option of it"
            raise ConfigError(f"data {source!r}: {key!r} is {problem}; write {forms}")
        low, high = _LIMITS[key]
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ConfigError(
                f"data {source!r}: {key} is {text!r}, expected a whole number from {low} to {high}"
            )
        options[key] = int(text)
    return RenderSpec(variant, **options)


def cache_folder() -> Path:
    """Where rendered sets are kept."""
    named = os.environ.get("CASCADE_EDGE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "cascade-edge"


def rendered_folder(
    spec: RenderSpec, *, workers: int | None = None, progress: Progress | None = None
) -> Path:
    """The folder of a rendered set, rendered now unless it is already there and whole.

    A set made by another version of the renderer is made again.

    Args:
        workers: processes; default one a core.
        progress: told after every few frames.
    """
    cache = cache_folder()
    folder = cache / spec.folder
    mark = _mark(spec)
    if _whole(folder, spec, mark):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        half = Path(tempfile.mkdtemp(prefix=f".{spec.folder}.", dir=cache))
    except OSError as error:
        raise ConfigError(
            f"{cache}: the cache folder cannot be written ({error.strerror}); set "
            "CASCADE_EDGE_CACHE to one that can"
        ) from error
    try:
        _render_all(spec, half, workers or os.cpu_count() or 1, progress)
        (half / _MARK).write_bytes(mark)
        half.chmod(0o755)
        _put(half, folder, spec, mark)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _mark(spec: RenderSpec) -> bytes:
    """What the folder was made from: the request, and the hash of the renderer's own source."""
    from cascade_train.data import roadworks

    digest = hashlib.sha256()
    for file in sorted(Path(roadworks.__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\n" + file.read_bytes())
    made = {**msgspec.structs.asdict(spec), "size": SIZE, "renderer": digest.hexdigest()}
    return msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"


def _whole(folder: Path, spec: RenderSpec, mark: bytes) -> bool:
    """Whether the set is there, of this renderer, with every frame."""
    try:
        if (folder / _MARK).read_bytes() != mark:
            return False
        return sum(1 for _ in folder.glob("*/*.png")) == spec.n
    except OSError:
        return False


def _put(half: Path, folder: Path, spec: RenderSpec, mark: bytes) -> None:
    """Move the finished set to its place, unless another process was quicker."""
    if _whole(folder, spec, mark):
        return
    if folder.exists():
        outdated = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        folder.rename(outdated / "outdated")
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        half.rename(folder)
    except OSError:
        if not _whole(folder, spec, mark):
            raise


def _sweep(cache: Path) -> None:
    """Remove what killed runs left behind."""
    for folder in cache.glob(".roadworks-*"):
        try:
            if time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another process swept it
            continue


def _render_all(spec: RenderSpec, folder: Path, workers: int, progress: Progress | None) -> None:
    from cascade_train.data.roadworks import CLASSES

    for name in CLASSES:
        (folder / name).mkdir()
    todo = iter(
        (spec, folder, range(start, min(start + _CHUNK, spec.n)))
        for start in range(0, spec.n, _CHUNK)
    )
    what, done = f"rendering {spec.variant}", 0
    if progress is not None:
        progress(what, 0, spec.n)
    # Fresh processes: a forked copy of one that runs torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        running: set[Future[int]] = {pool.submit(_render, *t) for t in islice(todo, 2 * workers)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_render, *task) for task in islice(todo, len(finished))}
            done += sum(future.result() for future in finished)
            if progress is not None:
                progress(what, done, spec.n)


def _render(spec: RenderSpec, folder: Path, frames: range) -> int:
    """Write some frames; runs in a process of its own."""
    from PIL import Image

    from cascade_train.data.roadworks import CLASSES, render

    for i in frames:
        scene = render(spec.variant, i, seed=spec.seed, size=SIZE)
        path = folder / CLASSES[scene.label] / f"{i:06d}.png"
        Image.fromarray(scene.pixels).save(path, compress_level=1)
    return len(frames)
