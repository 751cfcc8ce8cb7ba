"""`--precision auto`: of all the forms of a network that run here, ship the fastest that is proven.

In: a `Job` and the names of the candidates. Out: what ships, and a table of everything looked at.
Each candidate is built, compared with the network and run over `val_select`, which proposes its
thresholds; then all are timed together, one sequence of tests is laid (`candidates.lay_sequence`)
and only then `val_calib` is run, on the candidates whose turn comes. The thresholds and the order
depend on nothing but `val_select` and the clock, and the tests of all candidates share one delta.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from cascade_calib.candidates import (
    METHOD,
    Candidate,
    Found,
    lay_sequence,
    own_path,
    walk_sequence,
)
from cascade_calib.certify_engines import CertifiedTarget, collected, costs, record
from cascade_calib.certify_target import conclude, decision_of, fit_rules, tied
from cascade_calib.collect import Collected
from cascade_calib.path import SET_POLICIES, Request, propose, walk
from cascade_calib.report import Evidence
from cascade_calib.search_words import verdicts
from cascade_compile.build_target import (
    Job,
    build_engines,
    compare,
    engine_hashes,
    open_stages,
    spread,
)
from cascade_compile.parity import Parity
from cascade_compile.speed import MOST_IMAGES, Timed, measure_speed
from cascade_compile.targets import TargetName, every_target, runs_here
from cascade_runtime.bundle import engine_files
from cascade_runtime.decision import decide
from cascade_runtime.engines import BACKENDS
from cascade_runtime.errors import CascadeError, ConfigError, TargetError
from cascade_runtime.manifest import (
    Decision,
    Outcome,
    Search,
    SearchCandidate,
    Target,
    stage_inputs,
)
from cascade_runtime.stages import Stages

BATCH = 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class SearchRequest:
    """How to search. batch: images at a time when speed is measured, as the device will get them.

    keep_all: every candidate that was built stays in the bundle; those not proven defer everything.
    """

    batch: int = BATCH
    keep_all: bool = False


@dataclass(frozen=True)
class _Built:
    """A candidate that is what the network is, with what `val_select` says of it.

    proposed: with the thresholds that it is likely to be certified with; what is timed and shown.
    """

    name: TargetName
    target: Target
    stages: Stages
    compared: Parity
    select: Collected
    candidate: Candidate
    proposed: Decision


def default_candidates() -> tuple[TargetName, ...]:
    """Everything that can be built and run on this machine, and on a device without torch."""
    return tuple(name for name in every_target() if name.backend in BACKENDS and runs_here(name))


def check_promise(promise: Request) -> None:
    """Whether a search can prove such a promise; asked before `val_calib` counts as used.

    Raises:
        ConfigError: the policy fits thresholds where a sequence of tests would need them fixed.
    """
    if promise.policy in SET_POLICIES:
        raise ConfigError(
            f"--precision auto tests thresholds in one sequence, and {promise.policy} fits them "
            "instead; name one --target, or take the policy certified, softmax or gate"
        )
    if promise.claims != 1:
        raise ValueError(f"claims is {promise.claims}; a search tests one sequence at all of delta")


def search(
    job: Job, names: Sequence[TargetName], request: SearchRequest, say: Say
) -> tuple[dict[str, CertifiedTarget], Search]:
    """Build all candidates, measure, test, and keep the engines of what ships.

    Where no certificate holds, the safest candidate ships, INFEASIBLE, and defers everything.

    Raises:
        TargetError: no candidate is left.
    """
    built, left_out = _build_all(job, names, say)
    built, timed = _by_speed(job, built, request.batch)
    candidates = [b.candidate for b in built]
    steps = lay_sequence(candidates)
    say(
        f"val_calib: {len(steps)} hypotheses about {len({s.candidate for s in steps})} of "
        f"{len(built)} candidates, in one sequence"
    )
    calib = _Calib(job, built)
    found = walk_sequence(candidates, steps, calib.of, costs(job.infos), job.promise)
    said = verdicts(candidates, found, job.promise)
    first = _ships(found)
    kept = [first, *(i for i in range(len(built)) if request.keep_all and i != first)]
    made = {
        str(built[i].name): _certified(job, built[i], i, found, calib.of(i), said[i]) for i in kept
    }
    rows = [_row(job, b, i, timed, found, said[i]) for i, b in enumerate(built)]
    for b in built:
        if str(b.name) not in made:
            _remove(job, b.name)
    return made, Search(
        candidates=(*rows, *left_out),
        n_select=len(job.select.pixels),
        timed=timed.images,
        batch=timed.batch,
        rounds=timed.rounds,
        sequence_length=len(steps),
        sequence_tested=found.tested,
    )


def _build_all(
    job: Job, names: Sequence[TargetName], say: Say
) -> tuple[list[_Built], list[SearchCandidate]]:
    """Those that can be built and say what the network says, and the others with their reason."""
    built: list[_Built] = []
    left_out: list[SearchCandidate] = []
    for number, name in enumerate(names, 1):
        say(f"candidate {number} of {len(names)}, {name}: building it, running val_select")
        try:
            built.append(_build(job, name))
        except (CascadeError, ImportError, RuntimeError) as error:  # engines raise RuntimeError
            reason = " ".join(str(error).split()).removeprefix(f"{name}: ") or type(error).__name__
            left_out.append(SearchCandidate(name=str(name), outcome="left out", reason=reason))
            _remove(job, name)
            say(f"{name}: left out. {reason}")
    if not built:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in left_out)
        raise TargetError(f"no candidate is left to choose from: {reasons or 'none was named'}")
    return built, left_out


def _build(job: Job, name: TargetName) -> _Built:
    target = build_engines(job, name)
    stages = open_stages(job, name, target)
    target, compared = compare(job, name, target, stages)
    select = collected(stages, job.select, f"{name} val_select", job.progress)
    rules = fit_rules(select, job.promise.policy)
    n_calib = len(job.calib.pixels)
    proposal = propose(select, rules, costs(job.infos), job.promise, n_calib=n_calib)
    likely = proposal.likely(job.promise.share)
    thresholds = proposal.path[likely] if proposal.path else None
    proposed = decision_of(rules, thresholds, job.promise.policy)
    candidate = Candidate(str(name), rules, proposal, likely, 0.0)
    return _Built(name, target, stages, compared, select, candidate, proposed)


def _by_speed(job: Job, built: Sequence[_Built], batch: int) -> tuple[list[_Built], Timed]:
    """The candidates with their measured speed, the fastest first."""
    pixels = spread(job.select.pixels, MOST_IMAGES)
    cascades = {str(b.name): (b.stages, b.proposed) for b in built}
    timed = measure_speed(cascades, pixels, batch, progress=job.progress)
    measured = [
        replace(b, candidate=replace(b.candidate, images_per_s=speed.images_per_s))
        for b in built
        for speed in (timed.speeds[str(b.name)],)
    ]
    return sorted(measured, key=lambda b: (-b.candidate.images_per_s, str(b.name))), timed


class _Calib:
    """`val_calib` on a candidate's engines, run when it is first asked for and never again."""

    def __init__(self, job: Job, built: Sequence[_Built]) -> None:
        self._job, self._built = job, built
        self._seen: dict[int, Collected] = {}

    def of(self, index: int) -> Collected:
        if index not in self._seen:
            b = self._built[index]
            what = f"{b.name} val_calib"
            self._seen[index] = collected(b.stages, self._job.calib, what, self._job.progress)
        return self._seen[index]


