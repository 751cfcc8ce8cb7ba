"""The runtime stays lean: its imports, its start-up and what it needs installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ONNX, Sample

FOREIGN = (
    "torch",
    "transformers",
    "peft",
    "scipy",
    "matplotlib",
    "pyarrow",
    "safetensors",
    "onnx",
    "rich",
    "cascade_calib",
    "cascade_train",
    "cascade_compile",
    "cascade_bench",
)


def python(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runtime_imports_no_sibling_and_no_heavy_library() -> None:
    loaded = set(python("import sys, cascade_runtime.cascade; print(*sys.modules)").split())
    assert "cascade_runtime.stages" in loaded
    assert loaded.isdisjoint({*FOREIGN, "onnxruntime", "openvino"})


@pytest.mark.parametrize("arguments", [("--help",), ("classify", "--help"), ("verify", "--help")])
def test_help_loads_neither_numpy_nor_an_engine(arguments: tuple[str, ...]) -> None:
    script = """
import sys
from cascade_runtime.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
print("loaded:", *sys.modules)
"""
    text, loaded = python(script, *arguments).split("loaded:")
    assert "Usage:" in text
    assert set(loaded.split()).isdisjoint(
        {*FOREIGN, "numpy", "PIL", "msgspec", "onnxruntime", "openvino"}
    )


def test_bundle_classifies_with_the_base_install_alone(
    template: Sample, image_files: list[Path]
) -> None:
    """Everything outside the base install cannot be imported, as if it were not there."""
    script = f"""
import importlib.util, sys
missing = {(*FOREIGN, "openvino")!r}
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in missing else find(name, *rest)
for name in missing:
    sys.modules[name] = None
from cascade_runtime import Cascade
cascade = Cascade.open(sys.argv[1], threads=1, self_test=True)
print(cascade.target, len(cascade.classify(sys.argv[2:])), "pip install openvino" in cascade.why)
"""
    assert python(script, template.path, *image_files).split() == [ONNX, "5", "True"]
