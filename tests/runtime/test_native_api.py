"""libcascade through its C API: what the header says, what a caller can do wrong, who links it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade_runtime import native_abi as abi
from cascade_runtime.cascade import Cascade
from cascade_runtime.native import NativeCascade

from .conftest import ONNX, SIDE, Sample, make_images
from .native_build import ROOT, SOURCE, engine_places, native_folder

HEADER = SOURCE / "include" / "cascade" / "cascade.h"
EXAMPLES = SOURCE / "examples"
ABI = SOURCE / "abi"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library under test lies; engines are found by the environment."""
    found = native_folder()
    monkeypatch.setenv("CASCADE_LIBRARY", str(found / "libcascade.so"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(found))
    for name, value in engine_places().items():
        monkeypatch.setenv(name, value)
    return found


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    "command", ["cc -std=c99 -x c", "c++ -std=c++17 -x c++", "c++ -std=c++20 -x c++"]
)
def test_header_compiles_without_a_warning(tmp_path: Path, command: str) -> None:
    source = tmp_path / "use.c"
    source.write_text(
        "#include <cascade/cascade.h>\n"
        "int main(void) { cascade_image i = cascade_file(0); return (int)i.kind; }\n"
    )
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")
    include = HEADER.parents[1]
    run(*command.split(), *warnings, "-I", include, "-c", source, "-o", tmp_path / "use.o")
    assert len(HEADER.read_text().splitlines()) < 300


def test_c_tests_pass(folder: Path) -> None:
    run("ctest", "--test-dir", folder, "--output-on-failure")


def test_openvino_is_declared_as_its_own_headers_do() -> None:
    headers = Path(engine_places()["CASCADE_OPENVINO_LIBRARY"]).parent / "include"
    include = ["-I", SOURCE / "src", "-isystem", headers]
    source = ROOT / "tests" / "native" / "core" / "openvino_abi_check.cpp"
    run("c++", "-std=c++20", "-fsyntax-only", *include, source)


def test_exported_symbols_are_the_checked_in_ones(folder: Path) -> None:
    told = run("nm", "-D", "--defined-only", folder / "libcascade.so").stdout
    names = sorted(line.split()[-1] for line in told.splitlines())
    assert names == (ABI / "symbols.txt").read_text().splitlines()
    declared = set(re.findall(r"\b(cascade_\w+)\(", HEADER.read_text()))
    exported = {name.split("@")[0] for name in names} - {"CASCADE_1"}
    assert exported < declared and exported == set(abi._FUNCTIONS)


def test_layout_is_the_checked_in_one(folder: Path) -> None:
    """Whoever changes it raises CASCADE_ABI_VERSION, the SONAME and this file together."""
    if platform.machine() != "x86_64":
        pytest.skip("the checked-in layout is that of x86_64")
    assert run(folder / "abi_probe").stdout == (ABI / "layout-x86_64.txt").read_text()


def test_every_field_and_value_of_the_header_is_in_the_layout(folder: Path) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    told = run(folder / "abi_probe").stdout
    for body, name in re.findall(
        r"typedef struct cascade_\w+ \{(.*?)\} (cascade_\w+);", text, re.S
    ):
        fields = re.findall(r"(\w+)(?:\[[^]]*\])?\s*[,;]", body)
        assert fields
        for field in fields:
            assert f"\n{name}.{field} " in told, f"{name}.{field}"
    for value in re.findall(r"\b(CASCADE_[A-Z0-9_]+)\s+=", text):
        assert f"{value} " in told


def test_ctypes_has_the_layout_of_the_header(folder: Path) -> None:
    told = dict(line.split(" ", 1) for line in run(folder / "abi_probe").stdout.splitlines())
    structures = (abi.Options, abi.Info, abi.Image, abi.Result, abi.Histogram, abi.Stats)
    for structure in structures:
        name = f"cascade_{structure.__name__.lower()}"
        assert int(told[name]) == ctypes.sizeof(structure)
        for field, _ in structure._fields_:
            place = getattr(structure, field)
            assert told[f"{name}.{field}"] == f"{place.offset} {place.size}"
        assert sum(key.startswith(f"{name}.") for key in told) == len(structure._fields_)
    for value in ("OK", "FAILURE", "USAGE", "BUNDLE", "TARGET", "IMAGE", "BUSY", "GREY", "NV12"):
        assert int(told[f"CASCADE_{value}"]) == getattr(abi, value)
    assert int(told["CASCADE_BUCKETS"]) == abi.BUCKETS


