"""Records as JSON and back: what is undefined is null on the way and NaN at both ends."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import pytest

from cascade_bench.forms import parse, plain


@dataclass(frozen=True)
class Part:
    value: float
    count: int | None

    @property
    def double(self) -> float:
        return 2 * self.value


class Span(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Whole:
    part: Part | None
    parts: tuple[Part, ...]
    rates: dict[str, float]
    words: dict[str, str]
    least: float | None
    span: Span


WHOLE = Whole(Part(1.5, 2), (Part(2.0, None),), {"a": 3.0}, {"b": "c"}, None, Span(0.5, 1.0))


def test_record_is_the_same_after_json() -> None:
    assert parse(json.loads(json.dumps(plain(WHOLE))), Whole) == WHOLE


def test_null_is_nan_where_a_number_must_be_and_none_where_none_may_be() -> None:
    nan = math.nan
    undefined = Whole(Part(nan, None), (Part(nan, 1),), {"a": nan}, {}, None, Span(nan, nan))
    text = json.dumps(plain(undefined), allow_nan=False)
    found = parse(json.loads(text), Whole)
    assert found.part is not None and found.part.count is None and found.least is None
    assert all(math.isnan(x) for x in (found.part.value, found.parts[0].value, found.rates["a"]))
    assert isinstance(found.span, Span) and all(map(math.isnan, found.span))


def test_another_form_is_refused_with_its_place() -> None:
    spoilt = plain(WHOLE) | {"parts": [{"value": "fast", "count": 1}]}
    with pytest.raises(msgspec.ValidationError, match=r"parts\[0\]\.value"):
        parse(spoilt, Whole)
