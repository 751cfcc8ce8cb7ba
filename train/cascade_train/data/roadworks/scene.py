"""The empty street: sky, skyline, verge, road with its markings, buildings.

Everything here is drawn from the background's own generator, before anyone asks for the label.
"""

from __future__ import annotations

import numpy as np

from cascade_train.data.roadworks.canvas import Colour, Pen, View, mix, pick, shade

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((92, 146, 208), (196, 220, 236)),
    ((150, 160, 172), (206, 210, 214)),
    ((120, 140, 180), (236, 204, 170)),
    ((70, 120, 190), (170, 200, 226)),
)
VERGES: tuple[Colour, ...] = ((92, 124, 62), (116, 128, 74), (150, 138, 104), (146, 144, 140))
WALLS: tuple[Colour, ...] = (
    (152, 92, 74), (178, 160, 136), (128, 128, 132), (196, 188, 172), (118, 104, 98),
    (164, 148, 120), (140, 150, 158), (190, 160, 140),
)  # fmt: skip
LINE_WHITE: Colour = (226, 226, 220)
GLASS: Colour = (70, 84, 98)
LEFT_KERB, RIGHT_KERB = -5.0, 1.9  # metres from the camera


def draw_street(pen: Pen, view: View, rng: np.random.Generator) -> None:
    """Paint the background of one frame onto pen."""
    sky, low_sky = pick(SKIES, rng.random())
    pen.gradient(shade(sky, 0.85 + 0.3 * rng.random()), low_sky, view.horizon)
    pen.to_closeness(1.0)
    _skyline(pen, view, rng)
    _ground(pen, view, rng)
    pen.haze_ground(view)
    for kerb, outward in ((LEFT_KERB, -1), (RIGHT_KERB, 1)):
        if rng.random() < 0.75:
            _terrace(pen, view, kerb + outward * (1.6 + 2.5 * rng.random()), rng)


def _skyline(pen: Pen, view: View, rng: np.random.Generator) -> None:
    tone = mix(
        pick(((70, 96, 78), (110, 116, 126), (92, 88, 84)), rng.random()), (190, 200, 210), 0.4
    )
    heights = view.horizon - 0.02 - 0.09 * rng.random(9)
    points = [(i / 8, float(h)) for i, h in enumerate(heights)]
    pen.poly([(0.0, view.horizon + 0.01), *points, (1.0, view.horizon + 0.01)], tone)


def _strip(view: View, left: float, right: float, near: float, far: float):
    """The ground between two distances sideways, from closeness near to closeness far."""
    return (
        view.at(left, near), view.at(left, far), view.at(right, far), view.at(right, near),
    )  # fmt: skip


def _ground(pen: Pen, view: View, rng: np.random.Generator) -> None:
    pen.rect(0, view.horizon, 1, 1, shade(pick(VERGES, rng.random()), 0.8 + 0.3 * rng.random()))
    grey = int(66 + 52 * rng.random())
    asphalt = (grey, grey, grey + int(8 * rng.random()))
    pavement = shade((168, 162, 154), 0.8 + 0.3 * rng.random())
    near, far = 1.08, 0.03
    pen.poly(_strip(view, LEFT_KERB - 2, RIGHT_KERB + 2, near, far), pavement)
    pen.poly(_strip(view, LEFT_KERB - 0.2, RIGHT_KERB + 0.2, near, far), shade(pavement, 0.75))
    pen.poly(_strip(view, LEFT_KERB, RIGHT_KERB, near, far), asphalt)
    for _ in range(int(4 * rng.random())):  # patches and shadows
        side = LEFT_KERB + 6 * rng.random()
        t = 0.2 + 0.7 * rng.random()
        patch = shade(asphalt, 0.72 + 0.45 * rng.random())
        pen.poly(_strip(view, side, side + 0.6 + 2 * rng.random(), t, t * 0.75), patch)
    paint = shade(LINE_WHITE, 0.75 + 0.3 * rng.random())
    for side in (LEFT_KERB + 0.3, RIGHT_KERB - 0.3):
        if rng.random() < 0.7:
            pen.poly(_strip(view, side - 0.07, side + 0.07, near, far), paint)
    middle, phase = (LEFT_KERB + RIGHT_KERB) / 2, rng.random()
    for i in range(7):
        z = 0.8 + 1.3 * (i + phase)
        pen.poly(_strip(view, middle - 0.08, middle + 0.08, 1 / z, 1 / (z + 0.6)), paint)
    if rng.random() < 0.12:  # zebra crossing
        t = 0.3 + 0.4 * rng.random()
        for side in np.arange(LEFT_KERB + 0.2, RIGHT_KERB - 0.4, 1.0):
            pen.poly(_strip(view, side, side + 0.5, t, t * 0.8), paint)


def _terrace(pen: Pen, view: View, side: float, rng: np.random.Generator) -> None:
    """A row of houses along the street, drawn from the far end to the near one."""
    edges = [0.1, 0.16, 0.26, 0.44, 0.8][: 3 + int(3 * rng.random())]
    for far, near in zip(edges, [*edges[1:], edges[-1] * 1.8], strict=True):
        if rng.random() < 0.15:
            continue
        pen.to_closeness(far)
        height = 4 + 6 * rng.random()
        wall = shade(pick(WALLS, rng.random()), 0.75 + 0.35 * rng.random())
        _facade(pen, view, side, (far, near), (0, height), wall)
        # the gable that faces the camera
        x0, y0 = view.at(side, far)
        outer = x0 + (1 if side > 0 else -1) * 6 * view.metre(far)
        pen.rect(x0, y0 - height * view.metre(far), outer, y0, shade(wall, 0.8))
        lit = rng.random() < 0.4
        for floor in range(int(height // 3)):
            for k in range(3):
                a = far + (near - far) * (k + 0.25) / 3
                b = far + (near - far) * (k + 0.7) / 3
                glass = (255, 214, 140) if lit and rng.random() < 0.35 else GLASS
                glow = 0.5 if glass != GLASS else 0.0
                low = 3 * floor + 1.0
                _facade(pen, view, side, (a, b), (low, low + 1.3), glass if glow else GLASS, glow)
        if rng.random() < 0.16:
            _awning(pen, view, side, far, near, rng)


def _facade(pen, view: View, side: float, along, up, colour: Colour, glow: float = 0.0) -> None:
    """A patch of the wall that runs along the street at `side` metres."""
    corners = []
    for t, h in ((along[0], up[0]), (along[0], up[1]), (along[1], up[1]), (along[1], up[0])):
        x, y = view.at(side, t)
        corners.append((x, y - h * view.metre(t)))
    pen.poly(corners, colour, glow)


def _awning(pen: Pen, view: View, side: float, far: float, near: float, rng) -> None:
    """A shop's striped awning above the pavement."""
    stripe = pick(((196, 40, 42), (196, 40, 42), (40, 96, 70), (214, 122, 50)), rng.random())
    inward = -1.0 if side > 0 else 1.0
    parts = 6
    for i in range(parts):
        colour = stripe if i % 2 == 0 else (230, 226, 216)
        corners = []
        for share, out, up in (
            (i, 0, 3.0),
            (i, inward, 2.4),
            (i + 1, inward, 2.4),
            (i + 1, 0, 3.0),
        ):
            t = far + (near - far) * share / parts
            x, y = view.at(side + out, t)
            corners.append((x, y - up * view.metre(t)))
        pen.poly(corners, colour, 0.04)
