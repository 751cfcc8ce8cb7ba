"""Near misses: street furniture that shares both colour and outline with roadworks.

Same signature as in `works.py`; none of these is roadwork, and a second look at a close one
says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascade_train.data.roadworks.canvas import Colour, Pen, mix, pick, shade

ORANGE: Colour = (250, 104, 14)
RED: Colour = (216, 30, 32)
WHITE: Colour = (242, 242, 240)
STEEL: Colour = (112, 114, 118)
DARK: Colour = (40, 40, 42)


def orange_bin(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    """A cone upside down: wider at the top, a dark lid, one pale sticker."""
    body = mix((226, 96, 34), (196, 84, 40), dice[0])
    low, high, tall = 0.22 * m, 0.33 * m, (1.0 + 0.15 * dice[1]) * m
    pen.poly(((x - low, y), (x - high, y - tall), (x + high, y - tall), (x + low, y)), body, 0.12)
    pen.rect(x - 0.5 * low, y - 0.6 * tall, x + 0.5 * low, y - 0.44 * tall, WHITE, 0.2)
    pen.rect(x - 1.1 * high, y - 1.06 * tall, x + 1.1 * high, y - 0.92 * tall, DARK)


def striped_bollard(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    """A permanent post of one width, in bands."""
    colour = pick((RED, mix(RED, ORANGE, 0.6)), dice[0])
    half, tall = 0.15 * m, (1.0 + 0.2 * dice[1]) * m
    pen.rect(x - half, y - tall, x + half, y, colour, 0.15)
    for low in (0.3, 0.68):
        pen.rect(x - half, y - (low + 0.18) * tall, x + half, y - low * tall, WHITE, 0.2)


def crossing_boom(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    """The raised or lowered boom of a car park: one thin striped bar on a grey box."""
    way, rise = (1 if dice[0] > 0.5 else -1), 0.9 * dice[1] * (dice[2] > 0.5)
    pen.rect(x - 0.25 * m, y - 1.1 * m, x + 0.25 * m, y, STEEL)
    length, parts = 2.6 * m, 6
    for i in range(parts):
        a, b = length * i / parts, length * (i + 1) / parts
        ends = ((x + way * a, y - 0.95 * m - rise * a), (x + way * b, y - 0.95 * m - rise * b))
        pen.line(ends, WHITE if i % 2 else RED, 0.2 * m, 0.16)


def warning_sign(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    """An everyday warning: red triangle, white inside; or a lemon diamond with a bend arrow."""
    a, middle = (0.62 + 0.15 * dice[1]) * m, y - (1.2 + 0.5 * dice[2]) * m
    pen.rect(x - 0.06 * m, middle, x + 0.06 * m, y, STEEL)
    if dice[0] > 0.5:
        pen.poly(((x, middle - a), (x + a, middle), (x, middle + a), (x - a, middle)),
                 (250, 206, 40), 0.17)  # fmt: skip
    else:
        for r, colour in ((1.0, RED), (0.66, WHITE)):
            b, low = a * r, middle + 0.6 * a * r
            pen.poly(((x, middle - b), (x + 1.05 * b, low), (x - 1.05 * b, low)), colour, 0.17)
    pen.line(((x, middle + 0.3 * a), (x, middle - 0.3 * a)), DARK, 0.16 * a)


def tractor(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    """Yellow like a digger, but on one big and one small wheel, and with no arm."""
    way, yellow = (1 if dice[0] > 0.5 else -1), mix((250, 186, 16), (244, 140, 24), dice[1])

    def box(a: float, low: float, b: float, high: float, colour: Colour, glow: float = 0.0) -> None:
        pen.rect(x + way * a * m, y - high * m, x + way * b * m, y - low * m, colour, glow)

    box(-0.6, 0.7, 1.6, 1.4, yellow, 0.08)
    box(-0.7, 1.3, 0.3, 2.4, yellow, 0.08)
    box(-0.55, 1.5, 0.15, 2.25, (62, 84, 98))
    for across, r in ((-0.5, 0.75), (1.3, 0.42)):
        pen.oval(x + way * across * m, y - r * m, r * m, r * m, DARK)
        pen.oval(x + way * across * m, y - r * m, 0.4 * r * m, 0.4 * r * m, shade(yellow, 0.8))


def orange_child(pen: Pen, x: float, y: float, m: float, dice: Sequence[float]) -> None:
    """A child in an orange coat: the colour of a cone, with legs and a head."""
    coat = mix((232, 104, 40), RED, 0.5 * dice[0])
    pen.rect(x - 0.13 * m, y - 0.5 * m, x + 0.13 * m, y, (44, 50, 76))
    pen.poly(((x - 0.26 * m, y - 0.42 * m), (x - 0.12 * m, y - m), (x + 0.12 * m, y - m),
              (x + 0.26 * m, y - 0.42 * m)), coat, 0.1)  # fmt: skip
    pen.oval(x, y - 1.13 * m, 0.14 * m, 0.14 * m, (222, 178, 150))


LOOKALIKES = (orange_bin, striped_bollard, crossing_boom, warning_sign, tractor, orange_child)
