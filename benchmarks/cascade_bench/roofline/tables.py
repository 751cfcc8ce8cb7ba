"""The roofline for people: ceilings, stages, and where the time beyond the ceiling goes.

In: a `Roofline`. Out: rich tables and sentences, in the order in which they are to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cascade_bench.cells import numbers_right
from cascade_bench.roofline.layers import Layer
from cascade_bench.roofline.measure import GOALS, Profile, Roofline
from cascade_calib.words import percent

FARTHEST = 8
LEAST_SHARE = 0.01  # of the time: kinds below are one row


def render(found: Roofline) -> Iterator[Table | Text]:
    """Everything to print, in order."""
    loads = [f"{x:.2f}" for x in (found.load_before, found.load_after) if x is not None]
    load = f"; load {' before, '.join(loads)} after" if loads else ""
    yield Text(f"{Path(found.bundle).name} on {found.target}")
    yield Text(f"{found.cpu}, {found.threads} threads{load}")
    yield _ceilings(found)
    yield _stages(found)
    for profile in found.profiles:
        yield _kinds(found, profile)
        yield _farthest(found, profile)
    yield from _conclusion(found)


def _ceilings(found: Roofline) -> Table:
    table = Table(
        "ceiling", "GFLOP/s", "ridge, FLOP/byte", title="What this machine does at its best"
    )
    for ceiling in found.ceilings:
        if ceiling.best:
            peak = found.ceiling[ceiling.precision]
            name = f"{ceiling.precision} products, {ceiling.shape}"
            table.add_row(name, f"{peak / 1e9:,.0f}", f"{peak / found.bandwidth:.0f}")
    for name, rate in found.memory.items():
        table.add_row(f"memory, {name}", f"{rate / 1e9:.1f} GB/s", "")
    table.caption = f"the fastest shape of {len({c.shape for c in found.ceilings})}; through "
    table.caption += f"{found.target.split('/')[0]}, as the stages run"
    return numbers_right(table)


def _stages(found: Roofline) -> Table:
    table = Table(
        *("stage", "batch", "ms an image", "GFLOP/s", "FLOP/byte"),
        *(f"of the {found.precision} ceiling", "in pairs", "by processor time"),
        title="Stages",
    )
    for x in found.stages:
        table.add_row(
            str(x.stage),
            str(x.batch),
            f"{x.ms_per_image:.3f}",
            f"{x.flops_per_s / 1e9:,.0f}",
            f"{x.intensity:,.0f}",
            percent(x.share),
            percent(x.paired),
            percent(x.cpu_share) + (" best" if x.best else "     "),
        )
    rounds = found.stages[0].rounds
    table.caption = f"the fastest calls of {rounds} rounds; in pairs: medians of each round's own"
    return numbers_right(table)


@dataclass(frozen=True)
class _Kind:
    """Layers of one kind and precision, together."""

    name: str
    count: int
    seconds: float
    lost: float
    flops: float
    traffic: float
    least: float

    @property
    def share(self) -> float | None:
        return self.least / self.seconds if self.flops else None


def kinds(found: Roofline, layers: Iterable[Layer]) -> list[_Kind]:
    """Layers put together by kind and precision, most time first."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(f"{layer.kind}, {layer.precision}", []).append(layer)
    made = [
        _Kind(
            name=name,
            count=len(group),
            seconds=sum(x.seconds for x in group),
            lost=sum(found.lost(x) for x in group),
            flops=sum(x.flops for x in group),
            traffic=sum(x.traffic for x in group),
            least=sum(x.seconds - found.lost(x) for x in group),
        )
        for name, group in groups.items()
    ]
    return sorted(made, key=lambda kind: -kind.seconds)


def _kinds(found: Roofline, profile: Profile) -> Table:
    title = f"Stage {profile.stage}, batch {profile.batch}: where the time goes"
    table = Table(
        *("kind of layer", "layers", "time", "GFLOP/s", "of its ceiling", "GB/s"),
        *("lost, of all time",),
        title=title,
    )
    whole = sum(layer.seconds for layer in profile.layers)
    every = kinds(found, profile.layers)
    for kind in (kind for kind in every if kind.seconds >= LEAST_SHARE * whole):
        table.add_row(
            kind.name,
            str(kind.count),
            percent(kind.seconds / whole),
            f"{kind.flops / kind.seconds / 1e9:,.0f}" if kind.flops else "",
            "" if kind.share is None else percent(kind.share),
            f"{kind.traffic / kind.seconds / 1e9:.1f}",
            percent(kind.lost / whole),
        )
    small = [kind for kind in every if kind.seconds < LEAST_SHARE * whole]
    if small:
        seconds, count = sum(kind.seconds for kind in small), sum(kind.count for kind in small)
        lost = percent(sum(kind.lost for kind in small) / whole)
        table.add_row(
            f"{len(small)} more kinds", str(count), percent(seconds / whole), "", "", "", lost
        )
    table.caption = (
        "lost: beyond the time of the products at the ceiling of their precision; GB/s: inputs, "
        "weights and outputs, moved once"
    )
    return numbers_right(table)


def _farthest(found: Roofline, profile: Profile) -> Table:
    table = Table(
        *("layer", "kind", "us an image", "of its ceiling", "lost, of all time"),
        title=f"Stage {profile.stage}: the layers farthest from their ceiling",
    )
    whole = sum(layer.seconds for layer in profile.layers)
    for layer in sorted(profile.layers, key=found.lost, reverse=True)[:FARTHEST]:
        share = found.share(layer)
        table.add_row(
            layer.name if len(layer.name) <= 44 else f"{layer.name[:41]}...",
            f"{layer.kind}, {layer.precision}",
            f"{1e6 * layer.seconds / profile.batch:.1f}",
            "no products" if share is None else percent(share),
            percent(found.lost(layer) / whole),
        )
    return numbers_right(table)


def _conclusion(found: Roofline) -> Iterator[Text]:
    goal = GOALS[found.precision]
    for x in found.best:
        share = found.share_of(x)
        verdict = "reaches" if share >= goal else "stays below"
        clock = ", by processor time" if found.noisy else ""
        yield Text(
            f"stage {x.stage} comes to {percent(share)} of the {found.precision} ceiling at "
            f"batch {x.batch}: it {verdict} {percent(goal)}{clock}"
        )
    if found.noisy:
        yield Text(
            f"noisy: the same products took {found.spread:.2f} times as long at one moment as at "
            "another; trust a share where all ways of it agree, or that by processor time, and "
            "measure again on a quiet machine",
            "yellow",
        )
