"""What belongs on any street: vehicles, people, trees, lamps, road signs, bins.

Same signature as in `works.py`. Several share a colour or an outline with roadworks on purpose; the
close ones, which only a second look tells apart, are in `LOOKALIKES`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascade_train.data.roadworks.canvas import Colour, Pen, mix, pick, shade

PLAIN_PAINT: tuple[Colour, ...] = (
    (196, 198, 202), (232, 232, 230), (40, 42, 48), (104, 108, 116), (44, 70, 128),
    (150, 30, 36), (70, 96, 84), (120, 96, 78),
)  # fmt: skip
LOUD_PAINT: tuple[Colour, ...] = ((190, 104, 52), (228, 200, 84), (190, 44, 40), (212, 156, 72))
GLASS: Colour = (52, 66, 80)
TYRE: Colour = (26, 26, 28)
RED: Colour = (206, 30, 34)
WHITE: Colour = (240, 240, 238)
STEEL: Colour = (110, 112, 116)


def _vehicle(pen: Pen, x, y, half, height, paint: Colour, roof_share: float, oncoming: bool):
    """Seen from behind or ahead: wheels, body, cabin with its window, lamps."""
    waist = y - height * (1 - roof_share)
    pen.poly(((x - half * 1.1, y), (x + half * 1.1, y), (x, y + 0.06 * height)), (40, 40, 42))
    for wheel in (-0.72, 0.72):
        pen.rect(x + (wheel - 0.2) * half, y - 0.22 * height, x + (wheel + 0.2) * half, y, TYRE)
    pen.rect(x - half, waist, x + half, y - 0.1 * height, paint)
    top, narrow = y - height, half * (0.94 if roof_share > 0.55 else 0.74)
    pen.poly(((x - half, waist), (x - narrow, top), (x + narrow, top), (x + half, waist)), paint)
    a, b = waist - 0.06 * height, top + 0.08 * height
    near, far = half * 0.84, narrow * 0.84
    pen.poly(((x - near, a), (x - far, b), (x + far, b), (x + near, a)), GLASS)
    lamp, glow = ((255, 250, 225), 1.0) if oncoming else ((220, 20, 24), 0.6)
    for end in (-0.8, 0.8):
        lx, ly = x + end * half, y - 0.36 * height
        pen.rect(lx - 0.15 * half, ly - 0.06 * height, lx + 0.15 * half, ly, lamp, glow)
    pen.rect(x - 0.25 * half, y - 0.3 * height, x + 0.25 * half, y - 0.2 * height, WHITE, 0.1)


def car(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    paint = shade(pick(PLAIN_PAINT, dice[0]), 0.8 + 0.4 * dice[1])
    _vehicle(pen, x, y, 0.88 * m, (1.4 + 0.3 * dice[2]) * m, paint, 0.45, dice[3] > 0.5)


def loud_car(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    paint = shade(pick(LOUD_PAINT, dice[0]), 0.85 + 0.25 * dice[1])
    van = dice[4] > 0.6
    tall = (2.0 if van else 1.4) + 0.3 * dice[2]
    _vehicle(pen, x, y, 0.9 * m, tall * m, paint, 0.6 if van else 0.45, dice[3] > 0.5)


def school_bus(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    yellow = mix((240, 184, 34), (232, 166, 30), dice[0])
    _vehicle(pen, x, y, 1.2 * m, 2.9 * m, yellow, 0.62, dice[3] > 0.5)
    pen.rect(x - 1.2 * m, y - 1.08 * m, x + 1.2 * m, y - 0.98 * m, TYRE)


def pedestrian(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    coats = ((50, 60, 90), (90, 40, 44), (60, 84, 62), (160, 150, 140), (150, 60, 90), (40, 40, 44))
    coat = pick(coats, dice[0])
    pen.rect(x - 0.16 * m, y - 0.85 * m, x + 0.16 * m, y, pick(((40, 44, 60), TYRE), dice[1]))
    pen.rect(x - 0.24 * m, y - 1.48 * m, x + 0.24 * m, y - 0.8 * m, coat)
    pen.oval(x, y - 1.62 * m, 0.14 * m, 0.15 * m, pick(((224, 180, 150), (130, 90, 66)), dice[2]))
    if dice[3] > 0.6:  # an umbrella
        shades = (RED, (40, 60, 120), (30, 30, 34), (216, 60, 60))
        top = y - 2.25 * m
        pen.poly(((x - 0.7 * m, top + 0.45 * m), (x, top), (x + 0.7 * m, top + 0.45 * m)),
                 pick(shades, dice[4]))  # fmt: skip


def tree(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    greens = ((56, 92, 44), (74, 112, 50), (40, 76, 48))
    autumn = ((190, 106, 40), (200, 138, 44), (160, 78, 38))
    leaf = pick(autumn if dice[0] > 0.7 else greens, dice[1])
    crown, stem = (1.3 + 0.7 * dice[2]) * m, (2.4 + dice[3]) * m
    pen.rect(x - 0.16 * m, y - stem, x + 0.16 * m, y, (74, 58, 46))
    for dx, dy, r in ((-0.5, 0.2, 0.75), (0.5, 0.1, 0.75), (0, 0.7, 0.8)):
        tone = shade(leaf, 0.85 + 0.2 * (dy + dx))
        pen.oval(x + dx * crown, y - stem - dy * crown, r * crown, r * crown * 0.9, tone)


def lamp_post(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    way = 1 if dice[0] > 0.5 else -1
    top = y - (5.5 + 2 * dice[1]) * m
    pen.line(((x, y), (x, top), (x + way * 0.9 * m, top)), STEEL, 0.13 * m)
    pen.rect(x + way * 0.6 * m, top, x + way * 1.2 * m, top + 0.16 * m, (255, 216, 150), 1.0)


def traffic_light(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    pen.rect(x - 0.07 * m, y - 3.0 * m, x + 0.07 * m, y, STEEL)
    pen.rect(x - 0.22 * m, y - 3.4 * m, x + 0.22 * m, y - 2.3 * m, (24, 26, 26))
    lit = int(dice[0] * 3)
    for i, colour in enumerate(((255, 40, 30), (255, 180, 30), (40, 230, 110))):
        on = i == lit
        tone = colour if on else shade(colour, 0.25)
        pen.oval(x, y - (3.22 - 0.36 * i) * m, 0.14 * m, 0.14 * m, tone, 0.9 * on)


def road_sign(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    r, middle = 0.48 * m, y - (2.0 + 0.5 * dice[1]) * m
    pen.rect(x - 0.05 * m, middle, x + 0.05 * m, y, STEEL)
    kind = int(dice[0] * 4)
    if kind == 0:  # speed limit
        pen.oval(x, middle, r, r, RED, 0.2)
        pen.oval(x, middle, 0.7 * r, 0.7 * r, WHITE, 0.28)
        pen.rect(x - 0.3 * r, middle - 0.3 * r, x + 0.3 * r, middle + 0.3 * r, (60, 60, 60))
    elif kind == 1:  # give way
        for k, colour in ((1.0, RED), (0.6, WHITE)):
            a, top = r * k, middle - 0.6 * r * k
            pen.poly(((x - 1.1 * a, top), (x + 1.1 * a, top), (x, middle + a)), colour, 0.2)
    elif kind == 2:  # blue direction disc
        pen.oval(x, middle, r, r, (24, 78, 170), 0.22)
        pen.line(((x, middle + 0.5 * r), (x, middle - 0.5 * r)), WHITE, 0.25 * r, 0.28)
    else:  # parking
        pen.rect(x - r, middle - r, x + r, middle + r, (26, 84, 176), 0.22)
        pen.rect(x - 0.3 * r, middle - 0.6 * r, x + 0.1 * r, middle + 0.6 * r, WHITE, 0.28)


def rubbish_bin(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    body = pick(((52, 84, 58), (70, 74, 80), (60, 66, 110), (150, 84, 52)), dice[0])
    _bin(pen, x, y, m, body, (44, 46, 48))


def _bin(pen: Pen, x: float, y: float, m: float, body: Colour, band: Colour) -> None:
    low, high = 0.24 * m, 0.34 * m
    pen.poly(((x - low, y), (x - high, y - m), (x + high, y - m), (x + low, y)), body, 0.1)
    pen.rect(x - 1.1 * high, y - 1.08 * m, x + 1.1 * high, y - 0.92 * m, band)
