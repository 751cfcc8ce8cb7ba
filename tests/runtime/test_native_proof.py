"""Proof that libcascade is sound: sanitizers, fuzzers, valgrind, and many threads on one session.

Clang instruments the library; the engines are the real ones, as their wheels have them, and are
not. What is proven is about libcascade's own code: AddressSanitizer and UndefinedBehaviorSanitizer
see each of its accesses, ThreadSanitizer each of its accesses, locks and atomics. Of an engine they
see what it asks of malloc and of memcpy: memory that it was lent too short or lost is found, a race
within it is not. tests/native/suppressions has what is known of engines, with the reason.

The full sizes are marked slow; the others are a sample of them on the library as it ships.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from .conftest import ONNX, OPENVINO, Sample, make_images
from .native_build import ROOT, build, engine_places, native_folder
from .native_corpus import FUZZERS, make_corpora

SUPPRESSIONS = ROOT / "tests" / "native" / "suppressions"
SANITIZERS = {"asan": "-DCASCADE_FUZZ=ON", "tsan": "-DCASCADE_SANITIZE=thread"}
RUNTIMES = {"asan": ("asan_cxx", "fuzzer"), "tsan": ("tsan_cxx",)}
PROGRAMS = ("bundle_test", "core_test", "pixels_test", "stress")
# The full sizes; a shorter nightly names others.
RUNS = int(os.environ.get("CASCADE_PROOF_RUNS", "1000000"))  # of each fuzzer
SECONDS = int(os.environ.get("CASCADE_PROOF_SECONDS", "60"))
CYCLES = int(os.environ.get("CASCADE_PROOF_CYCLES", "1000"))
MAX_BYTES = {"manifest": 4096}
HOURS = 3 * 3600


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}; apt-get install {tool.removesuffix('++')}")


def need_runtimes(kind: str) -> None:
    """Debian has the sanitizers' own libraries in a package of their own."""
    need("clang", "clang++", "cmake")
    version = subprocess.run(["clang", "-dumpversion"], capture_output=True, text=True).stdout
    for runtime in RUNTIMES[kind]:
        name = f"libclang_rt.{runtime}-{platform.machine()}.a"
        told = subprocess.run(["clang", f"-print-file-name={name}"], capture_output=True, text=True)
        if not Path(told.stdout.strip()).is_file():
            pytest.skip(f"no {name}; apt-get install libclang-rt-{version.split('.')[0]}-dev")


@cache
def sanitized(kind: str) -> Path:
    """An instrumented build beside build/native; only what has changed is built again."""
    need_runtimes(kind)
    compilers = ("-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++")
    options = ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCASCADE_TESTS=ON", SANITIZERS[kind])
    more = ("fuzzers",) if kind == "asan" else ()
    return build(ROOT / "build" / kind, (*compilers, *options), (*PROGRAMS, *more))


def environment() -> dict[str, str]:
    """A sanitizer's report ends the program with a status that nothing else here has."""
    common = "halt_on_error=1:exitcode=86"
    known = {kind: f"suppressions={SUPPRESSIONS / kind}.txt" for kind in ("lsan", "tsan")}
    return {
        **os.environ,
        **engine_places(),
        "TBB_ENABLE_SANITIZERS": "1",  # else it loads a part of itself in a way that these refuse
        "ASAN_OPTIONS": f"{common}:detect_leaks=1:strict_string_checks=1:"
        "detect_stack_use_after_return=1",
        "LSAN_OPTIONS": f"{known['lsan']}:print_suppressions=0",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        "TSAN_OPTIONS": f"{common}:second_deadlock_stack=1:{known['tsan']}",
    }


