"""Coverage and exit error, with where they come from.

In: a cascade, and labelled images where there are any. Out: a `Quality`: measured on the images,
or, without any, what the certificate says of its calibration images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cascade_calib.evaluate import Evaluation, evaluate
from cascade_calib.labelled import LabelledImages
from cascade_calib.progress import Progress
from cascade_runtime.cascade import Cascade
from cascade_runtime.manifest import Certificate


@dataclass(frozen=True)
class Share:
    """`part` of `of`, between two bounds; NaN where nothing was counted, or a side has no bound."""

    value: float
    part: int
    of: int
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """coverage: acted on, of all. error: wrong, of the acted on. source and bounds are words."""

    source: str
    bounds: str
    coverage: Share
    error: Share
    evaluation: Evaluation | None


def measured(
    cascade: Cascade, images: LabelledImages, source: str, progress: Progress | None = None
) -> Quality:
    """Run every image through the engines and count.

    Raises:
        DataError: no image can be read, or the classes are not the bundle's.
    """
    found = evaluate(cascade, images, progress=progress)
    return Quality(
        source=source,
        bounds="95 % interval",
        coverage=_share(found, "coverage"),
        error=_share(found, "risk"),
        evaluation=found,
    )


def certified(certificate: Certificate) -> Quality:
    """What the certificate counted on its calibration images, with its own one-sided bounds."""
    c = certificate
    error = c.errors / c.accepted if c.accepted else math.nan
    bounded = c.sets is None  # else the bounds are of the sets, and single answers have none
    return Quality(
        source="certificate, val_calib",
        bounds=f"{100 * c.confidence:g} % bound" if bounded and c.confidence else "",
        coverage=Share(
            c.coverage, c.accepted, c.n, c.coverage_lower if bounded else math.nan, math.nan
        ),
        error=Share(error, c.errors, c.accepted, math.nan, c.risk_upper if bounded else math.nan),
        evaluation=None,
    )


def _share(found: Evaluation, name: str) -> Share:
    x = getattr(found, name)
    return Share(x.value, x.part, x.of, x.interval.low, x.interval.high)
