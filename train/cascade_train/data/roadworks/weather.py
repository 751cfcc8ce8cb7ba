"""From painted layers to a camera's frame: light, rain, glare, exposure, sensor noise.

All draws are made before and apart from the label; the automatic exposure steers each frame to a
brightness drawn beforehand, so that it says nothing about what stands on the road.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cascade_train.data.roadworks.canvas import SUPERSAMPLE, Colour, View

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Weather:
    """One frame's conditions. Levels are of 255; densities per unit of 1/closeness."""

    night: bool
    fog_density: float
    fog_colour: Colour
    exposure: float  # mean brightness that the camera steers to
    tint: tuple[float, float, float]
    contrast: float
    noise: float
    rain: float  # share of the full number of streaks
    glare: tuple[float, float, float]  # x, y, strength of the sun or of a dazzling lamp
    headlight: float  # reach of the camera vehicle's own headlights


def draw_weather(
    rng: np.random.Generator, *, night: bool, fog_density: float, dark: bool
) -> Weather:
    """Conditions for one frame; the caller has decided about fog and darkness."""
    warm = float(np.clip(rng.normal(0, 0.13 if night else 0.08), -0.25, 0.25))
    glare = (rng.random(), 0.35 * rng.random(), 0.0)
    if rng.random() < (0.45 if night else 0.12):
        glare = (*glare[:2], float(rng.uniform(0.3, 0.8)))
    if night:
        exposure, noise = rng.uniform(38, 68), rng.uniform(4, 9)
        rain = float(rng.random() < 0.7) * rng.uniform(0.3, 1.0)
    else:
        exposure, noise = rng.uniform(84, 142), rng.uniform(1.5, 5)
        rain = float(rng.random() < 0.1) * rng.uniform(0.2, 0.7)
    if dark:
        exposure, noise = exposure * rng.uniform(0.38, 0.55), noise + rng.uniform(2, 5)
    grey = int(rng.uniform(188, 222))
    return Weather(
        night=night,
        fog_density=fog_density,
        fog_colour=(grey, grey, grey + 4),
        exposure=float(exposure),
        tint=(1 + warm, 1.0, 1 - warm),
        contrast=float(rng.uniform(0.85, 1.15)),
        noise=float(noise),
        rain=float(rain),
        glare=glare,
        headlight=float(rng.uniform(0.8, 1.2)),
    )


def develop(
    image: Image.Image,
    lights: Image.Image | None,
    view: View,
    weather: Weather,
    rng: np.random.Generator,
) -> np.ndarray:
    """The camera's frame, uint8 [size, size, 3], of the painted layers."""
    frame = np.asarray(image.reduce(SUPERSAMPLE), np.float32)
    if weather.night and lights is not None:
        frame = _by_night(frame, lights.reduce(SUPERSAMPLE), view, weather)
    size = frame.shape[0]
    frame = frame * np.array(weather.tint, np.float32)
    if weather.glare[2]:
        frame += _glow_spot(size, *weather.glare) * (110 if weather.night else 150)
    if weather.rain:
        frame = frame * (1 - 0.12 * weather.rain) + _streaks(size, weather, rng)
    metered = _metered(frame)
    frame = (frame - metered) * weather.contrast + metered
    frame *= weather.exposure / metered
    frame += rng.standard_normal(frame.shape, np.float32) * weather.noise
    return np.clip(frame, 0, 255).astype(np.uint8)


def _metered(frame: np.ndarray) -> float:
    """Mean brightness as a camera takes it: highlights count for little more than their area."""
    grey = frame @ LUMA
    return max(float(np.minimum(grey, 1.6 * grey.mean()).mean()), 1.0)


def _by_night(frame, lights: Image.Image, view: View, weather: Weather) -> np.ndarray:
    """Bluish dusk, the own headlights' pool, lamps with halos, their streaks on the wet road."""
    size = frame.shape[0]
    rows = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None]
    columns = ((np.arange(size, dtype=np.float32) + 0.5) / size)[None, :]
    pool = np.exp(-(((columns - view.vanish_x) / 0.42) ** 2) - ((rows - 0.82) / 0.3) ** 2)
    ambient = np.array([0.13, 0.15, 0.24], np.float32)
    beam = np.array([0.42, 0.39, 0.32], np.float32) * weather.headlight
    lit = frame * (ambient + pool[..., None] * beam)
    source = np.asarray(lights, np.float32)
    halo = np.asarray(lights.filter(ImageFilter.GaussianBlur(size / 40)), np.float32)
    haze = np.asarray(lights.filter(ImageFilter.GaussianBlur(size / 12)), np.float32)
    lit += 0.75 * source + 0.5 * halo + 0.6 * haze
    if weather.rain:
        lit += 0.4 * weather.rain * _wet_streaks(halo, int(size * view.horizon))
    return lit


def _wet_streaks(halo: np.ndarray, horizon_row: int) -> np.ndarray:
    """Light carried down the frame from each lamp, fading, below the horizon only."""
    streaks = np.zeros_like(halo)
    carried = halo[: max(horizon_row, 1)].max(axis=0) * 0.5
    for row in range(horizon_row, halo.shape[0]):
        carried = np.maximum(carried * 0.93, halo[row])
        streaks[row] = carried
    return streaks


def _glow_spot(size: int, x: float, y: float, strength: float) -> np.ndarray:
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    spread = 0.16
    across, down = np.exp(-(((grid - x) / spread) ** 2)), np.exp(-(((grid - y) / spread) ** 2))
    return strength * np.outer(down, across)[..., None] * np.array([1, 0.97, 0.88], np.float32)


def _streaks(size: int, weather: Weather, rng: np.random.Generator) -> np.ndarray:
    layer = Image.new("L", (size, size))
    draw = ImageDraw.Draw(layer)
    slant = rng.uniform(-0.25, 0.25)
    for x, y, length in rng.random((int(26 * weather.rain), 3)) * size:
        reach = 2 + length * 0.1
        draw.line((x, y, x + slant * reach, y + reach), fill=255)
    return np.asarray(layer, np.float32)[..., None] * (0.12 if weather.night else 0.16)