def clean(*command: object, timeout: float = HOURS) -> str:
    """What the command prints; fails the test with its report where the status is not 0."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environment(), timeout=timeout
    )
    assert done.returncode == 0, f"{done.returncode}: {(done.stdout + done.stderr)[-6000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One file of each format that is read, small and of other sizes than the bundle's."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for index, suffix in enumerate(("jpg", "png", "webp")):
        paths.append(folder / f"{index}.{suffix}")
        picture = Image.fromarray(make_images(1, seed=index)[0])
        picture.resize((30 + index, 20)).save(paths[-1])
    return paths


def stress(
    program: Path,
    mode: str,
    sample: Sample,
    pictures: list[Path],
    *numbers: int,
    target: str = ONNX,
) -> str:
    return clean(program, mode, sample.path, target, *numbers, *pictures)


@pytest.mark.parametrize("target", [ONNX, OPENVINO])
def test_eight_threads_share_a_session_for_a_moment(
    template: Sample, pictures: list[Path], target: str
) -> None:
    program = native_folder() / "stress"
    told = stress(program, "share", template, pictures, 2, 8, 1, target=target)
    assert told.startswith("share: 8 threads") and told.endswith(", 0 wrong\n")


def test_sessions_open_and_close_many_times(template: Sample, pictures: list[Path]) -> None:
    told = stress(native_folder() / "stress", "cycle", template, pictures, 1, 30)
    assert told.startswith("cycle: 30 times") and told.endswith(", 0 wrong\n")


def test_corpora_have_every_fuzzer(template: Sample, tmp_path: Path) -> None:
    make_corpora(template.path, tmp_path)
    sources = (ROOT / "tests" / "native" / "fuzz").glob("fuzz_*.cpp")
    assert sorted(path.stem.removeprefix("fuzz_") for path in sources) == sorted(FUZZERS)
    for name in FUZZERS:
        assert any((tmp_path / name).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asan", "tsan"])
@pytest.mark.parametrize("program", PROGRAMS[:3])
def test_unit_tests_are_clean(kind: str, program: str) -> None:
    clean(sanitized(kind) / program)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asan", "tsan"])
@pytest.mark.parametrize(("target", "engine_threads"), [(ONNX, 1), (ONNX, 2), (OPENVINO, 2)])
def test_eight_threads_share_a_session_for_a_minute(
    template: Sample, pictures: list[Path], kind: str, target: str, engine_threads: int
) -> None:
    """With 1, ONNX Runtime runs in the caller's thread; with 2, decoding is shared as well."""
    program = sanitized(kind) / "stress"
    stress(program, "share", template, pictures, engine_threads, 8, SECONDS, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZERS)
def test_fuzzer_finds_nothing(template: Sample, tmp_path: Path, name: str) -> None:
    make_corpora(template.path, tmp_path)
    program = sanitized("asan") / f"fuzz_{name}"
    limits = (f"-max_len={MAX_BYTES.get(name, 2048)}", "-timeout=10", "-rss_limit_mb=2048")
    words = [f"-dict={tmp_path / 'words.dict'}"] if name in ("manifest", "tensors") else []
    told = clean(program, tmp_path / name, f"-runs={RUNS}", *limits, *words, "-verbosity=1")
    assert f"Done {RUNS} runs" in told


@pytest.mark.slow
def test_valgrind_sees_no_leak_over_a_thousand_sessions(
    template: Sample, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the library built as it ships, with ONNX Runtime.

    libjpeg-turbo's AVX2 code works on the bytes behind a row, too, and valgrind then calls the row
    unset; with its SSE2 code, and with none, it reports nothing.
    """
    need("valgrind")
    monkeypatch.setenv("JSIMD_FORCESSE2", "1")
    told = clean(
        "valgrind", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible",
        "--error-exitcode=86", "--fair-sched=yes", "--num-callers=40",
        f"--suppressions={SUPPRESSIONS / 'valgrind.supp'}",
        native_folder() / "stress", "cycle", template.path, ONNX, 1, CYCLES, *pictures,
    )  # fmt: skip
    assert f"cycle: {CYCLES} times" in told and "ERROR SUMMARY: 0 errors" in told
