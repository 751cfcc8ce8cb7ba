"""examples/service.c stays up: every good image right, every bad one named, memory flat.

"Right" is what the Python runtime says of the same file.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from cascade_runtime.cascade import Cascade, Result

from .conftest import Sample
from .hostile_images import bad_images, good_images
from .native_build import engine_places, native_folder

REPORT = re.compile(
    r"images (\d+), acted (\d+), deferred (\d+), unreadable (\d+), failures (\d+), "
    r"resident ([\d.]+) MiB"
)
# What allocators keep for later is no leak, and is bounded: each thread that decodes has an arena,
# which keeps about what its largest image has needed, here under 1 MiB. A leak of 1 KiB an image
# would be 10 MiB at the end.
FLAT_MIB = 8.0

STRICTER = {  # than Python: what libcascade refuses by design, and how
    "only_python_reads": "not an image of a known format (JPEG, PNG, WEBP)",
    "endless_scans": "cannot be decoded (more than 500 scans)",
}


def environment() -> dict[str, str]:
    places = {**os.environ, **engine_places()}
    return places | {"LD_LIBRARY_PATH": str(native_folder())}


def service(bundle: Path, *arguments: object) -> list[str]:
    return [str(native_folder() / "service_c"), str(bundle), *map(str, arguments)]


def answers_of(told: bytes) -> list[tuple[str, str]]:
    """Each line's path and the rest of it; no path of a test has ': ' in it."""
    lines = [os.fsdecode(line).partition(": ") for line in told.split(b"\n")[:-1]]
    return [(path, rest) for path, _, rest in lines]


def matches(wanted: Result, rest: str) -> bool:
    """Does a line say what the Python runtime says? Of a probability, up to its last bit."""
    if wanted.stage < 0:
        return re.fullmatch(r"unreadable: .{5,}", rest) is not None
    if wanted.decision is None:
        return rest == f"deferred: {wanted.reason}"
    found = re.fullmatch(r"(.+), p ([\d.]+), stage (\d+)", rest)
    return (
        found is not None
        and (found[1], int(found[3])) == (wanted.decision, wanted.stage)
        and abs(float(found[2]) - wanted.p) < 1e-4
    )


