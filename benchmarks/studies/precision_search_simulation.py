"""Choosing among compiled candidates on one calibration set: which procedure keeps the promise?

In: worlds of ten candidates whose true risk is known from a large sample, and procedures that
choose what ships. Out: per world and procedure how often anything ships, how often what ships has a
true risk above alpha (the promise allows delta), and the mean speed of what ships, nothing being 0;
as Markdown with `--write`. "one sequence" is the product's own code (`cascade_calib.candidates`);
"best uncorrected", each candidate at the whole of delta and the fastest that passes, is the control
that must break the promise.

    python benchmarks/studies/precision_search_simulation.py --draws 1000
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import click
import numpy as np

from cascade_calib.candidates import Candidate, lay_sequence, walk_sequence
from cascade_calib.certify_target import fit_rules
from cascade_calib.collect import Collected
from cascade_calib.path import (
    Request,
    Thresholds,
    Walk,
    as_float32,
    cheapest_covering,
    outcomes,
    propose,
    walk,
)
from cascade_runtime.decision import ExitOutputs

CANDIDATES = 10
COSTS = (1.0, 1.0)
SEPARATION = (2.2, 3.2)  # of the classes at the two exits, in standard deviations
LARGE = 100_000
SPEEDS = np.geomspace(1, 4, CANDIDATES)
PROCEDURES = (
    "one sequence",
    "delta / m each",
    "geometric weights",
    "fallback",
    "best uncorrected",
)


@dataclass(frozen=True)
class World:
    """What ten candidates, the last one fastest, say of the same images.

    noise: what each adds to the float32 network's score, in standard deviations of the image.
    own: how far a candidate errs on images of its own: 0, the same network; 1, another network.
    above: all thresholds of all candidates have this risk, in shares of alpha (a null world).
    """

    name: str
    noise: Sequence[float]
    own: float = 0.0
    above: float | None = None
    n_select: int = 1000
    n_calib: int = 2000
    alpha: str = "0.05"
    coverage: str = "0.6"

    @property
    def request(self) -> Request:
        return Request(Fraction(self.alpha), Fraction(1, 20), Fraction(self.coverage))

    def draw(self, n: int, rng: np.random.Generator) -> list[Collected]:
        """The outputs of every candidate on n new images."""
        labels = rng.integers(0, 2, n)
        shared = [rng.normal(size=n) for _ in SEPARATION]
        stamp = f"{rng.integers(1 << 62):x}"
        return [self._candidate(labels, shared, noise, stamp, rng) for noise in self.noise]

    def _candidate(
        self,
        labels: np.ndarray,
        shared: Sequence[np.ndarray],
        noise: float,
        stamp: str,
        rng: np.random.Generator,
    ) -> Collected:
        n, sign = len(labels), 2 * labels - 1
        if self.above is not None:  # right or wrong by a coin, whatever the score
            wrong = rng.random(n) < self.above * float(self.request.alpha)
            score = rng.uniform(0.5, 5, n)
            return _collected([np.where(wrong, -sign, sign) * score] * 2, labels, stamp)
        margins = []
        for apart, common in zip(SEPARATION, shared, strict=True):
            mine = np.sqrt(1 - self.own**2) * common + self.own * rng.normal(size=n)
            margins.append(apart * (sign * apart / 2 + mine + noise * rng.normal(size=n)))
        return _collected(margins, labels, stamp)


NULL = World("all above alpha", [0.0] * CANDIDATES, above=1.005)
WORLDS = (
    World("rounding", [0.02] * CANDIDATES),
    World("graded", list(np.linspace(0.02, 0.8, CANDIDATES))),
    World("three are bad", [0.02] * 7 + [0.5, 0.9, 1.2]),
    World("small val_select", [0.02] * 7 + [0.5, 0.9, 1.2], n_select=200),
    World("barely provable", [0.02] * CANDIDATES, n_calib=300, coverage="0.7"),
    World("other networks", [0.0] * CANDIDATES, own=1.0),
    NULL,
)


def _collected(margins: Sequence[np.ndarray], labels: np.ndarray, stamp: str) -> Collected:
    exits = [
        ExitOutputs(
            np.stack([-m / 2, m / 2], axis=1).astype(np.float32), np.abs(m).astype(np.float32)
        )
        for m in margins
    ]
    return Collected(exits, labels.astype(np.int8), ("",) * len(labels), stamp)


Choice = tuple[int, Thresholds] | None
"""The candidate and the thresholds that ship; None: nothing is proven."""


@dataclass
class Tally:
    """What one procedure did in one world."""

    world: str
    procedure: str
    draws: int = 0
    shipped: int = 0
    broken: int = 0
    speed: float = 0.0

    @property
    def rate(self) -> float:
        return self.broken / self.draws

    @property
    def limit(self) -> float:
        """delta and three standard errors."""
        return 0.05 + 3 * float(np.sqrt(0.05 * 0.95 / self.draws))


def simulate(
    worlds: Sequence[World] = WORLDS,
    selects: int = 20,
    calibs: int = 50,
    procedures: Sequence[str] = PROCEDURES,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Tally]:
    """Every procedure in every world, `selects` times `calibs` draws of the two splits."""
    tallies = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([seed, number])
        found = {name: Tally(world.name, name) for name in procedures}
        large = None if world.above is not None else world.draw(LARGE, rng)
        for _ in range(selects):
            candidates = _propose(world, world.draw(world.n_select, rng))
            truth = _Truth(world, candidates, large)
            for _ in range(calibs):
                calib = world.draw(world.n_calib, rng)
                for name, choice in _choices(world, candidates, calib, procedures):
                    _count(found[name], world, choice, truth)
        tallies += found.values()
        say(f"{world.name}: done")
    return tallies


def _propose(world: World, select: list[Collected]) -> list[Candidate]:
    candidates = []
    for index, data in enumerate(select):
        rules = fit_rules(data)
        proposal = propose(data, rules, COSTS, world.request, n_calib=world.n_calib)
        likely = proposal.likely(world.request.share)
        cost = proposal.cost[likely] if proposal.path else 1.0
        speed = float(SPEEDS[index] / cost)
        candidates.append(Candidate(f"candidate {index}", rules, proposal, likely, speed))
    return candidates


class _Truth:
    """True risk and speed of a choice, counted on a large sample; looked up once a choice."""

    def __init__(
        self, world: World, candidates: list[Candidate], large: list[Collected] | None
    ) -> None:
        self._world, self._candidates, self._large = world, candidates, large
        self._seen: dict[tuple[int, Thresholds], tuple[float, float]] = {}

    def __call__(self, index: int, taus: Thresholds) -> tuple[float, float]:
        if self._large is None:
            return (self._world.above or 0.0) * float(self._world.request.alpha), SPEEDS[index]
        if (index, taus) not in self._seen:
            rules = self._candidates[index].rules
            seen = outcomes(self._large[index], rules, COSTS, as_float32([taus], len(rules)))
            risk = float(seen.errors[0] / max(1, seen.accepted[0]))
            self._seen[index, taus] = risk, float(SPEEDS[index] / seen.cost[0])
        return self._seen[index, taus]


def _count(tally: Tally, world: World, choice: Choice, truth: _Truth) -> None:
    tally.draws += 1
    if choice is None:
        return
    risk, speed = truth(*choice)
    tally.shipped += 1
    tally.speed += speed
    tally.broken += risk > float(world.request.alpha)


def _choices(
    world: World,
    candidates: list[Candidate],
    calib: list[Collected],
    procedures: Sequence[str],
) -> Iterator[tuple[str, Choice]]:
    request = world.request
    if "one sequence" in procedures:
        steps = lay_sequence(candidates)
        found = walk_sequence(candidates, steps, lambda i: calib[i], COSTS, request)
        step = None if found.chosen is None else steps[found.chosen]
        taken = step and (step.candidate, candidates[step.candidate].proposal.path[step.vector])
        yield "one sequence", taken
    if set(procedures) == {"one sequence"}:
        return
    alone = [
        walk(c.proposal.path, c.rules, data, COSTS, request)
        for c, data in zip(candidates, calib, strict=True)
    ]
    delta, m = float(request.delta), len(candidates)
    by_speed = sorted(range(m), key=lambda i: -candidates[i].images_per_s)
    halves = [2.0 ** -(place + 1) for place in range(m)]
    halves[-1] *= 2
    weights = {
        "delta / m each": [delta / m] * m,
        "geometric weights": [delta * halves[by_speed.index(i)] for i in range(m)],
        "best uncorrected": [delta] * m,
    }
    for name in procedures:
        if name in weights:
            passed = [_passed(w, level) for w, level in zip(alone, weights[name], strict=True)]
            yield name, _fastest(candidates, alone, passed, request)
        elif name == "fallback":
            passed = _fallback(candidates, alone, delta)
            yield name, _fastest(candidates, alone, passed, request)


def _passed(alone: Walk, level: float) -> int:
    failures = np.flatnonzero(alone.decisive > level)
    return int(failures[0]) if len(failures) else len(alone.decisive)


def _fallback(candidates: list[Candidate], alone: list[Walk], delta: float) -> list[int]:
    """Wiens 2003: delta / m each, safest first; who passes to its end hands its share on.

    A candidate's path ends at the thresholds it was proposed with, or nothing would be handed on.
    """
    passed, carried = [0] * len(candidates), 0.0
    safest = sorted(
        (i for i, c in enumerate(candidates) if c.proposal.path),
        key=lambda i: float(candidates[i].proposal.danger[0]),
    )
    for i in safest:
        level = delta / len(candidates) + carried
        end = candidates[i].likely + 1
        passed[i] = min(end, _passed(alone[i], level))
        carried = level if passed[i] == end else 0.0
    return passed


def _fastest(
    candidates: list[Candidate], alone: list[Walk], passed: list[int], request: Request
) -> Choice:
    """Of all that passed and cover enough, the fastest by the figures of `val_select`."""
    options = []
    for index, (walked, count) in enumerate(zip(alone, passed, strict=True)):
        seen = walked.outcomes
        vector = cheapest_covering(seen.accepted[:count], request.coverage, seen.images)
        if vector is not None:
            options.append((candidates[index].speed(vector), index, vector))
    if not options:
        return None
    _, index, vector = max(options)
    return index, candidates[index].proposal.path[vector]


def table(tallies: Sequence[Tally]) -> list[str]:
    """Markdown: a row a world, a column a procedure: broken / shipped in per cent, mean speed."""
    names = list(dict.fromkeys(t.procedure for t in tallies))
    lines = [f"| world | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for world in dict.fromkeys(t.world for t in tallies):
        cells = [
            f"{100 * t.rate:.1f} / {100 * t.shipped / t.draws:.0f}, {t.speed / t.draws:.2f}"
            for t in tallies
            if t.world == world
        ]
        lines.append(f"| {world} | {' | '.join(cells)} |")
    return lines


@click.command()
@click.option("--draws", default=1000, show_default=True, type=click.IntRange(50))
@click.option("--seed", default=0, show_default=True)
@click.option("--write", type=click.Path(path_type=Path), help="A file for the table.")
def main(draws: int, seed: int, write: Path | None) -> None:
    """Simulate; status 1 if a procedure breaks its promise, or the control does not."""
    tallies = simulate(selects=draws // 50, seed=seed, say=lambda line: click.echo(line, err=True))
    text = "\n".join(table(tallies))
    click.echo(text)
    if write:
        write.write_text(text + "\n")
    broken = {t.procedure for t in tallies if t.rate > t.limit}
    if broken != {"best uncorrected"}:
        raise click.ClickException(f"beyond delta: {sorted(broken)}, expected the control alone")


if __name__ == "__main__":
    main()
