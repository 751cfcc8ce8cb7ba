"""The arrays that the metrics take: their types, and the one check that all of them make."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cascade_runtime.errors import DataError

Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]


def scored(score: npt.ArrayLike, error: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Scores and errors as float64 [N] each; +-inf are ordinary scores.

    Raises:
        DataError: a NaN, another shape, or an error that is neither 0 nor 1.
    """
    s, e = np.asarray(score, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if s.ndim != 1 or s.shape != e.shape:
        raise DataError(f"score has shape {s.shape} and error {e.shape}; both must be [N]")
    if np.isnan(s).any():
        raise DataError(f"score has {int(np.isnan(s).sum())} NaN of {len(s)}; remove those images")
    if not ((e == 0.0) | (e == 1.0)).all():
        raise DataError("error must be 0 or 1 for every image")
    return s, e
