"""TorchScript and AOTInductor: what they answer, what they refuse; the runtime needs no torch.

AOTInductor compiles C++, which takes half a minute; a stage of one narrow block is compiled once
for all tests here.
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_compile import targets
from cascade_compile.sensitivity import run_module
from cascade_compile.stages import Stage, split
from cascade_compile.targets import StageSource
from cascade_compile.torch_engines import aot, torchscript
from cascade_runtime import engines
from cascade_runtime.engines import Engine
from cascade_runtime.errors import TargetError
from cascade_train.backbone import build_backbone
from cascade_train.exits import CascadeModel
from cascade_train.presets import Preset

SIDE = 16
TINY = Preset("narrow", 32, 2, 2, 64, patch=8, registers=0, image_size=SIDE, rescale=None)
BACKENDS = ("torchscript", "aot")


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    torch.manual_seed(0)
    return split(CascadeModel(build_backbone(TINY), (1, 2)), SIDE)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def built(stages: list[Stage], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Stage 0's files by backend: name to bytes."""
    found = {}
    for backend in BACKENDS:
        folder = tmp_path_factory.mktemp(backend)
        files = build(backend, stages[0], folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(files)
        found[backend] = {name: (folder / name).read_bytes() for name in files}
    return found


def build(backend: str, stage: Stage, folder: Path) -> tuple[str, ...]:
    source = StageSource(0 if stage.is_first else 1, Path("unused"), stage, lambda: np.zeros(0))
    return targets.builder(backend).build(source, folder, "fp32", "cpu").files


def load(backend: str, files: dict[str, bytes]) -> Engine:
    return engines.load(
        backend, files, next(iter(files)), precision="fp32", device="cpu", threads=1
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_engine_answers_as_the_network_at_every_batch_size(
    backend: str, batch: int, built: dict[str, dict], stages: list[Stage], pixels: np.ndarray
) -> None:
    engine = load(backend, built[backend])
    rows = pixels[:batch]
    rows.flags.writeable = False
    have, wanted = engine.run(rows), run_module(stages[0], pixels[:batch])
    assert have.keys() == wanted.keys() == {"logits", "gate", "tokens"}
    for name, value in wanted.items():
        assert have[name].dtype == np.float32
        np.testing.assert_allclose(have[name], value, atol=1e-5)
    kept = have["logits"].copy()
    engine.run(pixels[::-1][:batch])
    np.testing.assert_array_equal(have["logits"], kept)


def test_last_stage_takes_tokens_and_gives_none(
    stages: list[Stage], pixels: np.ndarray, tmp_path: Path
) -> None:
    files = build("torchscript", stages[1], tmp_path)
    engine = load("torchscript", {name: (tmp_path / name).read_bytes() for name in files})
    tokens = run_module(stages[0], pixels)["tokens"]
    assert engine.run(tokens).keys() == {"logits", "gate"}


def test_torchscript_is_the_same_bytes_again_and_names_no_place(
    built: dict[str, dict], stages: list[Stage], tmp_path: Path
) -> None:
    [name] = build("torchscript", stages[0], tmp_path)
    data = (tmp_path / name).read_bytes()
    assert data == built["torchscript"][name]
    for word in ("site-packages", "/tests/", str(tmp_path), str(Path(targets.__file__).parent)):
        assert word.encode() not in data


def test_torchscript_is_said_to_be_legacy_in_one_line(
    stages: list[Stage], tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn
) -> None:
    with caplog.at_level(logging.WARNING):
        build("torchscript", stages[0], tmp_path)
    [record] = caplog.records
    assert "torchscript is legacy" in record.getMessage()
    assert not [w for w in recwarn if "jit" in str(w.message)]


def test_library_is_opened_from_a_private_file_that_is_gone_afterwards(
    built: dict[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = torch._C._aoti.AOTIModelPackageLoader

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, *rest: object) -> None:
            modes = [p.stat().st_mode & 0o777 for p in (Path(path), Path(path).parent)]
            seen.append((path, modes))
            super().__init__(path, *rest)

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load("aot", built["aot"])
    [(path, modes)] = seen
    assert path.startswith(str(tmp_path))
    assert modes == [0o600, 0o700]
    assert not list(tmp_path.iterdir())


def test_archive_of_the_library_holds_nothing_pickled(built: dict[str, dict]) -> None:
    [data] = built["aot"].values()
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert any(name.endswith(".so") for name in names)
    ends = {name.rpartition(".")[2] for name in names if "/data/" in name}
    assert ends <= {"so", "cpp", "json"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("CASCADE_TORCH", "1.0", r"compiled by torch .*, this is 1\.0"),
        ("CASCADE_PROCESSOR", "avx999", "compiled for a processor with avx999"),
    ],
)
def test_library_for_another_torch_or_processor_is_refused_before_it_is_opened(
    built: dict[str, dict], monkeypatch: pytest.MonkeyPatch, key: str, value: str, words: str
) -> None:
    here = aot.built_for()
    if key == "CASCADE_TORCH":
        monkeypatch.setattr(aot, "built_for", lambda: here | {key: value})
        with pytest.raises(TargetError, match=words):
            load("aot", built["aot"])
        return
    monkeypatch.setattr(aot.processor, "flags", lambda: frozenset({"sse2"}))
    lost = sorted(set(here[key].split()) - {"sse2"})
    if not lost:
        pytest.skip("the flags of this processor cannot be read")
    with pytest.raises(TargetError, match=f"compiled for a processor with {lost[0]}"):
        load("aot", built["aot"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_file_that_is_no_engine_is_a_target_error(backend: str) -> None:
    with pytest.raises(TargetError, match=r"a/stage0\.x: .* cannot load it"):
        load(backend, {"a/stage0.x": b"nonsense"})


@pytest.mark.parametrize("module", [aot, torchscript])
def test_cuda_and_other_precisions_say_what_is_missing(module) -> None:
    assert "bf16" in str(module.unavailable("bf16", "cpu"))
    if torch.cuda.is_available():
        assert module.unavailable("fp32", "cuda") is None
    else:
        assert "CUDA" in str(module.unavailable("fp32", "cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would be built")
@pytest.mark.parametrize("backend", BACKENDS)
def test_building_for_a_gpu_that_is_not_there_is_a_target_error(
    backend: str, stages: list[Stage], tmp_path: Path
) -> None:
    source = StageSource(0, Path("unused"), stages[0], lambda: np.zeros(0))
    with pytest.raises(TargetError, match="no CUDA device"):
        targets.builder(backend).build(source, tmp_path, "fp32", "cuda")


def test_missing_compiler_is_said(
    stages: list[Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(TargetError, match=r"needs a C\+\+ compiler .* apt install g\+\+"):
        build("aot", stages[0], tmp_path)


def test_runtime_without_torch_passes_over_both_with_the_pip_line() -> None:
    """In a process where torch cannot be imported, as where it is not installed."""
    script = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
sys.modules["torch"] = None
from cascade_runtime import engines
for name in ("torchscript", "aot"):
    for device in ("cpu", "cuda"):
        print(engines.backend(name).unavailable("fp32", device))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["torch is not installed; pip install torch"] * 4
