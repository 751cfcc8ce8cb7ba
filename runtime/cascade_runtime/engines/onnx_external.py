"""Where an ONNX file says that its weights are: read from its bytes, before any library sees them.

In: the bytes of a `.onnx` file. Out: the `location` of every external tensor in it, wherever it
hides: initialisers, constants, subgraphs, functions. A path that leads out of the bundle is refused
by us and by name, not left to what an engine library makes of it.
Specs: onnx.proto of github.com/onnx/onnx ("external_data"); protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from cascade_runtime.errors import BundleError, TargetError

# Message: {field number: message of that field}, only those on a way to a tensor.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_external_data(data: bytes, main: str, allowed: Collection[str]) -> None:
    """That every external tensor of the file lies in one of the stage's own files.

    Args:
        main: the bundle path of the file, for messages.
        allowed: the other files of the stage, relative to it.

    Raises:
        BundleError: weights elsewhere.
        TargetError: not an ONNX file.
    """
    for location in external_locations(data, main):
        if location not in allowed:
            raise BundleError(
                f"{main}: its weights lie in {location!r}, which is none of this stage's verified "
                f"files ({', '.join(sorted(allowed)) or 'it has no other'}); rebuild the bundle "
                "with cascade-compile bundle"
            )


def external_locations(data: bytes, main: str) -> Iterator[str]:
    """Every `location` in the file, in its order; may repeat.

    Raises:
        TargetError: not a protobuf message.
    """
    waiting = [("model", memoryview(data))]
    while waiting:
        kind, message = waiting.pop()
        entry: dict[int, bytes] = {}
        for number, value in _fields(message, main):
            below = _FIELDS[kind].get(number)
            if below is not None:
                waiting.append((below, value))
            elif kind == "entry":
                entry[number] = bytes(value)
        if entry.get(_KEY) == b"location":
            yield entry.get(_VALUE, b"").decode("utf-8", "backslashreplace")


def _fields(message: memoryview, main: str) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every length-delimited field; the others are stepped over."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at, main)
        if tag >> 32:  # libraries drop the upper bits: a field hidden under another's number
            raise _damaged(main)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, at = _varint(message, at, main)
            if size > end - at:
                raise _damaged(main)
            yield number, message[at : at + size]
            at += size
        elif wire == _VARINT:
            _, at = _varint(message, at, main)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise _damaged(main)
    if at > end:
        raise _damaged(main)


def _varint(message: memoryview, at: int, main: str) -> tuple[int, int]:
    """The number at `at` and where the next thing begins."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, at + index + 1
    raise _damaged(main)


def _damaged(main: str) -> TargetError:
    return TargetError(f"{main}: not an ONNX file; rebuild the bundle with cascade-compile bundle")
