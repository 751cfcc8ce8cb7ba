"""Two bundles of one run are byte-identical but for the fields that the format document lists."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from cascade_compile.bundle import BundleRequest, build
from cascade_compile.diff_bundles import differences
from cascade_runtime.bundle import Bundle

from .conftest import ONNX, OPENVINO

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "bundle-format.md").read_text("utf-8")
# They hold, or hash, the fields of the manifest that differ.
FOLLOWING = {"manifest.json", "report.html"}


def listed_fields() -> list[str]:
    """The patterns of the document, `*` for any name."""
    section = SPECIFICATION.split("## Two builds of one run")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def matches(field: str, pattern: str) -> bool:
    expression = re.escape(pattern).replace(r"\*", ".+")
    return re.fullmatch(expression, field) is not None


@pytest.fixture(scope="module")
def again(made, trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `made` once more, from the same run by the same request, exported anew."""
    from cascade_compile import targets

    from .conftest import promise

    request = BundleRequest(
        run=trained.run,
        out=tmp_path_factory.mktemp("other folder") / made.path.name,
        targets=(targets.parse(OPENVINO), targets.parse(ONNX)),
        promise=promise("0.2", claims=2),
        threads=1,
    )
    build(request, say=lambda line: None)
    return request.out


def test_every_file_but_manifest_and_report_has_the_same_bytes(made, again: Path) -> None:
    first, second = Bundle.open(made.path), Bundle.open(again)
    assert first.hashes.keys() == second.hashes.keys()
    differ = {path for path in first.hashes if first.hashes[path] != second.hashes[path]}
    assert differ <= FOLLOWING


def test_only_the_listed_fields_of_the_manifest_differ(made, again: Path) -> None:
    first, second = (Bundle.open(path).manifest for path in (made.path, again))
    fields = differences(msgspec.to_builtins(first), msgspec.to_builtins(second))
    found = {field.name for field in fields}
    patterns = listed_fields()
    unlisted = {name for name in found if not any(matches(name, p) for p in patterns)}
    assert not unlisted
    uses = {name for name in found if name.endswith(".calibration_uses")}
    assert len(uses) == 2, "the second build asked the same images once more"


def test_every_listed_field_is_one_of_the_manifest(made) -> None:
    def leaves(value: object, name: str = "") -> list[str]:
        if isinstance(value, dict):
            below = [leaves(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()]
            return [name, *(leaf for found in below for leaf in found)]
        return [name]

    names = leaves(msgspec.to_builtins(made.manifest))
    for pattern in listed_fields():
        assert any(matches(name, pattern) for name in names), pattern


def test_report_differs_in_what_it_shows_of_thosedifferences(made, again: Path) -> None:
    """When, how fast and how often: nothing else."""
    pages = [(path / "report.html").read_text("utf-8") for path in (made.path, again)]
    parts = [re.split(r"<[^>]+>", page) for page in pages]
    assert len(parts[0]) == len(parts[1])
    differ = [pair for pair in zip(*parts, strict=True) if pair[0] != pair[1]]
    assert differ, "at least the uses of the calibration images"
    for pair in differ:
        for text in pair:
            known = re.search(r"asked \d+ time|cascade-edge .* commit", text)
            assert known or re.fullmatch(r"[\d,.]+", text), pair
