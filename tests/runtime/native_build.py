"""libcascade, its tests and its examples, built once for every test that needs them.

`CASCADE_NATIVE_BUILD` names a folder that has them; else they are built in this checkout's
build/native, where `make native` builds them as well, and only what has changed is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "native"


@cache
def native_folder() -> Path:
    """The folder of libcascade.so; skips the test, with the reason, where it cannot be built."""
    named = os.environ.get("CASCADE_NATIVE_BUILD")
    if named:
        return Path(named)
    for tool in ("cmake", "cc", "c++", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"libcascade is not built: no {tool}; make native")
    options = ("-DCASCADE_TESTS=ON", "-DCASCADE_EXAMPLES=ON")
    return build(ROOT / "build" / "native", options)


def build(folder: Path, options: Iterable[str], targets: Iterable[str] = ("all",)) -> Path:
    """`folder`, where libcascade is then built with these options of cmake."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # several workers, one build
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure: list[str | Path] = ["cmake", "-S", SOURCE, "-B", folder, *options]
        done = subprocess.run(configure, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"libcascade is not built: {done.stderr[-300:]}; make native")
        command: list[str | Path] = ["cmake", "--build", folder, "-j2", "--target", *targets]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:  # a fault of the source, where all that it needs is there
            pytest.fail(done.stdout[-3000:])
    return folder


def engine_places() -> dict[str, str]:
    """The environment in which libcascade finds the engine libraries of the installed wheels."""
    found = {}
    for package, folder in (("onnxruntime", "capi"), ("openvino", "libs")):
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            place = Path(spec.submodule_search_locations[0]) / folder
            found[f"CASCADE_{package.upper()}_LIBRARY"] = str(place)
    return found
