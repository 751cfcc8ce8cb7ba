"""What became of each candidate of a search, and why it did not ship, in words.

In: the candidates, and how far their sequence of tests came. Out: an outcome and a sentence each.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascade_calib.bounds import clopper_pearson_upper
from cascade_calib.candidates import Candidate, Found
from cascade_calib.path import Request, Walk
from cascade_calib.words import percent
from cascade_runtime.manifest import Outcome


def verdicts(
    candidates: Sequence[Candidate], found: Found, request: Request
) -> list[tuple[Outcome, str]]:
    """Outcome and reason of every candidate, in their order."""
    return [_verdict(index, candidates, found, request) for index in range(len(candidates))]


def _verdict(
    index: int, candidates: Sequence[Candidate], found: Found, request: Request
) -> tuple[Outcome, str]:
    if not candidates[index].proposal.path:
        floor = percent(request.coverage)
        return "left out", f"no thresholds reach the coverage of {floor} on val_select"
    if found.shipped == index:
        return "shipped", "the fastest whose certificate holds"
    result = found.walks.get(index)
    if result is not None and result.chosen is not None:
        return "certified", f"holds as well; {_name(candidates, found.shipped)} is faster"
    if result is not None:
        return "failed", _failure(result, request)
    if any(step.candidate == index for step in found.steps):
        last = found.steps[found.tested - 1].candidate
        return "not reached", f"the tests ended at {candidates[last].name}, before its turn"
    return "passed over", _dominated(index, candidates, found)


def _failure(result: Walk, request: Request) -> str:
    """Why no vector of those tested holds: the test itself, or the coverage."""
    seen = result.outcomes
    if not result.passed:
        k, e = int(seen.accepted[0]), int(seen.errors[0])
        bound = percent(clopper_pearson_upper(e, k, request.share))
        which = "its safest tested thresholds"
        missed = ""
        if seen.missed is not None and seen.positives is not None:
            missed = f" and missed {seen.missed[0]} of {seen.positives[0]} positives"
        return (
            f"at {which} it was wrong on {e:,} of {k:,} acted on{missed}: risk up to {bound}, "
            f"p = {result.decisive[0]:.2g} against {float(request.share):.2g}"
        )
    most = int(seen.accepted[: result.passed].max()) / max(1, seen.images)
    return (
        f"proven thresholds act on at most {percent(most)} of val_calib, "
        f"{percent(request.coverage)} were asked for"
    )


def _dominated(index: int, candidates: Sequence[Candidate], found: Found) -> str:
    """Who is in the sequence in its place, where it would be at its safest."""
    danger = float(candidates[index].proposal.danger[0])
    better = [
        step.candidate
        for step in found.steps
        if float(candidates[step.candidate].proposal.danger[step.vector]) <= danger
    ]
    return f"{candidates[better[-1]].name} is faster and promises at least as well on val_select"


def _name(candidates: Sequence[Candidate], index: int | None) -> str:
    return "another" if index is None else candidates[index].name