def session_of(path: Path, **options: Any) -> tuple[ctypes.c_void_p, abi.Options]:
    """A session by hand; the options must live as long as they have a callback."""
    library = abi.library()
    given = abi.Options()
    assert library.cascade_default_options(given, ctypes.sizeof(given)) == abi.OK
    given.target, given.threads, given.warm_up = ONNX.encode(), 1, 0
    for name, value in options.items():
        setattr(given, name, value)
    session = ctypes.c_void_p()
    status = library.cascade_open(os.fsencode(path), given, session)
    assert status == abi.OK, library.cascade_last_error()
    return session, given


def frame(pixels: np.ndarray) -> abi.Image:
    image = abi.Image(struct_size=ctypes.sizeof(abi.Image), kind=abi.FRAME, format=abi.RGB)
    image.data, image.size = pixels.ctypes.data, pixels.nbytes
    image.height, image.width = pixels.shape[:2]
    return image


def error() -> str:
    told = abi.library().cascade_last_error()
    assert isinstance(told, bytes)
    return told.decode()


def test_defaults_are_the_documented_ones() -> None:
    options = abi.Options()
    abi.library().cascade_default_options(options, ctypes.sizeof(options))
    assert (options.threads, options.self_test, options.warm_up) == (0, 0, 1)
    assert (options.max_batch, options.max_delay_us, options.queue_capacity) == (32, 2000, 256)
    assert options.target is None and not options.log


def test_a_call_that_is_wrong_is_refused_by_name(template: Sample) -> None:
    library = abi.library()
    session, options = session_of(template.path)
    out = ctypes.c_void_p(1)
    assert library.cascade_open(None, options, out) == abi.USAGE
    assert error() == "path is null" and out.value is None
    assert library.cascade_open(b"x", options, None) == abi.USAGE
    assert error() == "session is null"
    options.max_batch = 0
    assert library.cascade_open(b"x", options, out) == abi.USAGE
    assert error() == "cascade_options.max_batch is 0, must be 1 to 4096"
    options.max_batch, options.struct_size = 1, 8
    assert library.cascade_open(b"x", options, out) == abi.USAGE
    assert error().startswith("cascade_options.struct_size is 8, must be sizeof(cascade_options)")

    pixels = make_images(1)[0]
    result = abi.Result(struct_size=ctypes.sizeof(abi.Result))

    def refused(**changed: Any) -> str:
        image = frame(pixels)
        for name, value in changed.items():
            setattr(image, name, value)
        assert library.cascade_classify(session, image, 1, result) == abi.USAGE
        return error()

    assert refused(kind=7) == "images[0].kind is 7, must be 0 to 2"
    assert refused(format=-1) == "images[0].format is -1, must be 0 to 5"
    assert refused(kind=abi.FILE, path=None) == "images[0].path is null"
    assert refused(data=None) == "images[0].data is null"
    assert "struct_size is 16" in refused(struct_size=16)
    result.struct_size = 0
    assert "cascade_result.struct_size is 0" in refused()
    assert library.cascade_classify(None, frame(pixels), 1, result) == abi.USAGE
    assert library.cascade_classify(session, None, 1, result) == abi.USAGE
    assert library.cascade_classify(session, None, 0, None) == abi.OK
    result.struct_size = ctypes.sizeof(result)
    assert library.cascade_classify_batches(session, frame(pixels), 1, 0, result) == abi.USAGE
    assert error() == "max_batch is 0, must be at least 1"
    assert library.cascade_classify_batches(session, frame(pixels), 1, 2**60, result) == abi.OK
    assert library.cascade_class_name(session, 2) is None
    assert library.cascade_reason_text(99) == b"unknown"
    library.cascade_close(session)
    library.cascade_close(None)


