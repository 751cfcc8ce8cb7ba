"""A record of dataclasses as plain JSON values, and the JSON Schema of that form, from one source.

In: dataclasses, msgspec structs, and what they hold. Out: dictionaries; or, from the types alone,
the schema that every such dictionary fulfils. Public properties of a dataclass are fields of its
JSON form. A float that is not finite is null, so every number may be null.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T")
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def plain(value: Any) -> Any:
    """JSON values only; the fields of a dataclass, then its properties."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)] + list(properties(type(value)))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.to_builtins(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse(value: Any, kind: type[T]) -> T:
    """The inverse of `plain`: null is NaN again where a number must be.

    Raises:
        msgspec.ValidationError: the value is of another form.
    """
    return msgspec.convert(_null_is_undefined(value, kind), kind)


def _null_is_undefined(value: Any, kind: Any) -> Any:
    if value is None:
        return math.nan if kind is float else None
    if isinstance(value, dict) and isinstance(kind, type) and not get_args(kind):
        hints = get_type_hints(kind)
        return {k: _null_is_undefined(x, hints[k]) if k in hints else x for k, x in value.items()}
    if isinstance(value, list) and hasattr(kind, "_fields"):  # of a NamedTuple
        kinds = get_type_hints(kind).values()
        pairs = zip(value, kinds, strict=False)
        return [_null_is_undefined(item, each) for item, each in pairs] + value[len(kinds) :]
    inner = [each for each in get_args(kind) if each not in (type(None), Ellipsis)]
    if isinstance(value, list) and inner:
        return [_null_is_undefined(item, inner[0]) for item in value]
    if isinstance(value, dict) and inner:
        if get_origin(kind) is dict:
            return {key: _null_is_undefined(item, inner[-1]) for key, item in value.items()}
        return _null_is_undefined(value, inner[0])
    return value


def properties(kind: Any) -> dict[str, Any]:
    """The public properties of a dataclass and the types that they return."""
    found = {}
    for name, member in vars(kind).items():
        if isinstance(member, property) and not name.startswith("_"):
            found[name] = get_type_hints(member.fget)["return"]
    return found


def schema(kind: Any, title: str, marks: dict[str, object]) -> dict[str, Any]:
    """The schema of `plain(x) | marks` for every x of this dataclass.

    Args:
        marks: fields with one value, such as the name and version of the format.
    """
    _, parts = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for each in set(_dataclasses(kind)):
        part = parts[each.__name__]
        for name, returned in properties(each).items():
            part["properties"][name] = msgspec.json.schema(returned)
        part["required"] = list(part["properties"])
        part.pop("title", None)
    top = parts.pop(kind.__name__)
    top["properties"] = {key: {"const": x} for key, x in marks.items()} | top["properties"]
    top["required"] = list(top["properties"])
    top.pop("description", None)
    whole: dict[str, Any] = _undefined_is_null(top | {"$defs": dict(sorted(parts.items()))})
    return {"$schema": DRAFT, "title": title} | whole


def _dataclasses(kind: Any) -> Iterator[Any]:
    """The dataclasses that a type is made of."""
    if is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from _dataclasses(hint)
    for inner in get_args(kind):
        yield from _dataclasses(inner)


def _undefined_is_null(part: Any) -> Any:
    if isinstance(part, dict):
        part = {key: _undefined_is_null(x) for key, x in part.items() if key != "default"}
        if part.get("type") == "number":
            part["type"] = ["number", "null"]
        return part
    return [_undefined_is_null(item) for item in part] if isinstance(part, list) else part
