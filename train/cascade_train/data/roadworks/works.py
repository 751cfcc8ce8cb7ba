"""What makes a frame a positive: cones, barriers, roadworks signs, diggers.

Every drawing function of this package's objects has one signature: `draw(pen, x, y, m, dice)`, with
(x, y) the point where the object meets the ground, m the length of a metre there, and dice uniform
draws in [0, 1) that settle its looks. Works are retro-reflective: they give back the headlights.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascade_train.data.roadworks.canvas import Colour, Pen, mix, pick, shade

ORANGE: Colour = (255, 104, 8)
RED: Colour = (222, 28, 30)
WHITE: Colour = (248, 248, 244)
YELLOW: Colour = (252, 190, 12)
BLACK: Colour = (28, 26, 26)
GREY: Colour = (120, 122, 124)


def cone(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    orange = mix(ORANGE, (255, 70, 20), dice[0])
    height, half = (0.9 + 0.35 * dice[1]) * m, (0.27 + 0.06 * dice[2]) * m
    pen.rect(x - 1.3 * half, y - 0.08 * m, x + 1.3 * half, y + 0.03 * m, shade(orange, 0.75), 0.08)

    def ring(low: float, high: float, colour: Colour, glow: float) -> None:
        a, b = half * (1 - 0.82 * low), half * (1 - 0.82 * high)
        ya, yb = y - low * height, y - high * height
        pen.poly(((x - a, ya), (x - b, yb), (x + b, yb), (x + a, ya)), colour, glow)

    ring(0, 1, orange, 0.15)
    ring(0.3, 0.5, WHITE, 0.26)
    ring(0.66, 0.8, WHITE, 0.26)


def barrier(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    colour = pick((RED, ORANGE, ORANGE), dice[0])
    half, boards = (0.8 + 0.5 * dice[1]) * m, 1 + (dice[2] > 0.45)
    for leg in (-0.75, 0.75):
        pen.rect(x + (leg - 0.06) * half, y - 1.0 * m, x + (leg + 0.06) * half, y, GREY)
    lean = 0.22 * m * (1 if dice[3] > 0.5 else -1)
    stripes = 7
    step = 2 * half / stripes
    for board in range(boards):
        top = y - (1.1 - 0.52 * board) * m
        low = top + (0.34 if boards == 2 else 0.46) * m
        pen.rect(x - half, top, x + half, low, WHITE, 0.2)
        for i in range(0, stripes, 2):
            left, right = x - half + i * step, x - half + (i + 1) * step

            def inside(v: float) -> float:
                return min(max(v, x - half), x + half)

            corners = ((inside(left + lean), top), (inside(right + lean), top))
            pen.poly((*corners, (inside(right), low), (inside(left), low)), colour, 0.17)
    if dice[4] > 0.6:  # a warning lamp
        pen.oval(x - 0.7 * half, y - 1.25 * m, 0.12 * m, 0.12 * m, (255, 170, 20), 1.0)


def sign(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    size = (0.62 + 0.15 * dice[1]) * m
    middle = y - (1.0 + 0.5 * dice[2]) * m
    pen.rect(x - 0.06 * m, middle, x + 0.06 * m, y, GREY)
    if dice[0] > 0.5:  # orange diamond
        for r, colour in ((1.0, BLACK), (0.9, ORANGE)):
            a = size * r
            corners = ((x, middle - a), (x + a, middle), (x, middle + a), (x - a, middle))
            pen.poly(corners, colour, 0.17)
    else:  # red-bordered triangle, yellow inside
        for r, colour in ((1.0, RED), (0.66, YELLOW)):
            a = size * r
            low = middle + 0.6 * a
            pen.poly(((x, middle - a), (x + 1.05 * a, low), (x - 1.05 * a, low)), colour, 0.17)
    # the digging man: head, bent body, spade and heap
    a = size
    pen.oval(x - 0.02 * a, middle - 0.26 * a, 0.1 * a, 0.1 * a, BLACK)
    pen.line(((x, middle - 0.15 * a), (x - 0.16 * a, middle + 0.28 * a)), BLACK, 0.16 * a)
    pen.line(((x, middle), (x + 0.24 * a, middle + 0.26 * a)), BLACK, 0.09 * a)


def digger(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    yellow = mix(YELLOW, (255, 150, 10), 0.3 + 0.7 * dice[0])
    way = 1 if dice[1] > 0.5 else -1

    def at(across: float, up: float) -> tuple[float, float]:
        return x + way * across * m, y - up * m

    reach = 2.0 + 0.5 * dice[2]
    lift = 2.6 + 0.9 * dice[3]
    pen.poly((at(-1.3, 0), at(1.2, 0), at(1.4, 0.35), at(1.2, 0.62), at(-1.3, 0.62)), (46, 44, 42))
    pen.poly((at(-1.0, 0.14), at(1.0, 0.14), at(1.0, 0.46), at(-1.0, 0.46)), (84, 80, 76))
    pen.poly((at(-1.45, 0.7), at(0.9, 0.7), at(0.9, 1.35), at(-1.45, 1.5)), yellow, 0.08)
    pen.poly((at(-0.2, 1.3), at(0.8, 1.3), at(0.65, 2.35), at(-0.2, 2.4)), yellow, 0.08)
    pen.poly((at(-0.05, 1.45), at(0.62, 1.45), at(0.52, 2.2), at(-0.05, 2.2)), (62, 84, 98))
    arm = (at(0.7, 1.1), at(1.35, lift), at(reach, lift - 0.5), at(reach + 0.15, 0.9))
    pen.line(arm, yellow, 0.3 * m, 0.1)
    pen.poly((at(reach - 0.4, 0.9), at(reach + 0.4, 0.95), at(reach + 0.1, 0.3)), (70, 66, 62))
    if dice[4] > 0.5:
        pen.rect(*at(-1.45, 0.95), *at(-0.5, 0.8), BLACK)


TALLEST_M = {cone: 1.1, barrier: 1.1, sign: 1.9, digger: 3.0}
