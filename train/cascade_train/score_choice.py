"""Which score an exit ships: softmax margin, trained gate, post-hoc gate, or their blend.

In: what each exit computed on `val_select` (`gates.ExitReadout`) and the labels. Out: an
`ExitScore` an exit, and a `ScoreChoice` that says what was compared and by how much it won.

A learned score often ranks worse than the softmax of its own model (Feng et al., arXiv 2206.09034).
So softmax ships unless another score's AUGRC is lower beyond a paired bootstrap interval that
allows for the number of scores compared. What is fitted here is judged out of fold: each image by
a fit that has seen neither it nor its group. Folds differ a little in scale, which counts against
the fitted scores, never for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from cascade_calib.arrays import Float64, Int64
from cascade_calib.metrics import augrc
from cascade_runtime.errors import ConfigError, DataError
from cascade_train.gates import ExitReadout, ExitScore
from cascade_train.posthoc import Basis, Rows, cross_fitted, exit_rows, fit_scores

ScoreName = Literal["softmax", "gate", "posthoc", "blend"]
WORDS: dict[ScoreName, str] = {
    "softmax": "the softmax margin",
    "gate": "the trained gate",
    "posthoc": "the post-hoc gate",
    "blend": "the blend of softmax margin, trained gate and post-hoc gate",
}
_CELLS = 2_000_000  # resamples x images held at once


class ScoreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which scores compete, and how they are judged. Softmax always does; alone, it ships.

    folds: parts of `val_select` for out-of-fold scores.
    components: how many leading components of the features the post-hoc gate reads.
    resamples, level: of the paired bootstrap; `level` holds for all challengers at once.
    least_errors: with fewer independent errors (groups that hold one), softmax ships unjudged.
    """

    candidates: tuple[ScoreName, ...] = ("softmax", "gate", "posthoc", "blend")
    folds: int = 5
    components: int = 32
    resamples: int = 2000
    level: float = 0.95
    least_errors: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "candidates": (set(self.candidates) <= set(WORDS), f"names of {', '.join(WORDS)}"),
            "folds": (self.folds >= 2, "2 or more"),
            "components": (self.components >= 1, "1 or more"),
            "resamples": (self.resamples >= 100, "100 or more"),
            "level": (0.5 <= self.level < 1, "from 0.5 to below 1, such as 0.95"),
            "least_errors": (self.least_errors >= 2, "2 or more"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for field, (good, expected) in limits.items():
            if not good:
                raise ConfigError(
                    f"scores.{field} is {getattr(self, field)!r}; expected {expected}"
                )


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One score's AUGRC with its interval, and its gain over softmax (positive: better).

    The gain's interval is the wider one that holds for all challengers together.
    """

    name: ScoreName
    augrc: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


class ExitChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What one exit ships and why; `candidates` is empty where nothing was compared."""

    exit: int
    chosen: ScoreName
    gain: float
    images: int
    errors: int
    candidates: tuple[Candidate, ...]
    sentence: str


class ScoreChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The choice at every exit, first exit first, and the settings it was made with."""

    exits: tuple[ExitChoice, ...]
    config: ScoreConfig


class Chosen(NamedTuple):
    """The record, and the modules to attach (`gates.attach_scores`) and to save."""

    choice: ScoreChoice
    scores: list[ExitScore]


def choose_scores(
    exits: Sequence[ExitReadout],
    labels: npt.ArrayLike,
    groups: Sequence[str] | None = None,
    config: ScoreConfig | None = None,
) -> Chosen:
    """Judge the candidates at every exit and fit the chosen one on all of `val_select`.

    Args:
        exits: from `gates.read_exits`, N images each.
        labels: [N], 0 or 1; groups: N names, images of one group are folded and drawn together.

    Raises:
        DataError: no images, or labels or groups of another length or kind.
    """
    config = config or ScoreConfig()
    y = np.asarray(labels)
    if not len(y) or any(len(out.gate) != len(y) for out in exits) or not np.isin(y, (0, 1)).all():
        raise DataError(
            f"val_select has {len(y)} labels; choosing a score needs one an image, each 0 or 1"
        )
    if groups is not None and len(groups) != len(y):
        raise DataError(f"there are {len(groups)} groups for {len(y)} images")
    group = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    made = [_choose(index, out, y, group, config) for index, out in enumerate(exits)]
    record = ScoreChoice(exits=tuple(choice for choice, _ in made), config=config)
    return Chosen(record, [score for _, score in made])


def _choose(
    index: int, out: ExitReadout, labels: npt.NDArray[np.integer], group: Int64, config: ScoreConfig
) -> tuple[ExitChoice, ExitScore]:
    rows, basis = exit_rows(out, labels, group, config.components)
    wrong = rows.right == 0
    independent = len(np.unique(group[wrong]))
    names: list[ScoreName] = [n for n in WORDS if n == "softmax" or n in config.candidates]
    candidates: tuple[Candidate, ...] = ()
    if len(names) > 1 and independent >= config.least_errors and not wrong.all():
        candidates = _judged(names, rows, config)
    proven = [c for c in candidates if c.gain_low > 0]
    best = min(proven, key=lambda c: c.augrc, default=None)
    chosen = best.name if best else "softmax"
    choice = ExitChoice(
        exit=index,
        chosen=chosen,
        gain=best.gain if best else 0.0,
        images=len(wrong),
        errors=int(wrong.sum()),
        candidates=candidates,
        sentence="",
    )
    choice = msgspec.structs.replace(choice, sentence=_sentence(choice, independent, config))
    return choice, _fitted(chosen, rows, basis, config)


def _fitted(name: ScoreName, rows: Rows, basis: Basis, config: ScoreConfig) -> ExitScore:
    """What ships; a score that is fitted, from all of `val_select`."""
    if name in ("softmax", "gate"):
        return basis.plain(softmax=name == "softmax")
    fitted = fit_scores(rows, config.folds, config.seed)
    return basis.module(fitted.blend if name == "blend" else fitted.posthoc)


def _judged(names: list[ScoreName], rows: Rows, config: ScoreConfig) -> tuple[Candidate, ...]:
    """AUGRC of each, and its gain over the first of them, softmax, on the same resamples."""
    scores: dict[ScoreName, Float64] = {"softmax": rows.margin, "gate": rows.gate}
    if {"posthoc", "blend"} & set(names):
        fitted = cross_fitted(rows, config.folds, config.seed)
        scores |= {"posthoc": fitted[0], "blend": fitted[1]}
    wrong = 1.0 - rows.right
    columns = np.stack([scores[name] for name in names])
    areas = [augrc(column, wrong) for column in columns]
    drawn = resampled_augrc(columns, wrong, rows.group, config.resamples, config.seed)
    gains = drawn[:, :1] - drawn
    shared = 1 - (1 - config.level) / (len(names) - 1)
    return tuple(
        Candidate(
            name=name,
            augrc=areas[i],
            gain=areas[0] - areas[i],
            **dict(zip(("low", "high"), _percentiles(drawn[:, i], config.level), strict=True)),
            **dict(zip(("gain_low", "gain_high"), _percentiles(gains[:, i], shared), strict=True)),
        )
        for i, name in enumerate(names)
    )


def resampled_augrc(
    scores: Float64, wrong: Float64, group: Int64, resamples: int, seed: int
) -> Float64:
    """AUGRC of each score under the same resamples of whole groups, [R, C].

    Args:
        scores: [C, N]; wrong: [N]; group: [N] whole numbers from 0.
    """
    orders = [np.argsort(-score, kind="stable") for score in scores]
    ties = [
        np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
        for score, order in zip(scores, orders, strict=True)
    ]
    rng = np.random.default_rng(seed)
    groups = int(group.max()) + 1
    step = max(1, _CELLS // len(wrong))
    found = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weight = rng.multinomial(groups, np.full(groups, 1 / groups), size=size)[:, group]
        found.append(
            np.stack(
                [
                    _areas(weight[:, order], wrong[order], last)
                    for order, last in zip(orders, ties, strict=True)
                ],
                axis=1,
            )
        )
    return np.concatenate(found)


def _areas(weight: npt.NDArray[np.integer], wrong: Float64, last_of_tie: Int64) -> Float64:
    """AUGRC per row of weights [R, N] over images in the order of trust."""
    accepted = np.cumsum(weight, axis=1)[:, last_of_tie].astype(np.float64)
    errors = np.cumsum(weight * wrong, axis=1)[:, last_of_tie]
    before = np.concatenate([np.zeros((len(weight), 1)), errors[:, :-1]], axis=1)
    width = np.diff(accepted, axis=1, prepend=0.0)
    return np.asarray((width * (errors + before)).sum(axis=1) / 2 / accepted[:, -1] ** 2)


def _percentiles(values: Float64, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sentence(choice: ExitChoice, independent: int, config: ScoreConfig) -> str:
    """What ships and by how much, for people."""
    ships = f"Exit {choice.exit} ships {WORDS[choice.chosen]}"
    on = f"{choice.errors} errors among {choice.images} images of val_select"
    rivals = [c for c in choice.candidates if c.name != "softmax"]
    if not rivals:
        if independent < config.least_errors:
            return f"{ships}: {on} ({independent} independent) are too few to compare scores by."
        return f"{ships}: nothing was compared with it."
    softmax = choice.candidates[0]
    best = min(rivals, key=lambda c: (c.name != choice.chosen, c.augrc))
    numbers = (
        f"{100 * config.level:g} % interval of the gain {best.gain_low:.5f} to {best.gain_high:.5f}"
    )
    if choice.chosen == "softmax":
        return (
            f"{ships} (AUGRC {softmax.augrc:.5f}, {on}): no other score is better beyond its "
            f"interval, nearest {WORDS[best.name]} with {best.augrc:.5f} ({numbers})."
        )
    return (
        f"{ships}: AUGRC {best.augrc:.5f} against {softmax.augrc:.5f} of the softmax margin "
        f"({numbers}; {on})."
    )
