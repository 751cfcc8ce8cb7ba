"""libcascade as ctypes sees it: its structures and functions, field for field those of cascade.h.

In: a libcascade.so. Out: `library()`, with typed functions. A test compares every offset here with
what a C compiler makes of the header.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char, c_char_p, c_double, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from cascade_runtime.errors import TargetError

ABI_VERSION = 1
OK, FAILURE, USAGE, BUNDLE, TARGET, IMAGE, BUSY = range(7)
FILE, ENCODED, FRAME = range(3)
RGB, BGR, RGBA, BGRA, GREY, NV12 = range(6)
BUCKETS = 56
MAX_STAGES = 127

LogFunction = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("target", c_char_p),
        ("public_key", c_char_p),
        ("threads", c_uint32),
        ("self_test", c_int32),
        ("warm_up", c_int32),
        ("max_batch", c_uint32),
        ("max_delay_us", c_uint32),
        ("queue_capacity", c_uint32),
        ("onnxruntime_library", c_char_p),
        ("openvino_library", c_char_p),
        ("tensorrt_library", c_char_p),
        ("log", LogFunction),
        ("log_user", c_void_p),
    )


class Info(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("target", c_char_p),
        ("why", c_char_p),
        ("engine", c_char_p),
        ("manifest_json", c_char_p),
        ("classes", c_char_p * 2),
        ("signer", c_char_p),
        ("promise", c_char_p),
        ("certified", c_int32),
        ("stages", c_uint32),
        ("height", c_uint32),
        ("width", c_uint32),
        ("alpha", c_double),
        ("delta", c_double),
        ("coverage_lower", c_double),
    )


class Image(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("kind", c_int32),
        ("format", c_int32),
        ("path", c_char_p),
        ("data", c_void_p),
        ("size", c_size_t),
        ("width", c_uint32),
        ("height", c_uint32),
        ("stride", c_size_t),
        ("chroma", c_void_p),
        ("chroma_size", c_size_t),
        ("chroma_stride", c_size_t),
    )


class Result(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("status", c_int32),
        ("decision", c_int32),
        ("reason", c_int32),
        ("stage", c_int32),
        ("set", c_uint32),
        ("reserved", c_uint32),
        ("p", c_double),
        ("score", c_double),
        ("message", c_char * 256),
    )


class Histogram(ctypes.Structure):
    _fields_ = (("count", c_uint64), ("sum_us", c_uint64), ("buckets", c_uint64 * BUCKETS))


class Stats(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("images", c_uint64),
        ("acted", c_uint64),
        ("deferred", c_uint64),
        ("unreadable", c_uint64),
        ("refused", c_uint64),
        ("failures", c_uint64),
        ("batches", c_uint64),
        ("queued", c_uint64),
        ("reasons", c_uint64 * 8),
        ("exits", c_uint64 * (MAX_STAGES + 1)),
        ("decide", Histogram),
        ("submitted", Histogram),
    )


DoneFunction = ctypes.CFUNCTYPE(None, ctypes.POINTER(Result), c_void_p)

_P = ctypes.POINTER
_FUNCTIONS = {  # name: result, arguments
    "cascade_abi_version": (c_uint32, ()),
    "cascade_version": (c_char_p, ()),
    "cascade_last_error": (c_char_p, ()),
    "cascade_copy_last_error": (c_size_t, (c_char_p, c_size_t)),
    "cascade_default_options": (c_int32, (_P(Options), c_size_t)),
    "cascade_open": (c_int32, (c_char_p, _P(Options), _P(c_void_p))),
    "cascade_close": (None, (c_void_p,)),
    "cascade_get_info": (c_int32, (c_void_p, _P(Info))),
    "cascade_class_name": (c_char_p, (c_void_p, c_int32)),
    "cascade_classify": (c_int32, (c_void_p, _P(Image), c_size_t, _P(Result))),
    "cascade_classify_batches": (
        c_int32,
        (c_void_p, _P(Image), c_size_t, c_size_t, _P(Result)),
    ),
    "cascade_reason_text": (c_char_p, (c_int32,)),
    "cascade_submit": (c_int32, (c_void_p, _P(Image), DoneFunction, c_void_p)),
    "cascade_get_stats": (c_int32, (c_void_p, _P(Stats))),
    "cascade_bucket_bound_us": (c_double, (c_uint32,)),
}


@cache
def library() -> ctypes.CDLL:
    """The library, opened and typed.

    Raises:
        TargetError: it is not there, or another ABI.
    """
    path = library_path()
    try:
        opened = ctypes.CDLL(path)
    except OSError as error:
        raise TargetError(
            f"libcascade cannot be loaded ({error}); make native, or name it in CASCADE_LIBRARY"
        ) from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    found = int(opened.cascade_abi_version())
    if found != ABI_VERSION:
        raise TargetError(f"{path}: ABI version {found}, this package knows {ABI_VERSION}")
    return opened


def library_path() -> str:
    """Where libcascade is: what the environment says, this checkout's build, else the loader's."""
    named = os.environ.get("CASCADE_LIBRARY")
    if named:
        return named
    checkout = Path(__file__).resolve().parents[2] / "build" / "native"
    built = Path(os.environ.get("CASCADE_NATIVE_BUILD") or checkout) / "libcascade.so"
    return str(built) if built.exists() else "libcascade.so.1"