def test_a_newer_caller_gets_what_the_library_has_and_no_option_is_passed_over(
    template: Sample,
) -> None:
    """A structure that has grown since: zeros behind ours are fine, anything else is refused."""
    library = abi.library()

    class Newer(ctypes.Structure):
        _fields_ = (("known", abi.Options), ("later", ctypes.c_uint64))

    newer = Newer()
    pointer = ctypes.cast(ctypes.pointer(newer), ctypes.POINTER(abi.Options))
    assert library.cascade_default_options(pointer, ctypes.sizeof(newer)) == abi.OK
    assert newer.known.struct_size == ctypes.sizeof(newer) and newer.later == 0
    newer.known.target, newer.known.warm_up = ONNX.encode(), 0
    session = ctypes.c_void_p()
    assert library.cascade_open(os.fsencode(template.path), pointer, session) == abi.OK
    library.cascade_close(session)
    newer.later = 1
    assert library.cascade_open(os.fsencode(template.path), pointer, session) == abi.USAGE
    assert "has fields that this libcascade (0.1.0) does not know" in error()


def test_last_error_belongs_to_its_thread() -> None:
    library = abi.library()
    library.cascade_open(None, None, None)
    mine = error()
    assert mine
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(error()))
    thread.start()
    thread.join()
    assert seen == [""] and error() == mine
    buffer = ctypes.create_string_buffer(5)
    assert library.cascade_copy_last_error(buffer, 5) == len(mine)
    assert buffer.value.decode() == mine[:4]
    assert library.cascade_copy_last_error(None, 0) == len(mine)


def test_log_says_what_was_chosen_and_what_failed(template: Sample) -> None:
    told: list[tuple[int, str]] = []
    log = abi.LogFunction(lambda level, text, _: told.append((level, text.decode())))
    session, _ = session_of(template.path, log=log, self_test=1)
    assert told[0] == (0, "answers 6 golden images as recorded")
    assert told[1][0] == 0 and told[1][1].endswith(f"{ONNX} was asked for")
    abi.library().cascade_close(session)


class Answers:
    """Counts what a queue's callback was given."""

    def __init__(self, wait_for: threading.Event | None = None) -> None:
        self.results: dict[int, tuple[int, int, int, float]] = {}
        self.first = threading.Event()

        def done(result: Any, user: int | None) -> None:
            self.first.set()
            if wait_for is not None:
                wait_for.wait(20)
            answer = result.contents
            self.results[user or 0] = (answer.status, answer.decision, answer.stage, answer.p)

        self.callback = abi.DoneFunction(done)


def test_submitted_images_are_answered_in_micro_batches_as_if_classified(template: Sample) -> None:
    library = abi.library()
    session, _ = session_of(template.path, max_batch=8, max_delay_us=200_000, queue_capacity=64)
    pixels = make_images(40)
    images = [frame(image) for image in pixels]
    answers = Answers()
    for index, image in enumerate(images):
        assert library.cascade_submit(session, image, answers.callback, index) == abi.OK
    bad = abi.Image(struct_size=ctypes.sizeof(abi.Image), kind=abi.ENCODED)
    assert library.cascade_submit(session, bad, answers.callback, 40) == abi.OK
    stats = abi.Stats(struct_size=ctypes.sizeof(abi.Stats))
    while len(answers.results) < 41:
        threading.Event().wait(0.01)
    library.cascade_get_stats(session, stats)
    assert stats.batches <= 41 // 8 + 2, "they were decided together"
    assert stats.submitted.count == 41 and stats.queued == 0
    library.cascade_close(session)
    expected = Cascade.open(template.path, ONNX, threads=1, warm_up=False).classify(list(pixels))
    for index, wanted in enumerate(expected):
        status, label, stage, p = answers.results[index]
        assert (status, label, stage) == (abi.OK, wanted.label, wanted.stage)
        assert p == pytest.approx(wanted.p, abs=1e-6)
    assert answers.results[40][:3] == (abi.IMAGE, -1, -1)


def test_full_queue_refuses_at_once_and_close_answers_what_waits(template: Sample) -> None:
    library = abi.library()
    session, _ = session_of(template.path, max_batch=1, max_delay_us=0, queue_capacity=3)
    go_on = threading.Event()
    answers = Answers(wait_for=go_on)
    pixels = make_images(1)[0]
    image = frame(pixels)
    assert library.cascade_submit(session, image, answers.callback, 0) == abi.OK
    assert answers.first.wait(20), "the queue's thread is inside a callback now"
    for index in (1, 2, 3):
        assert library.cascade_submit(session, image, answers.callback, index) == abi.OK
    assert library.cascade_submit(session, image, answers.callback, 4) == abi.BUSY
    assert error() == "the queue is full: 3 images wait already; try again, or drop this one"
    stats = abi.Stats(struct_size=ctypes.sizeof(abi.Stats))
    library.cascade_get_stats(session, stats)
    assert (stats.refused, stats.queued) == (1, 3)
    go_on.set()
    library.cascade_close(session)
    assert sorted(answers.results) == [0, 1, 2, 3]


