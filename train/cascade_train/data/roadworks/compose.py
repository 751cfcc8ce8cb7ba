"""One frame from one number: what stands where, how hard it is to see, and why.

The street, its passers-by and the weather are settled from generators of their own, the same for
both labels; roadworks are added last. A positive is redrawn, its works ever closer, until enough
pixels differ from the same frame without them: no label is ever a lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cascade_train.data.roadworks import traffic, works
from cascade_train.data.roadworks.canvas import Pen, View, pick
from cascade_train.data.roadworks.lookalikes import LOOKALIKES
from cascade_train.data.roadworks.scene import LEFT_KERB, RIGHT_KERB, draw_street
from cascade_train.data.roadworks.weather import Weather, develop, draw_weather

VARIANTS = ("day", "night")
CLASSES = ("clear", "roadwork")
REASONS = ("distant", "fog", "occluded", "look-alike", "dark")


@dataclass(frozen=True)
class Difficulty:
    """How hard the set is. Ranges are (low, high) of a uniform draw; closeness as in `canvas`."""

    hard_share: float = 0.20
    reason_weights: tuple[float, ...] = (0.8, 1.0, 0.8, 1.1, 0.8)  # in the order of REASONS
    easy_closeness: tuple[float, float] = (0.56, 0.88)
    distant_closeness: tuple[float, float] = (0.26, 0.36)
    hard_closeness: tuple[float, float] = (0.42, 0.60)  # the other reasons
    fog_density: tuple[float, float] = (0.18, 0.36)
    hidden_share: tuple[float, float] = (0.20, 0.45)
    decoy_rate: float = 0.5  # chance of a look-alike beside any other reason
    easy_visible_pixels: int = 150  # of a 64-pixel frame
    hard_visible_pixels: int = 28
    visible_step: int = 30  # levels of 255 by which a pixel must differ to count

    def __post_init__(self) -> None:
        if not 0 <= self.hard_share <= 1:
            raise ValueError(f"hard_share = {self.hard_share}: give a share from 0 to 1")
        if len(self.reason_weights) != len(REASONS):
            raise ValueError(
                f"reason_weights = {self.reason_weights}: give {len(REASONS)}, for {REASONS}"
            )


@dataclass(frozen=True)
class Scene:
    """One rendered frame."""

    pixels: np.ndarray  # uint8 [size, size, 3] RGB
    label: int  # 1 roadwork, 0 clear
    hardness: tuple[str, ...]  # the visible reasons, of REASONS; empty when easy


class Thing(NamedTuple):
    """An object on the ground: how to draw it, frame position x, closeness, looks."""

    draw: Callable[[Pen, float, float, float, Sequence[float]], None]
    x: float
    t: float
    dice: Sequence[float]


class Plan(NamedTuple):
    """All of a frame but its roadworks."""

    key: tuple[int, int, int]
    size: int
    view: View
    mirrored: bool
    weather: Weather
    things: list[Thing]
    slot: Thing  # where hard works stand; dice of its own
    label: int
    reason: str  # one of REASONS, or empty


def render(
    variant: str,
    index: int,
    *,
    seed: int = 0,
    size: int = 64,
    difficulty: Difficulty = Difficulty(),
) -> Scene:
    """Frame number `index` of a variant; the same arguments give the same bytes.

    Raises ValueError for an unknown variant.
    """
    plan = make_plan(variant, index, seed=seed, size=size, difficulty=difficulty)
    hardness = (plan.reason,) if plan.reason else ()
    street = paint_street(plan)
    bare = photograph(plan, street, [])
    if plan.label == 0:
        return Scene(bare, 0, hardness)
    needed = difficulty.hard_visible_pixels if plan.reason else difficulty.easy_visible_pixels
    for attempt in range(8):
        frame = photograph(plan, street, place_works(plan, attempt, difficulty))
        seen = visible_pixels(frame, bare, difficulty.visible_step)
        if seen >= needed * (size / 64) ** 2:
            break
    return Scene(frame, 1, hardness)


def visible_pixels(frame: np.ndarray, bare: np.ndarray, step: int) -> int:
    """How many pixels differ by at least step levels in some channel."""
    change = np.abs(frame.astype(np.int16) - bare).max(axis=2)
    return int((change >= step).sum())


def _stream(key: tuple[int, int, int], purpose: int) -> np.random.Generator:
    return np.random.default_rng((*key, purpose))


LABEL, STREET, THINGS, WEATHER, SENSOR, WORKS = range(6)


def make_plan(variant: str, index: int, *, seed: int, size: int, difficulty: Difficulty) -> Plan:
    if variant not in VARIANTS:
        raise ValueError(f"variant = {variant!r}: choose one of {', '.join(VARIANTS)}")
    key = (seed, VARIANTS.index(variant), index)
    label = int(_stream(key, LABEL).random() < 0.5)
    rng = _stream(key, THINGS)
    reason = ""
    if rng.random() < difficulty.hard_share:
        weights = np.array(difficulty.reason_weights)
        reason = str(rng.choice(REASONS, p=weights / weights.sum()))
    view = View(horizon=float(rng.uniform(0.34, 0.46)), vanish_x=float(rng.uniform(0.38, 0.68)))
    things = _passers_by(rng, view)
    slot = _slot(rng, reason, difficulty)
    things += _decoys(rng, slot, reason, difficulty)
    if reason == "occluded":
        things.append(_occluder(rng, view, slot, difficulty))
    fog = float(rng.uniform(*difficulty.fog_density)) if reason == "fog" else 0.03 * rng.random()
    weather = draw_weather(
        _stream(key, WEATHER), night=variant == "night", fog_density=fog, dark=reason == "dark"
    )
    mirrored = bool(rng.random() < 0.5)
    return Plan(key, size, view, mirrored, weather, things, slot, label, reason)


def paint_street(plan: Plan) -> Pen:
    """The empty street of a plan, for `photograph` to go on from."""
    weather = plan.weather
    pen = Pen(
        plan.size,
        with_lights=weather.night,
        fog_density=weather.fog_density,
        fog_colour=weather.fog_colour,
    )
    draw_street(pen, plan.view, _stream(plan.key, STREET))
    return pen


def photograph(plan: Plan, street: Pen, extra: Sequence[Thing]) -> np.ndarray:
    """The frame of a plan with extra things (its works, or none) standing in the street."""
    pen = street.copy()
    for thing in sorted([*plan.things, *extra], key=lambda thing: thing.t):
        pen.to_closeness(thing.t)
        y = plan.view.at(0, thing.t)[1]
        thing.draw(pen, thing.x, y, plan.view.metre(thing.t), thing.dice)
    sensor = _stream(plan.key, SENSOR)
    frame = develop(pen.image, pen.lights, plan.view, plan.weather, sensor)
    return np.ascontiguousarray(frame[:, ::-1]) if plan.mirrored else frame


def _dice(rng: np.random.Generator) -> list[float]:
    return rng.random(6).tolist()


# (object, mean number a frame, metres sideways from..to, closeness from..to)
PASSERS_BY = (
    (traffic.tree, 0.9, (RIGHT_KERB + 1.2, RIGHT_KERB + 4), (0.12, 0.5)),
    (traffic.tree, 0.9, (LEFT_KERB - 4, LEFT_KERB - 1.2), (0.12, 0.5)),
    (traffic.lamp_post, 0.7, (RIGHT_KERB + 0.4, RIGHT_KERB + 0.8), (0.15, 0.5)),
    (traffic.lamp_post, 0.7, (LEFT_KERB - 0.8, LEFT_KERB - 0.4), (0.15, 0.5)),
    (traffic.car, 0.5, (-0.4, 0.4), (0.15, 0.42)),
    (traffic.car, 0.6, (-3.8, -3.0), (0.12, 0.5)),
    (traffic.car, 0.5, (RIGHT_KERB, RIGHT_KERB + 1), (0.15, 0.5)),
    (traffic.loud_car, 0.12, (-0.4, 0.4), (0.2, 0.42)),
    (traffic.loud_car, 0.12, (-3.8, -3.0), (0.2, 0.5)),
    (traffic.school_bus, 0.08, (-3.7, -3.2), (0.2, 0.45)),
    (traffic.pedestrian, 0.35, (RIGHT_KERB + 0.3, RIGHT_KERB + 1.6), (0.2, 0.6)),
    (traffic.pedestrian, 0.35, (LEFT_KERB - 1.6, LEFT_KERB - 0.3), (0.2, 0.6)),
    (traffic.road_sign, 0.35, (RIGHT_KERB + 0.3, RIGHT_KERB + 0.7), (0.2, 0.5)),
    (traffic.traffic_light, 0.2, (RIGHT_KERB + 0.3, RIGHT_KERB + 0.7), (0.2, 0.5)),
    (traffic.rubbish_bin, 0.2, (RIGHT_KERB + 0.5, RIGHT_KERB + 1.4), (0.25, 0.6)),
)


def _passers_by(rng: np.random.Generator, view: View) -> list[Thing]:
    things = []
    counts = rng.poisson([mean for _, mean, _, _ in PASSERS_BY]).tolist()
    for (draw, _, sideways, closeness), count in zip(PASSERS_BY, counts, strict=True):
        for _ in range(min(count, 2)):
            t = float(rng.uniform(*closeness))
            x = view.at(float(rng.uniform(*sideways)), t)[0]
            things.append(Thing(draw, x, t, _dice(rng)))
    return things


HARD_WORKS = (works.cone, works.cone, works.barrier, works.sign)


def _slot(rng: np.random.Generator, reason: str, difficulty: Difficulty) -> Thing:
    """Where works would stand if this were a hard positive; settled for both labels."""
    near = difficulty.distant_closeness if reason == "distant" else difficulty.hard_closeness
    t = float(rng.uniform(*near))
    spread = 0.18 if reason == "distant" else 0.34
    return Thing(pick(HARD_WORKS, rng.random()), 0.5 + spread * rng.uniform(-1, 1), t, _dice(rng))


def _decoys(
    rng: np.random.Generator, slot: Thing, reason: str, difficulty: Difficulty
) -> list[Thing]:
    """Look-alikes at the slot's distance: always in a look-alike frame, often in a hard one."""
    if not reason or (reason != "look-alike" and rng.random() > difficulty.decoy_rate):
        return []
    decoys = []
    for _ in range(1 + (rng.random() < 0.4)):
        x = slot.x + rng.uniform(-0.3, 0.3)
        t = slot.t * rng.uniform(0.9, 1.15)
        decoys.append(Thing(pick(LOOKALIKES, rng.random()), float(x), float(t), _dice(rng)))
    return decoys


