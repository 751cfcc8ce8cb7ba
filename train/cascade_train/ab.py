"""`cascade-train ab`: two configurations, trained with the same seeds on the same split, compared.

In: two `TrainConfig`. Out: a folder with a run for each arm and seed, `result.json` and `ab.png`.
The arms alternate (A B, B A, ...), so that a machine that slows down hits both; each training is a
process of its own; what is finished is kept, so that a stopped comparison goes on where it was and
a crash costs one run. All runs share one split, so the seeds vary the training alone and every
network answers the same test images. What the numbers can carry is `paired`'s to say.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from cascade_calib.bootstrap import Interval
from cascade_runtime.errors import ConfigError
from cascade_train.ab_arm import Outcome, read_outcome
from cascade_train.checkpoint import write_atomic
from cascade_train.config import TrainConfig, differing, request_of, to_yaml
from cascade_train.data.splits import read_splits
from cascade_train.fit import Say
from cascade_train.paired import Outputs, at_once, holm, image_variances, paired_estimate
from cascade_train.record import json_safe

ARMS = ("A", "B")
PRIMARY = "augrc"
LEVEL = 0.95
_SAME = ("data", "fractions", "positive", "split_seed")

Kind = Literal["primary", "secondary", "cost"]
Side = Literal["A", "B", "neither"]


@dataclass(frozen=True)
class Figure:
    """One figure, A against B; `first` and `second` are their values, a seed each.

    of_seeds: the 95 % interval of B - A over seeds, on these test images. interval: with new test
    images as well, by which `better` is judged; for a cost the two are the same. p: of a
    secondary figure, Holm's for all of them; a cost is not judged.
    """

    name: str
    kind: Kind
    first: tuple[float, ...]
    second: tuple[float, ...]
    difference: float
    of_seeds: Interval
    interval: Interval
    p: float
    better: Side


@dataclass(frozen=True)
class Failure:
    """A training that did not come to its end."""

    arm: str
    seed: int
    reason: str


@dataclass(frozen=True)
class AbResult:
    """result.json. `seeds` are those in which both arms came to their end.

    changed: the settings in which the arms differ, A's value and B's. looks: how many numbers of
    seeds this folder was evaluated with. winner: by AUGRC, "neither" unless the interval says so.
    """

    names: tuple[str, str]
    changed: dict[str, tuple[Any, Any]]
    data: str
    seeds: tuple[int, ...]
    images: int
    groups: int | None
    figures: tuple[Figure, ...]
    scores: dict[str, tuple[tuple[str, ...], ...]]
    failures: tuple[Failure, ...]
    looks: int
    winner: Side

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: NaN becomes None."""
        return {"primary": PRIMARY, "level": LEVEL} | {
            k: json_safe(v) for k, v in asdict(self).items()
        }


class _Plan(msgspec.Struct, kw_only=True):
    """ab.json: what the folder compares, and the numbers of seeds it was evaluated with."""

    a: str
    b: str
    looks: list[int] = []


Trained = dict[tuple[str, int], tuple[Outcome, Outputs]]


def run_ab(
    first: TrainConfig,
    second: TrainConfig,
    out: Path,
    *,
    seeds: int = 5,
    names: tuple[str, str] = ARMS,
    say: Say = print,
) -> AbResult:
    """Train both arms with every seed, or what is missing of that, and compare.

    The seeds are 0 .. seeds - 1, whatever the configurations say.

    Raises:
        ConfigError: the arms cannot be compared, or `out` holds another comparison.
        DataError: an arm started from weights that have seen the test images.
    """
    arms = _arms(first, second)
    plan = _claim(out, arms)
    trained: Trained = {}
    failures = []
    for arm, seed in _order(seeds):
        found = _train(arms[arm], out, arm, seed, say)
        if isinstance(found, Failure):
            say(f"{arm} seed {seed} failed: {found.reason}")
            failures.append(found)
        else:
            trained[arm, seed] = found
    both = tuple(s for s in range(seeds) if all((arm, s) in trained for arm in ARMS))
    if len(both) >= 2 and len(both) not in plan.looks:
        plan.looks.append(len(both))
        _write_plan(out, plan)
    result = _compare(arms, names, trained, both, out, failures, len(plan.looks))
    data = msgspec.json.format(msgspec.json.encode(result.to_dict()), indent=2) + b"\n"
    write_atomic(out / "result.json", data)
    return result