def test_eight_threads_share_a_session_and_its_queue(template: Sample) -> None:
    library = abi.library()
    session, _ = session_of(template.path, threads=2, queue_capacity=4096, max_batch=16)
    pixels = make_images(24)
    images = (abi.Image * 24)(*map(frame, pixels))
    first = (abi.Result * 24)()
    first[0].struct_size = ctypes.sizeof(abi.Result)
    assert library.cascade_classify(session, images, 24, first) == abi.OK
    wanted = [(r.decision, r.stage, r.reason) for r in first]
    answers = Answers()
    wrong: list[object] = []

    def work(worker: int) -> None:
        results = (abi.Result * 24)()
        for turn in range(40):
            results[0].struct_size = ctypes.sizeof(abi.Result)
            status = library.cascade_classify(session, images, 24, results)
            found = [(r.decision, r.stage, r.reason) for r in results]
            if status != abi.OK or found != wanted:
                wrong.append((status, found))
            at = worker * 40 + turn
            library.cascade_submit(session, images[at % 24], answers.callback, at)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    library.cascade_close(session)
    assert not wrong
    assert len(answers.results) == 320
    for at, (status, label, stage, _) in answers.results.items():
        assert (status, label, stage) == (abi.OK, *wanted[at % 24][:2])


def test_info_lives_in_the_session(template: Sample) -> None:
    library = abi.library()
    session, _ = session_of(template.path)
    info = abi.Info(struct_size=ctypes.sizeof(abi.Info))
    assert library.cascade_get_info(session, info) == abi.OK
    assert info.target == ONNX.encode() and info.engine.startswith(b"onnxruntime ")
    assert list(info.classes) == [b"clear", b"roadwork"]
    assert info.manifest_json == (template.path / "manifest.json").read_bytes()
    assert (info.certified, info.stages, info.height, info.width) == (1, 2, SIDE, SIDE)
    assert (info.alpha, info.delta, info.coverage_lower) == (0.01, 0.05, 0.778)
    assert info.promise.startswith(b"Of the images") and info.signer is None
    assert library.cascade_class_name(session, 1) == b"roadwork"
    library.cascade_close(session)


def expected_lines(bundle: Path, images: list[Path]) -> list[str]:
    """What the examples print, from the Python runtime."""
    lines = []
    for result in Cascade.open(bundle, threads=1, warm_up=False).classify(images):
        if result.decision is None:
            reason = result.reason if result.stage < 0 else f"deferred: {result.reason}"
        else:
            reason = f"{result.decision}, p {result.p:.4f}, stage {result.stage}"
        lines.append(f"{result.name}: {reason}")
    return lines


def build_rust(folder: Path, out: Path) -> Path:
    if subprocess.run("rustc --version", shell=True, capture_output=True).returncode != 0:
        pytest.skip("no rustc here, or none that works")
    program = out / "classify_rs"
    run("rustc", "-O", "-L", folder, EXAMPLES / "classify.rs", "-o", program)
    return program


def build_go(folder: Path, out: Path) -> Path:
    if shutil.which("go") is None:
        pytest.skip("no go here")
    program = out / "classify_go"
    flags = {"CGO_CFLAGS": f"-I{HEADER.parents[1]}", "CGO_LDFLAGS": f"-L{folder} -lcascade"}
    environment = os.environ | flags | {"GOCACHE": str(out / "cache"), "GO111MODULE": "off"}
    run("go", "build", "-o", program, EXAMPLES / "classify.go", env=environment)
    return program


def build_c(folder: Path, out: Path) -> Path:
    return folder / "classify_c"


@pytest.mark.parametrize("build", [build_c, build_rust, build_go])
def test_examples_answer_as_python(
    template: Sample,
    image_files: list[Path],
    folder: Path,
    tmp_path: Path,
    build: Callable[[Path, Path], Path],
) -> None:
    program = build(folder, tmp_path)
    done = run(program, template.path, *image_files)
    assert done.stdout.splitlines() == expected_lines(template.path, image_files)
    missing = image_files[0].with_name("missing.png")
    told = subprocess.run([program, template.path, missing], capture_output=True, text=True)
    assert told.stdout == f"{missing}: unreadable: cannot be read (No such file or directory)\n"
    none = subprocess.run([program, tmp_path / "none", missing], capture_output=True, text=True)
    assert none.returncode != 0 and str(tmp_path / "none") in none.stderr
    assert subprocess.run([program], capture_output=True).returncode == 2


