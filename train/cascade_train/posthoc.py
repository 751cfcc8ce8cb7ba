"""The post-hoc gate: a ridge-penalised logistic fit of "this exit is right" on a frozen network.

In: features, logits and trained gate of one exit on `val_select`, and the labels. Out: the fitted
post-hoc gate and its blend with softmax margin and trained gate, and both scores out of fold.

It is fitted on `val_select` and not on `train`, which the classifier has seen and answers better
than new images. The price is that a score fitted on an image flatters it, so every judgement uses
scores cross-fitted by K folds. Features come in through their leading components, taken without the
labels, and through the same components turned to the side the exit answered. The penalty is chosen
by cross-fitted log loss; as it grows, the fit becomes the softmax margin. The form is linear since
a validation split holds tens of errors, not thousands: a layer of 16 units ranked worse than
softmax in every case measured, whether fitted on `val_select` or on `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cascade_calib.arrays import Float64, Int64
from cascade_calib.scaling import sigmoid, smoothed
from cascade_train.gates import ExitReadout, ExitScore

PENALTIES = (0.1, 1.0, 10.0)  # of a component of unit variance, against the mean log loss
_LEAST_SPREAD = 1e-2  # of the widest component: narrower ones would need weights that float16 loses
_SLIGHT = 1e-4  # keeps a coefficient finite where the data do not


@dataclass(frozen=True)
class Rows:
    """One exit's N images as the fits see them.

    margin: |l1 - l0| and gate, both in units of their spread; side: sign(l1 - l0);
    parts: [N, K] components of the features, each of unit variance; right: 1 where the answer is
    right; group: whole numbers, images of one group are kept together.
    """

    margin: Float64
    gate: Float64
    side: Float64
    parts: Float64
    right: Float64
    group: Int64

    def take(self, index: npt.NDArray[np.bool_] | Int64) -> Rows:
        """The images at `index`."""
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Formula:
    """margin * |m| + gate * g + b_0 + W_0 . parts + side (b_1 + W_1 . parts); b [2], W [2, K]."""

    margin: float
    gate: float
    bias: Float64
    weight: Float64

    def of(self, rows: Rows) -> Float64:
        """The score of each image, [N]."""
        linear = rows.parts @ self.weight.T + self.bias
        own = self.margin * rows.margin + self.gate * rows.gate
        return np.asarray(own + linear[:, 0] + rows.side * linear[:, 1])


@dataclass(frozen=True)
class Basis:
    """How an exit's raw outputs become `Rows`: spreads of margin and gate, mean and directions."""

    margin: float
    gate: float
    mean: Float64  # [F]
    directions: Float64  # [F, K]

    def plain(self, *, softmax: bool) -> ExitScore:
        """The softmax margin or the trained gate, exactly as the network has it."""
        nothing = np.zeros((2, self.directions.shape[1]))
        shares = (self.margin, 0.0) if softmax else (0.0, self.gate)
        return self.module(Formula(*shares, np.zeros(2), nothing))

    def module(self, formula: Formula) -> ExitScore:
        """The formula as a module over the raw features, logits and gate."""
        weight = formula.weight @ self.directions.T
        score = ExitScore(len(self.mean))
        score.load_state_dict(
            {
                "mix": torch.tensor([formula.margin / self.margin, formula.gate / self.gate]),
                "weight": torch.from_numpy(weight),
                "bias": torch.from_numpy(formula.bias - weight @ self.mean),
            }
        )
        return score


def exit_rows(
    out: ExitReadout, labels: npt.ArrayLike, group: Int64, components: int
) -> tuple[Rows, Basis]:
    """What one exit computed, prepared for fitting, and the way back to its raw outputs."""
    features = out.features.astype(np.float64)
    logits, gate = out.logits.astype(np.float64), out.gate.astype(np.float64)
    difference = logits[:, 1] - logits[:, 0]
    right = (logits.argmax(axis=1) == np.asarray(labels)).astype(np.float64)
    mean = features.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov(features, rowvar=False, bias=True))
    spread = np.sqrt(np.maximum(variance[::-1][:components], 0.0))
    kept = spread > _LEAST_SPREAD * max(float(spread[0]), 1e-12)
    basis = Basis(
        margin=_spread(np.abs(difference)),
        gate=_spread(gate),
        mean=mean,
        directions=directions[:, ::-1][:, :components][:, kept] / spread[kept],
    )
    rows = Rows(
        margin=np.abs(difference) / basis.margin,
        gate=gate / basis.gate,
        side=np.sign(difference),
        parts=(features - mean) @ basis.directions,
        right=right,
        group=group,
    )
    return rows, basis


