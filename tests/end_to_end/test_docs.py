"""Every command and every Python block of the README and the docs runs, in the order of reading."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
PAGES = (
    "README.md",
    "docs/commands.md",
    "docs/benchmarks.md",
    "docs/targets.md",
    "docs/training.md",
    "docs/guarantees.md",
    "docs/results.md",
)
ELSEWHERE = {"docs/c-api.md"}  # runs in tests/runtime/test_native_api.py
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def test_every_page_with_commands_is_read_here() -> None:
    with_blocks = {
        str(path.relative_to(ROOT))
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        if BLOCK.search(path.read_text(encoding="utf-8"))
    }
    assert with_blocks - ELSEWHERE <= set(PAGES)


def test_commands_and_code_of_the_docs_run(photos: Path, run: Run) -> None:
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8")
    ran = 0
    for page in PAGES:
        for kind, block in blocks(page):
            if kind == "yaml":
                (photos.parent / "settings.yaml").write_text(block, encoding="utf-8")
                continue
            if kind == "python":
                script = photos.parent / "block.py"
                script.write_text(block, encoding="utf-8")
                run(f"'{sys.executable}' block.py", photos.parent)
                continue
            for command in commands(block):
                ran += 1
                if command.startswith("make "):  # the recipes run in other tests, and here by hand
                    target = command.split()[1]
                    assert re.search(rf"^{target}:", recipes, re.MULTILINE), command
                else:
                    run(command, photos.parent)
    assert ran >= 8
