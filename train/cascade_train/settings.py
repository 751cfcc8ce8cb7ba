"""Settings out of layers of YAML and flags, checked against the types that they are for.

In: layers, each a nested mapping and where it came from, the later over the earlier; and a msgspec
struct. Out: that struct, or one message that names the path, the value, what was expected and the
layer. YAML is read with numbers as people write them (`1e-3` is one), no key may stand twice, and
there are no references.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml  # type: ignore[import-untyped]
from msgspec import inspect

from cascade_runtime.errors import ConfigError

Layer = tuple[str, dict[str, Any]]  # where it comes from, and its settings, nested
Made = TypeVar("Made", bound=msgspec.Struct)


def build(struct: type[Made], layers: Sequence[Layer]) -> Made:
    """The struct of the merged layers.

    Raises:
        ConfigError: a key that is unknown, named with the nearest one that is not, or a value
            that does not fit.
    """
    kind = inspect.type_info(struct)
    merged: dict[str, Any] = {}
    for origin, layer in layers:
        for path in _unknown(layer, kind):
            raise ConfigError(f"{_suggestion(path, kind)} (from {origin})")
        merged = _merge(merged, layer)
    try:
        return msgspec.convert(merged, struct)
    except msgspec.ValidationError as error:
        text, _, place = str(error).rpartition(" - at `$")
        path = re.sub(r"\[.*$", "", place.strip("`.")) if text else ""
        raise ConfigError(_misfit(merged, kind, path, text or str(error), layers)) from error
    except ConfigError as error:  # a struct's own check, which knows its field but not its place
        raise ConfigError(_placed(str(error), kind, layers)) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises:
        ConfigError: not there, not YAML, a key twice, or no mapping at its top.
    """
    try:
        text = file.read_text(encoding="utf-8")
        value = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"config {file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"config {file}: is not YAML: {_yaml_reason(error)}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config {file}: holds {value!r:.60}, expected lines of `key: value`")
    return value


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML in which `1e-3` is a number, a key stands once, and there are no references."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "references are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes what `_Loader` reads back: text that it would take for a number gets quotes."""


for _way in (_Loader, _Dumper):
    _way.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def write_yaml(value: object) -> str:
    """Plain values as YAML, in their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _yaml_reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or error}{where}"


def setting(text: str) -> dict[str, Any]:
    """The settings of one `a.b=c`, the value read as YAML.

    Raises:
        ConfigError: not of that form.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or "" in path.strip().split("."):
        raise ConfigError(f"--set {text!r} is not of the form key=value, such as fit.lr=0.001")
    try:
        return nested({path.strip(): yaml.load(value, _Loader)})
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text!r}: the value is not YAML: {_yaml_reason(error)}"
        ) from error


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path as mappings in mappings."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        for name in reversed(path.split(".")):
            value = {name: value}
        result = _merge(result, value)
    return result


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value)
        result[key] = value
    return result


# What there is: the fields of the structs, read off their types.


def _fields(kind: inspect.Type) -> dict[str, inspect.Type]:
    """The fields of a struct or dataclass, or of those in a union; empty for anything else."""
    if isinstance(kind, inspect.UnionType):
        return {name: inner for part in kind.types for name, inner in _fields(part).items()}
    if isinstance(kind, inspect.StructType | inspect.DataclassType):
        return {field.encode_name: field.type for field in kind.fields}
    return {}


def _unknown(value: Any, kind: inspect.Type, path: str = "") -> Iterator[str]:
    """Dotted paths of keys that no field has."""
    fields = _fields(kind)
    if not isinstance(value, dict) or not fields:
        return
    for key, inner in value.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            yield here
        else:
            yield from _unknown(inner, fields[key], here)


def _paths(kind: inspect.Type, path: str = "") -> Iterator[str]:
    for name, inner in _fields(kind).items():
        here = f"{path}.{name}" if path else name
        yield here
        yield from _paths(inner, here)


def _suggestion(path: str, kind: inspect.Type) -> str:
    """`fit.lrr is unknown, did you mean fit.lr?`, or the keys there are at that place."""

    def likeness(known: str) -> float:
        leaf = SequenceMatcher(None, known.rpartition(".")[2], path.rpartition(".")[2]).ratio()
        return leaf + 0.5 * SequenceMatcher(None, known, path).ratio() if leaf >= 0.6 else 0.0

    known = list(_paths(kind))
    best = max(known, key=likeness)
    if likeness(best) > 0:
        return f"{path} is unknown, did you mean {best}?"
    beside = [p for p in known if p.rpartition(".")[0] == path.rpartition(".")[0]]
    return f"{path} is unknown; there are {', '.join(beside or known)}"


# What fits: msgspec decides; its message is put into the words of the file.


def _placed(message: str, kind: inspect.Type, layers: Sequence[Layer]) -> str:
    """A message that begins with a field's name, with the field's path and where it was set."""
    name, _, rest = message.partition(" ")
    known = (path for path in _paths(kind) if f".{path}".endswith(f".{name}"))
    places = [(path, origin) for path in known if (origin := _origin(path, layers))]
    return f"{places[0][0]} {rest}{places[0][1]}" if len(places) == 1 else message


def _misfit(
    merged: dict[str, Any], kind: inspect.Type, path: str, reason: str, layers: Sequence[Layer]
) -> str:
    """`fit.epochs is 'ten', expected a whole number (from x.yaml)`."""
    value: Any = merged
    for name in path.split(".") if path else ():
        value, kind = value.get(name), _fields(kind).get(name, inspect.AnyType())
    expected = _expected(kind)
    if not path or expected is None:
        return f"{path or 'the config'}: {reason}"
    wants_text = "text" in expected and isinstance(value, bool | int | float)
    advice = "; put it in quotes" if wants_text else ""
    if "a list" in expected and not isinstance(value, list | tuple):
        advice = ", such as [2, 6]"
    return f"{path} is {value!r}, expected {expected}{advice}{_origin(path, layers)}"


def _origin(path: str, layers: Sequence[Layer]) -> str:
    """Where a setting was last given."""
    for origin, layer in reversed(layers):
        value: Any = layer
        for name in path.split("."):
            value = value.get(name, _NOT_THERE) if isinstance(value, dict) else _NOT_THERE
        if value is not _NOT_THERE:
            return f" (from {origin})"
    return ""


_NOT_THERE = object()
_WORDS = {
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
    inspect.StructType: "a mapping",
    inspect.DataclassType: "a mapping",
}


def _expected(kind: inspect.Type) -> str | None:
    """What a type takes, in words; None where there are none for it."""
    if isinstance(kind, inspect.UnionType):
        parts = [_expected(part) for part in kind.types]
        return " or ".join(sorted((p for p in parts if p), key="null".__eq__)) or None
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    if isinstance(kind, inspect.VarTupleType | inspect.ListType):
        item = _expected(kind.item_type) or "values"
        return f"a list, each {item}"
    if isinstance(kind, inspect.TupleType):
        return f"a list of {len(kind.item_types)}"
    return _WORDS.get(type(kind))
