"""Drawing in the units of the scene: a perspective view, and a pen with haze and a glow layer.

Frame coordinates run from 0 to 1, x to the right and y down. A point on the ground is given by its
distance sideways in metres and its closeness t: 1 at the bottom edge of the frame, 0 at the
horizon, so that both position and size on the frame are proportional to t.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
SUPERSAMPLE = 2


@dataclass(frozen=True)
class View:
    """Where the horizon and the vanishing point lie, and how long a metre is at closeness 1."""

    horizon: float
    vanish_x: float
    camera_height: float = 2.2

    def metre(self, t: float) -> float:
        return (1 - self.horizon) / self.camera_height * t

    def at(self, side: float, t: float) -> Point:
        return self.vanish_x + side * self.metre(t), self.horizon + (1 - self.horizon) * t

    def side_of(self, x: float, t: float) -> float:
        """Metres sideways of the ground point that appears at frame position x."""
        return (x - self.vanish_x) / self.metre(t)


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(c * factor)) for c in colour)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(int(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def pick(choices: Sequence, u: float):
    """The element of choices that the uniform draw u in [0, 1) falls on."""
    return choices[int(u * len(choices))]


class Pen:
    """Paints what reflects light (`image`) and, at night, what gives light (`lights`).

    Every shape covers both layers, so that an unlit car hides the lamp behind it. The haze of the
    current distance is mixed into each colour.
    """

    def __init__(self, size: int, *, with_lights: bool, fog_density: float, fog_colour: Colour):
        self.side = size * SUPERSAMPLE
        self.fog_density = fog_density
        self.fog_colour = fog_colour
        self._clear = 1.0
        blank = Image.new("RGB", (self.side, self.side))
        self._take(blank, blank.copy() if with_lights else None)

    def to_closeness(self, t: float) -> None:
        """Paint what follows as seen at closeness t."""
        self._clear = math.exp(-self.fog_density / max(t, 0.02))

    def copy(self) -> Pen:
        """A pen that goes on from this one's layers, which stay as they are."""
        twin = copy.copy(self)
        twin._take(self.image.copy(), self.lights.copy() if self.lights else None)
        return twin

    def _take(self, image: Image.Image, lights: Image.Image | None) -> None:
        self.image, self.lights = image, lights
        self._paint = ImageDraw.Draw(image)
        self._light = ImageDraw.Draw(lights) if lights else None

    def haze_ground(self, view: View) -> None:
        """Veil what is painted so far by the distance of the ground (the sky wholly)."""
        if self.fog_density <= 0:
            return
        rows = (np.arange(self.side) + 0.5) / self.side
        t = np.clip((rows - view.horizon) / (1 - view.horizon), 0.02, 1.0)
        veil = Image.new("RGB", self.image.size, self.fog_colour)
        self.image.paste(veil, mask=self._column(1 - np.exp(-self.fog_density / t)))

    def gradient(self, top: Colour, bottom: Colour, until: float) -> None:
        """Fill the frame with a vertical run of colour from the top edge to y = until."""
        self.image.paste(top, (0, 0, self.side, self.side))
        share = np.clip(np.arange(self.side) / (self.side * until), 0, 1)
        self.image.paste(bottom, (0, 0, self.side, self.side), mask=self._column(share))

    def _column(self, shares: np.ndarray) -> Image.Image:
        """A mask the size of the frame, one share in [0, 1] a row."""
        column = np.rint(shares * 255).astype(np.uint8)[:, None]
        return Image.fromarray(column).resize((self.side, self.side), Image.Resampling.NEAREST)

    def _tones(self, colour: Colour, glow: float) -> tuple[Colour, Colour]:
        tone = mix(self.fog_colour, colour, self._clear) if self.fog_density > 0 else colour
        return tone, shade(colour, glow * self._clear) if glow else (0, 0, 0)

    def poly(self, points: Sequence[Point], colour: Colour, glow: float = 0.0) -> None:
        tone, light = self._tones(colour, glow)
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self._paint.polygon(scaled, fill=tone)
        if self._light:
            self._light.polygon(scaled, fill=light)

    def rect(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, glow: float = 0.0
    ) -> None:
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, glow)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, glow=0.0) -> None:
        tone, light = self._tones(colour, glow)
        s = self.side
        box = ((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s)
        self._paint.ellipse(box, fill=tone)
        if self._light:
            self._light.ellipse(box, fill=light)

    def line(self, points: Sequence[Point], colour: Colour, width: float, glow=0.0) -> None:
        tone, light = self._tones(colour, glow)
        scaled = [(x * self.side, y * self.side) for x, y in points]
        thick = max(1, round(width * self.side))
        self._paint.line(scaled, fill=tone, width=thick)
        if self._light:
            self._light.line(scaled, fill=light, width=thick)
