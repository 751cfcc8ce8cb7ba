"""Where a cascade should exit: what every choice among its exits is expected to cost and cover.

In: what all exits say on `val_select`, and what the stages cost. Out: a `Placement` for each
choice, with the thresholds that `certify` would propose for it (`cascade_calib.path`): the same
candidates, weighed by the same multiply-adds, and the cheapest that is expected to be proven.
Nothing here has seen `val_calib` but how many images it has, so a certificate of what is chosen
promises as much as any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any

from cascade_calib.bounds import pass_probability
from cascade_calib.certify_target import decision_of
from cascade_calib.collect import Collected
from cascade_calib.path import Request, propose
from cascade_compile.stage_times import Times
from cascade_runtime.decision import decide
from cascade_runtime.manifest import ExitRule

CHANCE = 0.95  # of the best of many thresholds on `val_select`, so a little less than it says


@dataclass(frozen=True)
class Exits:
    """A network's S exits: what they said on `val_select`, their rules, and what they cost.

    blocks: after which each of them stands; macs: multiply-adds an image of each stage.
    """

    seen: Collected
    rules: tuple[ExitRule, ...]
    blocks: tuple[int, ...]
    macs: tuple[float, ...]
    times: Times


@dataclass(frozen=True)
class Placement:
    """One choice of exits, and what `val_select` and the clock expect of it.

    exits: blocks after which to exit. ms: an image. reach: share of the images that come to each
    exit. coverage: acted on; risk: wrong among those, half as counted (`path.propose`).
    chance: that a certificate comes out, were `val_select` all there is to know: that the safest
    thresholds pass their test on `val_calib`.
    """

    exits: tuple[int, ...]
    ms: float
    reach: tuple[float, ...]
    coverage: float
    risk: float
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def subsets(exits: int, most: int) -> Iterator[tuple[int, ...]]:
    """Every choice of up to `most` exits by their number, and all of them; fewer first."""
    for count in range(1, min(most, exits) + 1):
        yield from combinations(range(exits), count)
    if most < exits:
        yield tuple(range(exits))


def expect(exits: Exits, kept: Sequence[int], request: Request, n_calib: int) -> Placement | None:
    """What is expected of the exits `kept`; None where no thresholds reach the coverage floor."""
    rules = tuple(exits.rules[i] for i in kept)
    outputs = [exits.seen.exits[i] for i in kept]
    seen = Collected(
        outputs, exits.seen.labels, exits.seen.names, exits.seen.content_sha256, exits.seen.groups
    )
    starts = (0, *(i + 1 for i in kept))
    macs = [sum(exits.macs[a:b]) for a, b in pairwise(starts)]
    proposal = propose(seen, rules, macs, request, n_calib=n_calib)
    if not proposal.path:
        return None
    likely = proposal.likely(request.share)
    decision = decision_of(rules, proposal.path[likely], request.policy)
    verdict = decide(outputs, decision)
    safest = float(proposal.coverage[0]), float(proposal.risk[0])
    chance = pass_probability(n_calib, request.alpha, request.share, *safest)
    hopeless = proposal.danger[0] > float(request.share)  # also by what is promised of the FNR
    reach = tuple(float((verdict.stage >= stage).mean()) for stage in range(len(kept)))
    return Placement(
        exits=tuple(exits.blocks[i] for i in kept),
        ms=1e3 * exits.times.an_image(kept, reach),
        reach=reach,
        coverage=float(verdict.acted.mean()),
        risk=float(proposal.risk[likely]),
        chance=0.0 if hopeless else chance,
    )


def choose(
    placements: Sequence[Placement], chance: float = CHANCE, within: float | None = None
) -> Placement | None:
    """The fastest that is likely enough to be certified; of equals the one that covers more.

    Args:
        chance: the least that it must have.
        within: how much less it may cover than the best of them; None: the floor alone counts.
    """
    likely = [p for p in placements if p.chance >= chance]
    if within is not None:
        best = max((p.coverage for p in likely), default=0.0)
        likely = [p for p in likely if p.coverage >= best - within]
    return min(likely, key=lambda p: (p.ms, -p.coverage, p.exits), default=None)
