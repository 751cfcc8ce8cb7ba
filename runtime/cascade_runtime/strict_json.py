"""JSON from strangers: read once, one meaning, or a `BundleError`.

In: bytes. Out: plain values. JSON parsers differ in what they make of a repeated key, of NaN, of
1e999, of deep nesting, of text that is not UTF-8; a file that two readers understand differently is
refused by both. Spec: docs/bundle-format.md, "Manifest"; RFC 8259 and, for the numbers, RFC 7493.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from cascade_runtime.errors import BundleError

MAX_DEPTH = 32
MAX_INTEGER = 1 << 53  # beyond it not every reader's numbers are exact
_MAX_DIGITS = 40
_MAX_DECIMAL = 1200  # more than any binary64 written out in full


def parse(data: bytes, name: str) -> dict[str, Any]:
    """The object in `data`; `name` is the file's, for messages.

    Raises:
        BundleError: not UTF-8, not one JSON object, a repeated key, an integer beyond 2^53, a
            number that is not finite in binary64, half a surrogate pair, or nested too deep.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_repeats,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
    except UnicodeDecodeError as error:
        raise BundleError(f"{name}: byte {error.start} is not UTF-8; it is damaged") from error
    except RecursionError as error:
        raise BundleError(f"{name}: nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise BundleError(f"{name}: not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(f"{name}: not a JSON object")
    _check_tree(value, name)
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:_MAX_DIGITS]!r} is repeated")
        found[key] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= _MAX_DECIMAL else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_MAX_DIGITS]} is too large")
    return value


def _exact(text: str) -> int:
    if len(text) > _MAX_DIGITS or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"the integer {text[:_MAX_DIGITS]} is beyond 2^53")
    return int(text)


def _check_tree(value: dict[str, Any], name: str) -> None:
    """Depth and text, level by level, so that a deep tree needs no deep stack."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            for child in node if isinstance(node, list) else (*node.keys(), *node.values()):
                if isinstance(child, dict | list):
                    below.append(child)
                elif isinstance(child, str) and not child.isascii():
                    _check_text(child, name)
        if not below:
            return
        level = below
    raise BundleError(f"{name}: nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BundleError(f"{name}: {text[:_MAX_DIGITS]!r} holds half a surrogate pair") from error