def _occluder(rng: np.random.Generator, view: View, slot: Thing, difficulty: Difficulty) -> Thing:
    """A vehicle just in front of the slot, covering the drawn share of its width."""
    draw = pick((traffic.car, traffic.car, traffic.loud_car), rng.random())
    t = slot.t * 1.12
    half_slot = (1.0 if slot.draw is works.barrier else 0.34) * view.metre(slot.t)
    hidden = float(rng.uniform(*difficulty.hidden_share))
    way = 1 if rng.random() < 0.5 else -1
    edge = slot.x + way * half_slot * (2 * hidden - 1)
    return Thing(draw, edge - way * 0.88 * view.metre(t), t, _dice(rng))


def place_works(plan: Plan, attempt: int, difficulty: Difficulty) -> list[Thing]:
    """The roadworks of a positive; later attempts stand closer and, if hard, more in the open."""
    rng = _stream(plan.key, WORKS + attempt)
    if not plan.reason:
        return _easy_site(rng, plan.view, difficulty)
    slot = plan.slot
    t, x = slot.t * (1 + 0.12 * attempt), slot.x + 0.03 * attempt * rng.uniform(-1, 1)
    site = [Thing(slot.draw, x, t, slot.dice)]
    if slot.draw is works.cone and rng.random() < 0.5:
        beside = x + rng.choice((-1, 1)) * rng.uniform(1.0, 1.6) * plan.view.metre(t)
        site.append(Thing(works.cone, float(beside), t * 0.97, _dice(rng)))
    return site