def _arms(first: TrainConfig, second: TrainConfig) -> dict[str, TrainConfig]:
    """Both configurations with the split of the first; they must be about the same images."""
    for field in _SAME:
        a, b = getattr(first, field), getattr(second, field)
        if a != b:
            raise ConfigError(
                f"{field} is {a!r} in A and {b!r} in B; a paired comparison needs the same images "
                "in the same split"
            )
    split_seed = first.fit.seed if first.split_seed is None else first.split_seed
    arms = {}
    for arm, config in zip(ARMS, (first, second), strict=True):
        request_of(config, Path())  # says what is missing before anything is trained
        seedless = msgspec.structs.replace(config.fit, seed=0)
        arms[arm] = msgspec.structs.replace(config, fit=seedless, split_seed=split_seed)
    return arms


def _claim(out: Path, arms: dict[str, TrainConfig]) -> _Plan:
    """The folder's plan: a new one, or the same one as before."""
    plan = _Plan(a=to_yaml(arms["A"]), b=to_yaml(arms["B"]))
    path = out / "ab.json"
    if not path.exists():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be made ({error.strerror})") from error
        if any(out.iterdir()):
            raise ConfigError(f"--out {out} is not empty and holds no comparison; choose another")
        _write_plan(out, plan)
        return plan
    try:
        before = msgspec.json.decode(path.read_bytes(), type=_Plan)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: is damaged ({error}); choose another --out") from error
    for arm, now, then in (("A", plan.a, before.a), ("B", plan.b, before.b)):
        if now != then:
            lines = set(now.splitlines()) ^ set(then.splitlines())
            raise ConfigError(
                f"{out} holds another comparison: {arm} was different, at "
                f"{min(lines).strip()!r}; choose another --out"
            )
    return before


