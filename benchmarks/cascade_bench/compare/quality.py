"""What every contender says of the same images, beside their labels.

In: a contender and the images. Out: a `Quality`. Who defers nothing has coverage 1, and its risk is
its error rate. Intervals are percentile bootstraps of whole images, or of groups where there are
any; only the bundle has a bound that was proven beforehand, on other images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade_bench.compare.sample import Sample
from cascade_bench.peers.contender import Labels
from cascade_bench.quality import Share
from cascade_calib.bootstrap import ratio_intervals


@dataclass(frozen=True)
class Quality:
    """Of all images and of those acted on, each with a 95 % interval.

    coverage: acted on, of all. risk: wrong, of the acted on. right: answered and right, of all.
    agreement: answered as the always-full engines answer, of the acted on.
    """

    name: str
    coverage: Share
    risk: Share
    right: Share
    agreement: Share


def judge(name: str, said: Labels, full: Labels, sample: Sample) -> Quality:
    """Count.

    Args:
        said: labels int8 [N], -1 for deferred. full: those of the always-full engines.
    """
    acted, right = said >= 0, said == sample.labels
    everything = np.ones_like(acted)
    tops = np.stack([acted, acted & ~right, right, acted & (said == full)], axis=1)
    bottoms = np.stack([everything, acted, everything, acted], axis=1)
    intervals = ratio_intervals(tops, bottoms, sample.groups)
    shares = []
    for top, bottom, interval in zip(tops.T, bottoms.T, intervals, strict=True):
        part, of = int(top.sum()), int(bottom.sum())
        value = part / of if of else float("nan")
        shares.append(Share(value, part, of, interval.low, interval.high))
    return Quality(name, *shares)