def test_cpp_example_submits_frames(template: Sample, folder: Path, tmp_path: Path) -> None:
    pixels = make_images(20)
    (tmp_path / "frames.rgb").write_bytes(pixels.tobytes())
    told = run(folder / "classify_cpp", template.path, SIDE, SIDE, tmp_path / "frames.rgb").stdout
    results = Cascade.open(template.path, threads=1, warm_up=False).classify(pixels)
    suffix = {label: f" on class {label}" for label in (0, 1)} | {-1: ""}
    wanted = [f"frame {i}: {r.reason}{suffix[r.label]}" for i, r in enumerate(results)]
    assert told.splitlines() == wanted


def test_installed_library_is_found_wherever_it_is_moved(
    template: Sample, image_files: list[Path], folder: Path, tmp_path: Path
) -> None:
    """By CMake and by pkg-config, after the installation was renamed."""
    if not (folder / "cmake_install.cmake").exists():
        pytest.skip(f"{folder} is no build folder of CMake")
    run("cmake", "--install", folder, "--prefix", tmp_path / "first")
    prefix = tmp_path / "second"
    (tmp_path / "first").rename(prefix)
    user = tmp_path / "user"
    user.mkdir()
    shutil.copy(EXAMPLES / "classify.c", user)
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(user C)\n"
        "find_package(cascade 0.1 REQUIRED)\nadd_executable(classify classify.c)\n"
        "target_link_libraries(classify PRIVATE cascade::cascade)\n"
    )
    run("cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", user / "build")
    wanted = expected_lines(template.path, image_files)
    environment = {name: v for name, v in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = run(user / "build" / "classify", template.path, *image_files, env=environment)
    assert done.stdout.splitlines() == wanted

    (library,) = prefix.rglob("libcascade.so")
    path = {"PKG_CONFIG_PATH": str(library.parent / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "cascade", env=os.environ | path).stdout
    program = user / "by_pkg_config"
    run("cc", "-std=c99", user / "classify.c", "-o", program, *flags.split())
    environment["LD_LIBRARY_PATH"] = str(library.parent)
    done = run(program, template.path, *image_files, env=environment)
    assert done.stdout.splitlines() == wanted
    soname = run("readelf", "-d", library).stdout
    assert "Library soname: [libcascade.so.1]" in soname
    assert "RUNPATH" not in soname and "RPATH" not in soname


def test_page_leads_from_nothing_to_a_decision(
    template: Sample, image_files: list[Path], folder: Path, tmp_path: Path
) -> None:
    """docs/c-api.md: its program is the example, and its commands run as they stand there."""
    page = (ROOT / "docs" / "c-api.md").read_text()
    (quoted,) = re.findall(r"^```c\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert quoted == (EXAMPLES / "classify.c").read_text()
    commands = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    script = "\n".join(commands)
    assert "make native" in script
    shutil.copytree(template.path, tmp_path / "roadworks.cascade")
    shutil.copy(image_files[0], tmp_path / "frame.jpg")
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "native").symlink_to(SOURCE)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "native").symlink_to(folder)
    script = script.replace("make native", "true").replace(".venv/bin/python", "$PYTHON")
    given = {"LD_LIBRARY_PATH", *engine_places()}
    environment = {name: value for name, value in os.environ.items() if name not in given}
    environment["PYTHON"] = sys.executable
    done = run("bash", "-euo", "pipefail", "-c", script, cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[0].startswith("frame.jpg: ")


def test_close_frees_what_open_took(template: Sample) -> None:
    """Resident memory is flat over many sessions."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    images = list(make_images(4))

    def once() -> None:
        native = Cascade.open(template.path, ONNX, threads=1, warm_up=False, engine="native")
        assert isinstance(native, NativeCascade)
        native.classify(images)
        native.close()

    for _ in range(30):
        once()
    before = resident()
    for _ in range(100):
        once()
    assert resident() - before < 8 << 20