def _write_plan(out: Path, plan: _Plan) -> None:
    write_atomic(out / "ab.json", msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def _order(seeds: int) -> Iterator[tuple[str, int]]:
    """A B, B A, A B, ...: (arm, seed)."""
    for seed in range(seeds):
        for arm in ARMS if seed % 2 == 0 else reversed(ARMS):
            yield arm, seed


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm and a seed lies."""
    return out / f"{arm}-seed{seed}"


def _train(
    config: TrainConfig, out: Path, arm: str, seed: int, say: Say
) -> tuple[Outcome, Outputs] | Failure:
    """The run of one arm and seed: the finished one, or one made now in a child process."""
    run = run_folder(out, arm, seed)
    if (done := read_outcome(run)) is not None:
        _refuse_seen(config, run)
        say(f"{arm} seed {seed}: finished before, kept")
        return done
    file = run.with_suffix(".yaml")
    own = msgspec.structs.replace(config, fit=msgspec.structs.replace(config.fit, seed=seed))
    write_atomic(file, to_yaml(own).encode())
    command = [sys.executable, "-m", "cascade_train.ab_arm", str(file), str(run)]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            for line in child.stdout or ():
                say(f"{arm} seed {seed}: {line.rstrip()}")
            status = child.wait()
        finally:
            child.kill()  # when interrupted; a process that has ended is not touched
            child.wait()
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    done = read_outcome(run) if status == 0 else None
    if done is None:
        return Failure(arm, seed, _reason(status, said))
    _refuse_seen(config, run)
    return done


def _reason(status: int, said: list[str]) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        memory = "; out of memory, most likely" if name == "SIGKILL" else ""
        return f"killed by {name}{memory}"
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or [f"exit status {status}"])[-1]


def _refuse_seen(config: TrainConfig, run: Path) -> None:
    """That the weights an arm started from were not trained on what it is now tested on."""
    tested = {entry.sha256 for entry in read_splits(run / "splits.json").of("val_test")}
    starts = [config.init, None if config.weights in ("random", "hub") else config.weights]
    for start in filter(None, starts):
        for folder in (Path(start), Path(start).parent):
            path = folder / "splits.json"
            if not path.exists():
                continue
            entries = read_splits(path).entries
            seen = tested & {e.sha256 for e in entries if e.split in ("train", "val_select")}
            if seen:
                raise ConfigError(
                    f"{start} was trained on {len(seen)} of the {len(tested)} test images of this "
                    "comparison (same data, another split); set split_seed and fractions to those "
                    f"of {path}"
                )


def _compare(
    arms: dict[str, TrainConfig],
    names: tuple[str, str],
    trained: Trained,
    seeds: tuple[int, ...],
    out: Path,
    failures: list[Failure],
    looks: int,
) -> AbResult:
    pairs = [(trained["A", seed], trained["B", seed]) for seed in seeds]
    if len({outcome.content_sha256 for pair in pairs for outcome, _ in pair}) > 1:
        raise ConfigError(f"{out}: the runs were tested on different images; choose another --out")
    groups = _groups(run_folder(out, "A", seeds[0])) if seeds else None
    figures = _figures(pairs, groups)
    return AbResult(
        names=names,
        changed=differing(arms["A"], arms["B"]),
        data=arms["A"].data or "",
        seeds=seeds,
        images=len(pairs[0][0][1].labels) if pairs else 0,
        groups=None if groups is None else len(set(groups)),
        figures=figures,
        scores={arm: tuple(p[i][0].scores for p in pairs) for i, arm in enumerate(ARMS)},
        failures=tuple(failures),
        looks=looks,
        winner=_winner(figures, failures),
    )


def _groups(run: Path) -> tuple[str, ...] | None:
    """The groups of the test images, in the order of the outputs, where the data has any."""
    entries = read_splits(run / "splits.json").of("val_test")
    return tuple(e.group or "" for e in entries) if entries and entries[0].group else None


def _figures(
    pairs: list[tuple[tuple[Outcome, Outputs], tuple[Outcome, Outputs]]],
    groups: tuple[str, ...] | None,
) -> tuple[Figure, ...]:
    """The primary figure, the others, then the costs."""
    if not pairs:
        return ()
    values = [(at_once(a[1]), at_once(b[1])) for a, b in pairs]
    shared = [name for name in values[0][0] if name in values[0][1]]
    variances = image_variances([(a[1], b[1]) for a, b in pairs], groups)
    found = []
    for name in shared:
        first, second = (tuple(pair[i][name] for pair in values) for i in (0, 1))
        found.append(
            _figure(name, "primary" if name == PRIMARY else "secondary", first, second, variances)
        )
    adjusted = holm({f.name: f.p for f in found if f.kind == "secondary"})
    found = [_judged(f, adjusted.get(f.name, f.p)) for f in found]
    for name in ("trainable_share", "seconds", "peak_memory"):
        first, second = (tuple(_cost(pair[i][0], name) for pair in pairs) for i in (0, 1))
        found.append(_figure(name, "cost", first, second, {}))
    return tuple(sorted(found, key=lambda f: ("primary", "secondary", "cost").index(f.kind)))


def _cost(outcome: Outcome, name: str) -> float:
    if name == "trainable_share":
        return outcome.trainable / outcome.parameters
    value = getattr(outcome, name)
    return math.nan if value is None else float(value)


def _figure(
    name: str,
    kind: Kind,
    first: tuple[float, ...],
    second: tuple[float, ...],
    variances: dict[str, float],
) -> Figure:
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    alone, whole = paired_estimate(gaps), paired_estimate(gaps, variances.get(name, 0.0))
    return Figure(
        name, kind, first, second, whole.difference, alone.interval, whole.interval, whole.p,
        "neither",
    )  # fmt: skip


def _judged(figure: Figure, p: float) -> Figure:
    """With its adjusted p-value, and the side that it shows to be better."""
    better: Side = "neither"
    if p < 1 - LEVEL:
        lower_is_better = figure.name.startswith(("augrc", "fnr"))
        better = "B" if (figure.difference < 0) == lower_is_better else "A"
    return Figure(**{**figure.__dict__, "p": p, "better": better})


def _winner(figures: tuple[Figure, ...], failures: list[Failure]) -> Side:
    """The better one by the primary figure; an arm that failed at times is not called better."""
    better: Side = next((f.better for f in figures if f.kind == "primary"), "neither")
    return "neither" if better in {f.arm for f in failures} else better
