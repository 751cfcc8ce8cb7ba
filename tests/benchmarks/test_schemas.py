"""The checked-in JSON Schemas are made from the records, and real records fulfil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import cascade_bench
from cascade_bench import schemas

from ..runtime.conftest import Sample
from .conftest import Done

Bench = Callable[..., Done]
FOLDER = Path(cascade_bench.__file__).parent / "schemas"


def check(name: str, record: Any) -> None:
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(record)


@pytest.mark.parametrize("name", list(schemas.RECORDS))
def test_checked_in_schema_is_what_the_records_say(name: str) -> None:
    """After a change: python -m cascade_bench.schemas"""
    found = (FOLDER / f"{name}.json").read_text()
    assert found == schemas.text(name)
    jsonschema.Draft202012Validator.check_schema(json.loads(found))


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(schemas.RECORDS)


def test_run_fulfils_its_schema(bench: Bench, template: Sample, labelled: Path) -> None:
    for more in ((), ("--data", labelled, "--load", "--sweep")):
        record = bench(template.path, "--json", *more).record
        check("run", record)
    assert record["load"]["open"] and record["thread_sweep"]
    assert record["quality"]["evaluation"]["images"] == 40


def test_run_with_libcascade_fulfils_it_too(bench: Bench, template: Sample, native: None) -> None:
    check("run", bench(template.path, "--json", "--runtime", "native").record)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("latency"),
        lambda record: record.update(version=2),
        lambda record: record["latency"]["engine"].update(p50_ms="fast"),
        lambda record: record["checks"][0].pop("passed"),
    ],
)
def test_schema_refuses_what_is_not_a_record(
    bench: Bench, template: Sample, spoil: Callable[[dict[str, Any]], object]
) -> None:
    record = bench(template.path, "--json").record
    spoil(record)
    with pytest.raises(jsonschema.ValidationError):
        check("run", record)


def test_schema_verb_prints_the_file(bench: Bench) -> None:
    assert bench("schema", quick=False).out == (FOLDER / "run.json").read_text()
    assert bench("schema", "nothing", quick=False).status == 2
