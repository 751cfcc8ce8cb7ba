"""Paired comparison of two ways to train, from what their networks said of the same test images.

In: for each seed, both arms' outputs on the same N images. Out: per figure the difference B - A
with an interval.

What is repeated is the training, so the seed is the unit: from J paired differences d_j alone comes
Student's interval with J - 1 degrees of freedom. That one speaks of these test images only. What
new images would change is added to it: v, the variance of the mean difference when the images (or
their groups) are resampled, for all seeds and both arms alike. Both half-widths are added as
squares (MOVER, Zou and Donner 2008): (t s)^2 / J + z^2 v. It is never narrower than the first, and
as v is taken with these few seeds it contains some of their noise again, so the sum errs on the
wide side. Counting J times N outputs as that many independent ones would be far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64
from cascade_calib.bootstrap import LEVEL, Interval

RESAMPLES = 500  # for a standard error, not for tails
RISKS = (0.01, 0.02, 0.05)
_CELLS = 4_000_000


@dataclass(frozen=True)
class Outputs:
    """One network on N images: logits [S, N, 2] and score [S, N] by exit, labels [N].

    `blocks` are the blocks after which the S exits stand. A higher score is more trusted.
    """

    blocks: tuple[int, ...]
    logits: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]


class Estimate(NamedTuple):
    """A mean difference, its interval, and the p-value of there being none.

    With fewer than two seeds there is neither interval nor p-value: NaN.
    """

    difference: float
    interval: Interval
    p: float


def figures(outputs: Outputs, weights: Float64) -> dict[str, Float64]:
    """The figures of a network under R weightings of its N images, each float64 [R].

    Args:
        weights: [R, N]; a row of ones gives the figures of the set itself.

    Returns:
        `augrc`, `augrc_softmax`, `mcc`, `fnr` and `coverage_at_R` of the last exit (FNR of all
        images, not of those acted on), `accuracy_B` after each block B.
    """
    answer = outputs.logits.argmax(axis=2)
    wrong = (answer != outputs.labels).astype(np.float64)
    total = weights.sum(axis=1)
    found: dict[str, Float64] = {}
    accepted, errors = _counts(outputs.score[-1], wrong[-1], weights)
    found["augrc"] = _augrc(accepted, errors)
    margin = np.abs(outputs.logits[-1, :, 1] - outputs.logits[-1, :, 0])
    found["augrc_softmax"] = _augrc(*_counts(margin, wrong[-1], weights))
    for block, missed in zip(outputs.blocks, wrong, strict=True):
        found[f"accuracy_{block}"] = 1 - weights @ missed / total
    for risk in RISKS:
        holds = (accepted > 0) & (errors / np.maximum(accepted, 1) <= risk)
        found[f"coverage_at_{risk:g}"] = np.where(holds, accepted, 0.0).max(axis=1) / total
    found |= _confusion(answer[-1], outputs.labels, weights)
    return found


def at_once(outputs: Outputs) -> dict[str, float]:
    """The figures of the images as they are."""
    ones = np.ones((1, len(outputs.labels)))
    return {name: float(value[0]) for name, value in figures(outputs, ones).items()}


def image_variances(
    pairs: Sequence[tuple[Outputs, Outputs]],
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """The variance over resampled images of the mean over the pairs of second minus first.

    Args:
        groups: N names; images of one group are drawn together. None: each on its own.
    """
    n = len(pairs[0][0].labels)
    member = (
        np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    drawn: dict[str, list[Float64]] = {}
    for weights in _resamples(member, resamples, seed, max(1, _CELLS // n)):
        sums: dict[str, Float64] = {}
        for first, second in pairs:
            a, b = figures(first, weights), figures(second, weights)
            for name in a.keys() & b.keys():
                sums[name] = sums.get(name, 0.0) + (b[name] - a[name]) / len(pairs)
        for name, values in sums.items():
            drawn.setdefault(name, []).append(values)
    return {name: float(np.nanvar(np.concatenate(v), ddof=1)) for name, v in drawn.items()}


def paired_estimate(
    differences: Sequence[float], image_variance: float = 0.0, level: float = LEVEL
) -> Estimate:
    """The mean of paired differences, one a seed, with its interval.

    Args:
        image_variance: the variance of that mean over test images; 0 speaks of these images alone.
    """
    d = np.asarray(differences, np.float64)
    mean = float(d.mean()) if len(d) else math.nan
    if len(d) < 2 or not np.isfinite(d).all():
        return Estimate(mean, Interval(math.nan, math.nan), math.nan)
    of_seeds = float(d.std(ddof=1)) / math.sqrt(len(d))
    of_images = math.sqrt(image_variance)

    def reach(tail: float) -> float:
        """Half the width of the interval that leaves `tail` on either side."""
        from scipy.special import ndtri, stdtrit

        t, z = float(stdtrit(len(d) - 1, 1 - tail)), float(ndtri(1 - tail))
        return math.hypot(t * of_seeds, z * of_images)

    half = reach((1 - level) / 2)
    return Estimate(mean, Interval(mean - half, mean + half), _p_value(abs(mean), reach))


def _p_value(size: float, reach: Callable[[float], float]) -> float:
    """Twice the tail whose interval just touches 0."""
    from scipy.optimize import brentq

    least = 1e-12
    if size == 0:
        return 1.0
    if reach(least) <= size:  # without any spread, or beyond what matters
        return 2 * least
    return 2 * float(brentq(lambda tail: reach(tail) - size, least, 0.5))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979): below delta, all of them are right with chance 1 - delta.

    NaN counts as a question that was asked, and stays NaN.
    """
    order = sorted(p_values, key=lambda name: (math.isnan(p_values[name]), p_values[name]))
    adjusted, least = {}, 0.0
    for rank, name in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[name]))
        adjusted[name] = math.nan if math.isnan(p_values[name]) else least
    return adjusted


