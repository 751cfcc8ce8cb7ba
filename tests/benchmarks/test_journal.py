"""A JSONL file that survives its writer."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from cascade_bench import journal
from cascade_bench.journal import Journal
from cascade_runtime.errors import ConfigError


def test_lines_are_there_for_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    with Journal(path) as first:
        assert first.entries == []
        first.append({"row": 1})
        assert json.loads(path.read_text()) == {"row": 1}  # on the disk before the next is begun
    with Journal(path) as second:
        assert second.entries == [{"row": 1}]
        second.append({"row": 2})
    assert journal.read(path) == [{"row": 1}, {"row": 2}]


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal_:
        journal_.append({"row": 1})
        kept = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 5, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                journal_.append({"row": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == kept
        journal_.append({"row": 3})  # there is space again
    assert journal.read(path) == [{"row": 1}, {"row": 3}]


@pytest.mark.parametrize("torn", ['{"row": 2', '{"row": 2}', '{"ro\xe9'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "state.jsonl"
    path.write_bytes(b'{"row": 1}\n' + torn.encode("latin-1"))
    assert journal.read(path) == [{"row": 1}]
    with Journal(path) as found:
        assert found.entries == [{"row": 1}]
        found.append({"row": 2})
    assert path.read_text() == '{"row": 1}\n{"row":2}\n'


def test_two_writers_at_a_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    with Journal(path), pytest.raises(ConfigError, match="another process"):
        Journal(path)
    Journal(path).__exit__(None, None, None)


@pytest.mark.parametrize("line", ["not JSON", "[1, 2]", "3"])
def test_another_kind_of_file_is_refused_and_left_as_it_is(tmp_path: Path, line: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(f'{{"row": 1}}\n{line}\nmore')
    with pytest.raises(ConfigError, match="line 2 is not"):
        Journal(path)
    assert path.read_text().endswith("more")


def test_places_that_cannot_be_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "state.jsonl"):
        with pytest.raises(ConfigError, match="folder"):
            Journal(path)
    with pytest.raises(ConfigError, match="no such file"):
        journal.read(tmp_path / "gone.jsonl")