def _spread(values: Float64) -> float:
    return float(values.std()) or 1.0


class Fitted(NamedTuple):
    """The two fitted scores."""

    posthoc: Formula
    blend: Formula


def fit_scores(rows: Rows, folds: int, seed: int) -> Fitted:
    """The post-hoc gate and the blend, on these images.

    The blend is fitted to out-of-fold scores of the post-hoc gate: in its own fit's eyes that gate
    is better than it is, and would get too large a share.
    """
    out_of_fold = cross_fit(
        rows, folds, seed, lambda part: [_posthoc(part, penalty) for penalty in PENALTIES]
    )
    best = int(np.argmin([_log_loss(scores, rows.right) for scores in out_of_fold]))
    posthoc = _posthoc(rows, PENALTIES[best])
    return Fitted(posthoc, _blend(rows, posthoc, out_of_fold[best]))


def cross_fitted(rows: Rows, folds: int, seed: int) -> Float64:
    """Post-hoc gate and blend out of fold, [2, N]: each fold's fit includes its own choices."""
    return cross_fit(rows, folds, seed, lambda part: fit_scores(part, folds, seed + 1))


def cross_fit(
    rows: Rows, folds: int, seed: int, fit: Callable[[Rows], Sequence[Formula]]
) -> Float64:
    """Scores [C, N] where `fit(rows) -> C formulas` has not seen the image nor its group."""
    fold = folds_of(rows, folds, seed)
    scores: list[tuple[npt.NDArray[np.bool_], list[Float64]]] = []
    for part in np.unique(fold):
        held = fold == part
        scores.append((held, [formula.of(rows.take(held)) for formula in fit(rows.take(~held))]))
    found = np.empty((len(scores[0][1]), len(fold)))
    for held, of_formulas in scores:
        found[:, held] = of_formulas
    return found


def folds_of(rows: Rows, folds: int, seed: int) -> Int64:
    """A fold per image: whole groups, errors spread evenly, drawn from the seed."""
    _, member = np.unique(rows.group, return_inverse=True)
    errors = np.bincount(member, weights=1.0 - rows.right)
    shuffled = np.random.default_rng(seed).permutation(len(errors))
    order = shuffled[np.argsort(-errors[shuffled], kind="stable")]
    fold = np.empty(len(errors), dtype=np.int64)
    fold[order] = np.arange(len(errors)) % folds
    return fold[member]


def _posthoc(rows: Rows, penalty: float) -> Formula:
    side = rows.side[:, None]
    columns = np.hstack([rows.margin[:, None], side, rows.parts, side * rows.parts])
    weights = _logistic(columns, rows.right, np.r_[_SLIGHT, np.full(columns.shape[1] - 1, penalty)])
    (bias, margin, sided), rest = weights[:3], weights[3:]
    return Formula(float(margin), 0.0, np.array([bias, sided]), rest.reshape(2, -1))


def _blend(rows: Rows, posthoc: Formula, scores: Float64) -> Formula:
    """Logistic in margin, gate and post-hoc score, written out in the post-hoc gate's own terms."""
    spread = _spread(scores)
    columns = np.stack([rows.margin, rows.gate, scores / spread], axis=1)
    bias, margin, gate, share = _logistic(columns, rows.right, np.full(3, _SLIGHT))
    share /= spread
    return Formula(
        float(margin + share * posthoc.margin),
        float(gate),
        np.array([bias, 0.0]) + share * posthoc.bias,
        share * posthoc.weight,
    )


def _logistic(columns: Float64, right: Float64, penalty: Float64) -> Float64:
    """Intercept and weights of least mean log loss + penalty/2 . weights^2, by L-BFGS."""
    from scipy.optimize import minimize

    x = np.hstack([np.ones((len(columns), 1)), columns])
    ridge, target = np.append(0.0, penalty), smoothed(right)

    def loss(w: Float64) -> tuple[float, Float64]:
        logit = x @ w
        value = np.mean(np.logaddexp(0.0, logit) - target * logit) + 0.5 * np.sum(ridge * w * w)
        return float(value), x.T @ (sigmoid(logit) - target) / len(x) + ridge * w

    start = np.zeros(x.shape[1])
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)


def _log_loss(logit: Float64, right: Float64) -> float:
    return float(np.mean(np.logaddexp(0.0, logit) - right * logit))
