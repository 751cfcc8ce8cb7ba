"""The uncertainty of a risk-coverage curve: what resampling the images does to it.

In: a score and an error per image, and the group of each where there are groups. Out: at evenly
spaced points of the curve, the percentile interval of the risk at that point's threshold, each
point for itself. CALIBRATION, "Selective metrics".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cascade_calib.bootstrap import RESAMPLES, ratio_intervals
from cascade_calib.metrics import risk_coverage_curve
from cascade_calib.plots import STEADY, Band

POINTS = 40


def risk_band(
    score: npt.ArrayLike,
    error: npt.ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Band:
    """The 95 % band around `risk_coverage_curve(score, error)`.

    A threshold is held while the images are drawn again, as it is in a bundle: the band says how
    far the risk of acting by that threshold may be from the one seen. Where no image is wrong it
    has no height, since resampling cannot see what was never drawn.

    Args:
        score, error: as for the curve, [N].
        groups: N names, drawn whole; None: every image is its own group.

    Raises:
        DataError: what the curve refuses, or groups of another length.
    """
    curve = risk_coverage_curve(score, error)
    wanted = np.linspace(STEADY, 1, POINTS)
    at = np.unique(np.searchsorted(curve.coverage, wanted).clip(max=len(curve.coverage) - 1))
    if not len(curve.coverage):
        return Band(*(np.empty(0),) * 3)
    accepted = np.asarray(score)[:, None] >= curve.threshold[at]
    wrong = accepted & np.asarray(error, dtype=np.bool_)[:, None]
    intervals = ratio_intervals(wrong, accepted, groups, resamples=resamples, seed=seed)
    low, high = np.array(intervals).T
    return Band(curve.coverage[at], low, high)