def _easy_site(rng: np.random.Generator, view: View, difficulty: Difficulty) -> list[Thing]:
    """A plausible group, its main piece close: a taper, a barrier line, a dig, or a sign."""
    t = float(rng.uniform(*difficulty.easy_closeness))
    x = float(rng.uniform(0.25, 0.75))
    kind = pick(("taper", "taper", "barriers", "dig", "sign"), rng.random())
    site = []

    def put(draw, at_x: float, at_t: float) -> None:
        site.append(Thing(draw, float(at_x), float(at_t), _dice(rng)))

    if kind == "taper":  # cones across and along a lane
        side, slope = view.side_of(x, t), rng.uniform(-0.9, 0.9)
        for i in range(int(rng.integers(3, 7))):
            z = 1 / t + 0.35 * i
            put(works.cone, view.at(side + slope * i, 1 / z)[0], 1 / z)
    elif kind == "barriers":
        gap = 2.4 * view.metre(t * 0.85)
        for i in range(int(rng.integers(1, 4))):
            put(works.barrier, x + (i - 0.5) * gap, t * 0.85)
    elif kind == "dig":
        put(works.digger, x, t * 0.62)
        for way in (-1, 1):
            put(works.cone, x + way * rng.uniform(0.12, 0.25), t * rng.uniform(0.65, 0.95))
    else:
        put(works.sign, x, t * 0.9)
    if kind != "sign" and rng.random() < 0.4:
        put(works.sign, rng.choice((0.12, 0.88)), rng.uniform(0.3, 0.6))
    if kind != "taper" and rng.random() < 0.5:
        put(works.cone, x + rng.uniform(-0.25, 0.25), t)
    return site
