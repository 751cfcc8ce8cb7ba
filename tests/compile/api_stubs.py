"""The real TensorRT bindings without TensorRT: wheels unpacked beside stub libraries.

`tensorrt.so` of the bindings takes nine symbols from libnvinfer, its plugins and the parser. Three
libraries of a few lines, with the names it looks for, let it be imported with every class, enum
and signature in place; nothing can be called.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYMBOLS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}
SYMBOLS["nvinfer_lean"] = SYMBOLS["nvinfer"]

# Printed by a process that has the library: what a dotted name is, as JSON.
ASK = """
import importlib, json, sys
library = importlib.import_module(sys.argv[1])
found = {}
for path in json.load(sys.stdin):
    value = library
    try:
        for part in path.split("."):
            value = getattr(value, part)
    except AttributeError:
        found[path] = None
        continue
    if isinstance(value, property):
        found[path] = {"kind": "property", "writable": value.fset is not None, "doc": ""}
    else:
        kind = "callable" if callable(value) else "value"
        found[path] = {"kind": kind, "doc": value.__doc__ or ""}
print(json.dumps({"version": getattr(library, "__version__", ""), "names": found}))
"""


def wheels() -> Path | None:
    """Where the wheels are: `$CASCADE_EDGE_WHEELS`, or what `make` downloads."""
    named = os.environ.get("CASCADE_EDGE_WHEELS")
    folder = Path(named) if named else ROOT / ".venv" / "wheels"
    return folder if folder.is_dir() else None


@dataclass(frozen=True)
class Bindings:
    """Unpacked bindings of one version, ready to be imported in a process of their own."""

    module: str
    env: dict[str, str]

    def ask(self, names: list[str]) -> tuple[str, dict[str, dict[str, object] | None]]:
        """The library's version, and what each dotted name is there; None: it is not there."""
        done = self.run(ASK, self.module, given=json.dumps(names))
        answer = json.loads(done.stdout)
        return answer["version"], answer["names"]

    def run(self, script: str, *args: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a Python script that can import the bindings."""
        done = subprocess.run(
            [sys.executable, "-c", script, *args],
            input=given,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"status {done.returncode}\n{done.stderr}"
        return done


def unpack(folder: Path, module: str, wheel_stems: tuple[str, ...], into: Path) -> Bindings:
    """Unzip wheels of `folder` and build the stub libraries of their major version.

    Raises:
        FileNotFoundError: a wheel is not there.
    """
    major = 0
    for stem in wheel_stems:
        found = sorted(folder.glob(f"{stem}-*.whl"))
        if not found:
            raise FileNotFoundError(f"{folder} has no {stem}-*.whl; run make")
        major = major or int(found[-1].name.removeprefix(f"{stem}-").partition(".")[0])
        with zipfile.ZipFile(found[-1]) as archive:
            archive.extractall(into)
    stubs = into / "stubs"
    stubs.mkdir()
    for library, symbols in SYMBOLS.items():
        soname = f"lib{library}.so.{major}"
        code = "\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols)
        options = ["-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", stubs / soname]
        compiler = shutil.which("cc") or "cc"
        subprocess.run([compiler, *options, "-xc", "-"], input=code, text=True, check=True)
    path = [str(into), *(entry for entry in sys.path if entry)]
    env = os.environ | {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": os.pathsep.join(path)}
    return Bindings(module, env)