def serve(
    bundle: Path, folder: Path, good: int, bad: int, threads: int, every: int
) -> tuple[list[str], int, list[tuple[float, ...]]]:
    """Images wrongly answered, the number of flipped ones that differ, and the reports."""
    fine, hostile = good_images(folder, good, seed=1), bad_images(folder, bad, seed=2)
    everything = [*fine, *hostile]
    random.Random(3).shuffle(everything)
    done = subprocess.run(
        service(bundle, threads, every),
        input=b"".join(os.fsencode(path) + b"\n" for path in everything),
        capture_output=True,
        env=environment(),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = answers_of(done.stdout)
    assert sorted(path for path, _ in lines) == sorted(map(os.fspath, everything)), "a line each"
    found = dict(lines)

    wanted = Cascade.open(bundle, threads=2).classify(everything)
    wrong, flipped = [], 0
    for result in wanted:
        rest = found[result.name]
        name = Path(result.name).name
        if name.startswith(tuple(STRICTER)):
            assert rest == f"unreadable: {STRICTER[name.rsplit('-', 1)[0]]}"
        elif not matches(result, rest):
            if name.startswith("flipped"):  # of data whose bits are wrong, decoders may differ
                flipped += 1
            else:
                wrong.append(f"{result.name}: {rest}; python: {result.reason}")
    unread = sum(rest.startswith("unreadable: ") for _, rest in lines)
    told = REPORT.findall(done.stderr.decode())
    reports = [tuple(map(float, line)) for line in told]
    images, acted, deferred, unreadable, failures, _ = reports[-1]
    assert (images, failures) == (len(everything), 0)
    assert acted + deferred + unreadable == images and unreadable == unread
    assert unread > 0.8 * bad, "the bad ones must be bad"
    decisions = {result.decision for result in wanted[: len(fine)]}
    assert len(decisions) == 3, "the good ones must differ"
    return wrong, flipped, reports


def grown(reports: list[tuple[float, ...]]) -> float:
    """Resident MiB at the end, less those after the first images."""
    return reports[-1][-1] - reports[0][-1]


def test_service_answers_good_images_right_and_names_bad_ones(
    template: Sample, tmp_path: Path
) -> None:
    wrong, flipped, _ = serve(template.path, tmp_path, 200, 56, threads=4, every=60)
    assert not wrong
    assert flipped <= 1


@pytest.mark.slow
def test_service_stays_up_and_its_memory_flat(template: Sample, tmp_path: Path) -> None:
    wrong, flipped, reports = serve(template.path, tmp_path, 10_000, 1_000, 4, every=1_000)
    told = [f"{images:.0f}: {resident}" for images, *_, resident in reports]
    print(f"resident MiB {told}; {reports[-1][3]:.0f} unreadable; {flipped} flipped differ")
    assert not wrong
    assert flipped <= 2, "of 36"
    assert len(reports) == 12
    assert grown(reports) < FLAT_MIB


def test_lines_that_are_no_names_are_answered(template: Sample, image_files: list[Path]) -> None:
    """And those around them: an empty line, a zero byte, a name of 100 kB, no last newline."""
    first, last = (os.fsencode(path) for path in image_files[:2])
    lines = first + b"\n\n" + first + b"\0.png\n" + b"x" * 100_000 + b"\n" + last
    run = subprocess.run(
        service(template.path, 2), input=lines, capture_output=True, env=environment(), check=True
    )
    told = run.stdout.decode()
    assert told.count("\n") == 5
    assert ": unreadable: is no usable file name (it is empty)\n" in told
    assert "x: unreadable: is no usable file name (it is too long)\n" in told
    assert "(it contains a zero byte)\n" in told
    for path in image_files[:2]:
        assert re.search(rf"^{re.escape(str(path))}: (deferred|clear|roadwork)", told, re.M)


def test_terminated_service_answers_what_it_was_sent(
    template: Sample, image_files: list[Path]
) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        service(template.path, 2), stdin=pipe, stdout=pipe, stderr=pipe, env=environment()
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for path in image_files:
            process.stdin.write(os.fsencode(path) + b"\n")
        process.stdin.flush()
        told = [process.stdout.readline() for _ in image_files]
        watch = threading.Timer(30, process.kill)
        watch.start()
        process.send_signal(signal.SIGTERM)
        rest, report = process.communicate()
        watch.cancel()
    assert (process.returncode, rest) == (0, b"")
    assert {line.split(b": ")[0] for line in told} == {os.fsencode(path) for path in image_files}
    assert b"images 5, " in report


def test_pipe_put_in_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    """Between a look at the file and its opening; with no guard, most runs of this hang."""
    program = native_folder() / "pixels_probe"
    if not program.exists():
        pytest.skip("pixels_probe is not built: needs GoogleTest's development files")
    image, other = tmp_path / "a.jpg", tmp_path / "b"
    image.write_bytes(b"no image")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            os.mkfifo(other)
            other.replace(image)
            other.write_bytes(b"no image")
            other.replace(image)

    asked = f"image\t{image}\t8\t8\tbilinear\tnone\t1000\tfull\n" * 40_000
    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        done = subprocess.run([program], input=asked, capture_output=True, text=True, timeout=60)
    finally:
        ended.set()
        swapping.join()
    told = done.stdout.splitlines()
    assert len(told) == 40_000 and all(line.startswith("error 5 ") for line in told)
    assert len(set(told)) >= 2, "it was a pipe now and then"


def test_service_says_why_it_does_not_start(template: Sample, tmp_path: Path) -> None:
    for arguments, status, said in (
        ((tmp_path / "none",), 3, "none"),
        ((template.path, 0), 2, "usage: "),
        ((template.path, 4, "x"), 2, "usage: "),
    ):
        done = subprocess.run(
            service(*arguments), input="", capture_output=True, text=True, env=environment()
        )
        assert done.returncode == status and said in done.stderr, done.stderr