def _ships(found: Found) -> int:
    """Whose engines ship: the fastest proven, else the safest, else simply the fastest."""
    if found.shipped is not None:
        return found.shipped
    return found.steps[0].candidate if found.steps else 0


def _certified(
    job: Job, b: _Built, index: int, found: Found, calib: Collected, said: tuple[Outcome, str]
) -> CertifiedTarget:
    """What is proven of one candidate by its part of the sequence, tied to its engines."""
    rules, path = b.candidate.rules, own_path(found.steps, index, b.candidate.proposal)
    result, advice = found.walks.get(index), None
    if result is None:  # not tested, though others were; only its counts are taken here
        alone = walk(path, rules, calib, costs(job.infos), job.promise)
        result = replace(alone, tested=0, passed=0, chosen=None)
        advice = f"Not tested: {said[1]}." if b.candidate.proposal.path else None
    decision, certificate = conclude(
        b.select, calib, rules, path, result, job.promise, advice=advice
    )
    tested = {"path_length": len(found.steps), "path_tested": found.tested}
    certificate = tied(
        msgspec.structs.replace(certificate, method=METHOD, **tested),
        decision,
        preprocess=job.preprocess,
        engines=engine_hashes(job, b.target),
        inputs=stage_inputs(job.infos),
        calibration_uses=job.calibration_uses,
    )
    target = msgspec.structs.replace(
        b.target,
        images_per_s=b.candidate.images_per_s,
        parity=b.compared.figures(decision),
    )
    evidence = Evidence(b.select, calib, job.select.pixels if job.thumbnails else None)
    return record(b.stages, str(b.name), target, decision, certificate, evidence, job.select)


def _row(
    job: Job, b: _Built, index: int, timed: Timed, found: Found, said: tuple[Outcome, str]
) -> SearchCandidate:
    """A line of the table; risk and coverage are those of `val_select`."""
    verdict = decide(b.select.exits, b.proposed)
    wrong = verdict.acted & (verdict.label != b.select.labels)
    result, speed = found.walks.get(index), timed.speeds[str(b.name)]
    sizes = [(job.folder / path).stat().st_size for path in engine_files(b.target)]
    return SearchCandidate(
        name=str(b.name),
        outcome=said[0],
        reason=said[1],
        engine_bytes=sum(sizes),
        parity=b.compared.figures(b.proposed),
        images_per_s=speed.images_per_s,
        slowest=speed.slowest,
        fastest=speed.fastest,
        accepted=int(verdict.acted.sum()),
        errors=int(wrong.sum()),
        steps=sum(step.candidate == index for step in found.steps),
        tested=0 if result is None else result.tested,
        passed=0 if result is None else result.passed,
    )


def _remove(job: Job, name: TargetName) -> None:
    shutil.rmtree(job.folder / "targets" / name.folder, ignore_errors=True)
