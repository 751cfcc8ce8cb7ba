"""What our own source uses of TensorRT, read from it by its syntax tree.

In: a module that keeps to one habit: the library is called `trt`, and every variable that holds one
of its objects is called as the module's table `OBJECTS` says, nothing else by these names. Out: the
dotted names used, with how each is used. A use that this cannot follow is an error, so that the
table cannot fall behind the code.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Use:
    """One use of a name: called with so many arguments and these keywords, set, or read."""

    name: str
    how: str  # "call", "set", "read"
    arguments: int = 0
    keywords: tuple[str, ...] = ()


def uses(module: ModuleType, source: str | None = None) -> set[Use]:
    """Every use of the library in a module."""
    tree = ast.parse(source or inspect.getsource(module))
    objects: dict[str, str] = module.OBJECTS
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        name = _dotted(node, objects)
        if name is None:
            continue
        call = calls.get(id(node))
        if call is not None:
            assert not any(k.arg is None for k in call.keywords), f"** in a call of {name}"
            starred = any(isinstance(argument, ast.Starred) for argument in call.args)
            count = -1 if starred else len(call.args)
            if name.rpartition(".")[2][0].isupper():
                name += ".__init__"
            found.add(Use(name, "call", count, tuple(str(k.arg) for k in call.keywords)))
        else:
            found.add(Use(name, "set" if isinstance(node.ctx, ast.Store) else "read"))
    return found


def _dotted(node: ast.Attribute, objects: dict[str, str]) -> str | None:
    """`trt.Builder`, `builder.create_network` as `Builder.create_network`; None: something else."""
    parts = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    if not isinstance(value, ast.Name):
        return None
    path = [value.id, *reversed(parts)]
    if path[0] == "self" and path[1].lstrip("_") in objects and len(path) > 2:
        path = [path[1].lstrip("_"), *path[2:]]
    if path[0] == "trt":
        return ".".join(path[1:])
    if path[0] in objects:
        return ".".join([objects[path[0]], *path[1:]])
    return None


def untracked(module: ModuleType) -> Iterator[str]:
    """What a library object gave and that is used, or kept, under no name of the table."""
    tree = ast.parse(inspect.getsource(module))
    names = {*module.OBJECTS, "trt"}
    for node in ast.walk(tree):
        chained = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call)
        if chained and _root(node.value) in names:
            yield ast.unparse(node)
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        made = node.value.func
        is_object = isinstance(made, ast.Attribute) and (
            re.match(r"create_|deserialize_|get_(?!tensor_)|[A-Z]", made.attr) is not None
        )
        if is_object and _root(made) in names:
            for target in node.targets:
                text = ast.unparse(target)
                if text.removeprefix("self._") not in names | {"logger"}:
                    yield f"{text} = {ast.unparse(node.value)}"


def _root(node: ast.expr) -> str:
    """The variable that an expression begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def fits(use: Use, found: dict[str, object] | None) -> str:
    """Why the real API does not offer this use; empty where it does."""
    if found is None:
        return f"{use.name} does not exist"
    if use.how == "set" and not (found["kind"] == "property" and found["writable"]):
        return f"{use.name} cannot be set"
    is_class = use.name.rpartition(".")[2][0].isupper()
    if use.how == "read" and found["kind"] == "callable" and not is_class:
        return f"{use.name} is a method, and is used as a value"
    if use.how != "call":
        return ""
    if found["kind"] == "property":
        return f"{use.name} is a property, and is called"
    forms = list(_forms(str(found["doc"]), use.name.split(".")[-1]))
    if forms and not any(_accepts(form, use) for form in forms):
        return f"{use.name} takes {forms}, not {use.arguments} arguments and {use.keywords}"
    return ""


def _forms(doc: str, name: str) -> Iterator[tuple[tuple[str, bool], ...]]:
    """The signatures that pybind11 writes at the head of a docstring: (parameter, has default)."""
    for line in doc.splitlines():
        match = re.match(rf"\s*(?:\d+\. )?{re.escape(name)}\((.*)\) -> ", line)
        if match is None or match[1] == "*args, **kwargs":
            continue
        pieces = _split(match[1])
        named = [piece for piece in pieces if not piece.startswith("self:")]
        yield tuple((piece.partition(":")[0].strip(), " = " in piece) for piece in named)


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    pieces, depth, piece = [], 0, ""
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            pieces.append(piece.strip())
            piece = ""
        else:
            piece += letter
    return [*pieces, piece.strip()] if piece.strip() else pieces


def _accepts(form: tuple[tuple[str, bool], ...], use: Use) -> bool:
    names = [name for name, _ in form]
    if use.arguments < 0:  # a star: as many as there are
        return set(use.keywords) <= set(names)
    given = {*names[: use.arguments], *use.keywords}
    needed = {name for name, optional in form if not optional}
    return use.arguments <= len(names) and set(use.keywords) <= set(names) and needed <= given
