"""`Cascade` on libcascade: the same answers from the C library, without numpy or Pillow in the way.

In: what `Cascade.open` takes. Out: a `Cascade` whose `classify` runs in C++; `engine="native"` asks
for it. It reads JPEG, PNG and WebP; other formats are unreadable here.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cascade_runtime import manifest as manifests
from cascade_runtime import native_abi as abi
from cascade_runtime.cascade import Cascade, Result, as_list, name_of, unreadable
from cascade_runtime.errors import BundleError, CascadeError, ConfigError, ImageError, TargetError
from cascade_runtime.manifest import Manifest
from cascade_runtime.preprocess import ImageLike, check_array, printable
from cascade_runtime.signature import KeyFile

_ERRORS = {abi.USAGE: ConfigError, abi.BUNDLE: BundleError, abi.TARGET: TargetError}
_WHEELS = {  # the option, the environment's word for it, and where its wheel has the library
    "onnxruntime_library": ("CASCADE_ONNXRUNTIME_LIBRARY", "onnxruntime", "capi"),
    "openvino_library": ("CASCADE_OPENVINO_LIBRARY", "openvino", "libs"),
}
_FORMATS = {1: abi.GREY, 3: abi.RGB, 4: abi.RGBA}


class NativeCascade(Cascade):
    """A session of libcascade; threads may share it.

    `bundle` and `stages` are the Python runtime's and are not here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str = "auto",
        *,
        public_key: KeyFile | None = None,
        threads: int | None = None,
        self_test: bool = False,
        warm_up: bool = True,
    ) -> None:
        self._library = abi.library()
        self.threads = threads
        options = abi.Options()
        self._check(self._library.cascade_default_options(options, ctypes.sizeof(options)))
        options.target = target.encode()
        options.public_key = None if public_key is None else os.fsencode(public_key)
        options.threads = threads or 0
        options.self_test, options.warm_up = self_test, warm_up
        for option, place in _wheels().items():
            setattr(options, option, os.fsencode(place))
        session = ctypes.c_void_p()
        self._check(self._library.cascade_open(os.fsencode(path), options, session))
        self._session = session
        self._close = weakref.finalize(self, self._library.cascade_close, session)
        info = abi.Info(struct_size=ctypes.sizeof(abi.Info))
        self._check(self._library.cascade_get_info(session, info))
        self.target, self.why = info.target.decode(), info.why.decode()
        self.signer = info.signer.decode() if info.signer else None
        self._manifest = manifests.decode(info.manifest_json)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def close(self) -> None:
        """Free the engines now, rather than with the last reference. Using it then is an error."""
        self._close()
        self._session = ctypes.c_void_p()

    def classify(self, images: Iterable[ImageLike], batch_size: int = 32) -> list[Result]:
        everything = as_list(images, batch_size)
        names = [name_of(image, index) for index, image in enumerate(everything)]
        results: list[Result | None] = [None] * len(everything)
        places = (abi.Image * len(everything))()
        held: list[Any] = []  # what `places` points to
        rows: list[int] = []
        for row, (image, name) in enumerate(zip(everything, names, strict=True)):
            try:
                held.append(self._fill(places[len(rows)], image, printable(name)))
                rows.append(row)
            except ImageError as error:
                results[row] = unreadable(name, error)
        answers = (abi.Result * max(len(rows), 1))()
        answers[0].struct_size = ctypes.sizeof(abi.Result)
        classify = self._library.cascade_classify_batches
        self._check(classify(self._session, places, len(rows), batch_size, answers))
        for row, answer in zip(rows, answers, strict=False):
            results[row] = self._native_result(names[row], answer)
        return [result for result in results if result is not None]

    def stats(self) -> dict[str, Any]:
        """Counters and latency histograms since it was opened, named as in cascade.h."""
        stats = abi.Stats(struct_size=ctypes.sizeof(abi.Stats))
        self._check(self._library.cascade_get_stats(self._session, stats))
        values = {name: getattr(stats, name) for name, _ in abi.Stats._fields_[1:]}
        return {name: _plain(value) for name, value in values.items()}

    def _fill(self, place: abi.Image, image: ImageLike, label: str) -> Any:
        """Make `place` point to an image; returns what must live as long."""
        ctypes.memset(ctypes.byref(place), 0, ctypes.sizeof(place))
        place.struct_size = ctypes.sizeof(place)
        if isinstance(image, np.ndarray):
            array = np.ascontiguousarray(check_array(image, self.preprocess.max_pixels, label))
            place.kind = abi.FRAME
            place.format = _FORMATS[1 if array.ndim == 2 else array.shape[2]]
            place.data, place.size = array.ctypes.data, array.nbytes
            place.height, place.width = array.shape[:2]
            return array
        if isinstance(image, bytes):
            place.kind = abi.ENCODED
            place.data = ctypes.cast(ctypes.c_char_p(image), ctypes.c_void_p)
            place.size = len(image)
            return image
        path = os.fsencode(image)
        if b"\0" in path:
            raise ImageError(f"{label}: is no usable file name (embedded null byte)")
        place.kind, place.path = abi.FILE, path
        return path

    def _native_result(self, name: str, answer: abi.Result) -> Result:
        if answer.status == abi.IMAGE:
            message = answer.message.decode("utf-8", "replace")
            return unreadable(name, ImageError(message))
        classes = self.manifest.model.classes
        return Result(
            name=name,
            decision=classes[answer.decision] if answer.decision >= 0 else None,
            label=answer.decision,
            set=tuple(c for index, c in enumerate(classes) if answer.set >> index & 1),
            p=answer.p,
            score=answer.score,
            stage=answer.stage,
            reason=self._library.cascade_reason_text(answer.reason).decode(),
        )

    def _check(self, status: int) -> None:
        if status != abi.OK:
            message = self._library.cascade_last_error().decode("utf-8", "replace")
            raise _ERRORS.get(status, CascadeError)(message)


def engine_environment() -> dict[str, str]:
    """This process's environment, for another one that is to find the same engine libraries."""
    found = dict(os.environ)
    for option, place in _wheels().items():
        found[_WHEELS[option][0]] = str(place)
    return found


def _wheels() -> dict[str, Path]:
    """The engine libraries of installed wheels, for those that the environment does not name."""
    found = {}
    for option, (variable, package, folder) in _WHEELS.items():
        spec = None if os.environ.get(variable) else find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found[option] = Path(spec.submodule_search_locations[0]) / folder
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, abi.Histogram):
        return {name: _plain(getattr(value, name)) for name, _ in abi.Histogram._fields_}
    return list(value) if isinstance(value, ctypes.Array) else value