def _resamples(member: Int64, resamples: int, seed: int, rows: int) -> Iterator[Float64]:
    """Weightings [<= rows, N]: how often each image is drawn, groups drawn whole."""
    rng = np.random.default_rng(seed)
    groups = int(member.max()) + 1
    for start in range(0, resamples, rows):
        count = rng.multinomial(groups, np.full(groups, 1 / groups), min(rows, resamples - start))
        yield count[:, member].astype(np.float64)


def _counts(
    score: npt.NDArray[np.float32], wrong: Float64, weights: Float64
) -> tuple[Float64, Float64]:
    """Accepted and wrong [R, P] at each of the P distinct scores, most trusted first."""
    order = np.argsort(-score, kind="stable")
    sorted_score = score[order]
    last_of_tie = np.flatnonzero(np.append(sorted_score[1:] != sorted_score[:-1], True))
    weight = weights[:, order]
    accepted = np.cumsum(weight, axis=1)[:, last_of_tie]
    return accepted, np.cumsum(weight * wrong[order], axis=1)[:, last_of_tie]


def _augrc(accepted: Float64, errors: Float64) -> Float64:
    """Trapezoid of generalised risk over coverage, from (0, 0); as `metrics.augrc`."""
    total = accepted[:, -1:]
    width = np.diff(accepted / total, axis=1, prepend=0.0)
    before = np.concatenate([np.zeros_like(total), errors[:, :-1]], axis=1)
    return np.asarray((width * (errors + before) / total).sum(axis=1) / 2)


def _confusion(answer: Int64, labels: npt.NDArray[np.int8], weights: Float64) -> dict[str, Float64]:
    """MCC (0 where a whole row or column of the table is empty) and FNR."""
    tp, fn = (weights @ ((labels == 1) & (answer == y)) for y in (1, 0))
    fp, tn = (weights @ ((labels == 0) & (answer == y)) for y in (1, 0))
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    with np.errstate(invalid="ignore", divide="ignore"):
        mcc = np.where(scale > 0, (tp * tn - fp * fn) / scale, 0.0)
        return {"mcc": mcc, "fnr": np.asarray(fn / (tp + fn))}
