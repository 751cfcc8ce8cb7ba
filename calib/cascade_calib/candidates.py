"""Several compiled forms of one network, of which one ships: which thresholds of which are proven.

In: per candidate what its engines said on `val_select`, the path proposed from it and its measured
speed; on demand what they say on `val_calib`. Out: one fixed sequence over (candidate, thresholds),
safest first and each next one faster, and how far its tests reach. The fastest pair that passes may
ship, at the whole of delta however many candidates there are: choosing among what passed costs
nothing, because the chance that anything false passes is delta for all of the sequence at once.
docs/decisions/0010-precision-search.md; CALIBRATION, "Certifying what is acted on".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cascade_calib.collect import Collected
from cascade_calib.path import (
    Proposal,
    Request,
    Thresholds,
    Walk,
    cheaper_and_cheaper,
    cheapest_covering,
    walk,
)
from cascade_runtime.manifest import ExitRule

METHOD = "fixed-sequence exact binomial test over candidates and thresholds"


@dataclass(frozen=True)
class Candidate:
    """One compiled form, with its scores and the path proposed on `val_select`.

    images_per_s: of the whole cascade at the thresholds that it is likely to be certified with,
    `proposal.path[likely]`.
    """

    name: str
    rules: tuple[ExitRule, ...]
    proposal: Proposal
    likely: int
    images_per_s: float

    def speed(self, vector: int) -> float:
        """Images a second with another vector of the path, by the costs of the stages."""
        cost = self.proposal.cost
        return self.images_per_s * float(cost[self.likely] / cost[vector])


@dataclass(frozen=True)
class Step:
    """One hypothesis of the sequence: a candidate's index, and a vector of its path."""

    candidate: int
    vector: int


@dataclass(frozen=True)
class Found:
    """How far the sequence came: `passed` of the `tested` first steps, and the step that ships.

    walks: per candidate that was asked anything, its own steps; they count what passed in the
    sequence, not what would have passed alone.
    """

    steps: list[Step]
    tested: int
    passed: int
    chosen: int | None
    walks: dict[int, Walk]

    @property
    def shipped(self) -> int | None:
        """The candidate that ships; None where nothing is proven."""
        return None if self.chosen is None else self.steps[self.chosen].candidate


def lay_sequence(candidates: Sequence[Candidate]) -> list[Step]:
    """All candidates' paths as one: by danger, and of these what is faster than all before.

    Everything in it comes from `val_select` and a clock, so it counts as fixed before `val_calib`
    is looked at. A candidate that is both slower and in more danger than another is never asked.
    Of equals the one whose name comes first.
    """
    steps = [
        Step(index, vector)
        for index, candidate in enumerate(candidates)
        for vector in range(len(candidate.proposal.path))
    ]
    danger, ranks = [], []
    for step in steps:
        candidate = candidates[step.candidate]
        danger.append(float(candidate.proposal.danger[step.vector]))
        coverage = float(candidate.proposal.coverage[step.vector])
        ranks.append((1 / candidate.speed(step.vector), -coverage))
    names = [candidates[step.candidate].name for step in steps]
    order = sorted(range(len(steps)), key=lambda i: (danger[i], ranks[i], names[i]))
    return [steps[i] for i in cheaper_and_cheaper(order, ranks)]


def walk_sequence(
    candidates: Sequence[Candidate],
    steps: list[Step],
    calib: Callable[[int], Collected],
    stage_costs: Sequence[float],
    request: Request,
) -> Found:
    """Test the steps in their order until one fails, and keep the fastest with enough coverage.

    Args:
        calib: what a candidate's engines say on `val_calib`; asked only once a candidate's turn
            comes.
    """
    rows = _own_rows(steps)
    walks: dict[int, Walk] = {}
    passed = 0
    for step, row in zip(steps, rows, strict=True):
        index = step.candidate
        if index not in walks:
            own = own_path(steps, index, candidates[index].proposal)
            rules = candidates[index].rules
            walks[index] = walk(own, rules, calib(index), stage_costs, request)
        if walks[index].decisive[row] > float(request.share):
            break
        passed += 1
    tested = min(passed + 1, len(steps))
    counted = {i: _within(made, i, steps, tested, passed, request) for i, made in walks.items()}
    shipping = [i for i in range(passed) if counted[steps[i].candidate].chosen == rows[i]]
    return Found(steps, tested, passed, shipping[-1] if shipping else None, counted)


def own_path(steps: Sequence[Step], candidate: int, proposal: Proposal) -> list[Thresholds]:
    """The vectors of one candidate that are in the sequence, in the order of its `Walk`."""
    return [proposal.path[step.vector] for step in steps if step.candidate == candidate]


def _own_rows(steps: Sequence[Step]) -> list[int]:
    """For each step, how many of the same candidate come before it."""
    seen: Counter[int] = Counter()
    rows = []
    for step in steps:
        rows.append(seen[step.candidate])
        seen[step.candidate] += 1
    return rows


def _within(
    alone: Walk, candidate: int, steps: Sequence[Step], tested: int, passed: int, request: Request
) -> Walk:
    """A candidate's walk as far as the sequence came: what would pass alone does not count."""
    own = Counter(step.candidate for step in steps[:passed])[candidate]
    asked = Counter(step.candidate for step in steps[:tested])[candidate]
    seen = alone.outcomes
    chosen = cheapest_covering(seen.accepted[:own], request.coverage, seen.images)
    return replace(alone, tested=asked, passed=own, chosen=chosen)
