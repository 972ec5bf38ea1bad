"""Coordinates, waves, polygons and noise on the grid of samples of a drawn image."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Resampling

# Pixels across an image, samples across a pixel, samples across an image.
SIZE, SAMPLES = 64, 3
FINE = SIZE * SAMPLES

_COLUMNS = ((np.arange(FINE, dtype=np.float32) + 0.5) / SAMPLES)[None, :]
_ROWS = _COLUMNS.T


def frame(
    rng: np.random.Generator,
    angles: tuple[float, float] = (0, 360),
    reach: float = 8,
    center: tuple[float, float] = (SIZE / 2, SIZE / 2),
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Returns coordinates along a random direction and to its left, and their origin.

    Args:
        rng: Source of all randomness.
        angles: Lowest and highest direction, in degrees counter-clockwise.
        reach: Greatest distance of the origin from `center` in x and in y, in pixels.
        center: x to the right and y down, in pixels from the top left corner.

    Returns:
        Distances from the origin in pixels, [FINE, FINE], along the direction and to
        its left; and a dictionary of the `angle` and the origin's `x` and `y`.
    """
    angle = rng.uniform(*angles)
    x, y = (middle + rng.uniform(-reach, reach) for middle in center)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    right, up = _COLUMNS - x, y - _ROWS
    along, left = right * cosine + up * sine, up * cosine - right * sine
    return along, left, {"angle": angle, "x": x, "y": y}


def polar(along: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns polar coordinates: distance from the origin, and direction in radians."""
    return np.hypot(along, left), np.arctan2(left, along)


def wave(phase: np.ndarray, sharpness: float) -> np.ndarray:
    """Returns a wave of 0..1 and period 1: a sine (`sharpness` 0.5) to a square."""
    return np.clip(np.sin(2 * math.pi * phase) * sharpness + 0.5, 0, 1)


def tiles(value: np.ndarray, size: float) -> np.ndarray:
    """Returns the signed distance from the centre of the nearest tile in a row."""
    return value - size * np.rint(value / size)


def polygon(
    angles: np.ndarray, radii: np.ndarray | float, at: dict[str, float]
) -> np.ndarray:
    """Returns a filled polygon, [FINE, FINE] of booleans.

    Args:
        angles: Directions of its corners, in degrees from `at["angle"]`.
        radii: Their distances from the origin, `at["x"]`, `at["y"]`, in pixels.
        at: The dictionary that `frame` returns.
    """
    turned = np.deg2rad(angles + at["angle"])
    x, y = at["x"] + radii * np.cos(turned), at["y"] - radii * np.sin(turned)
    corners = [(SAMPLES * float(x), SAMPLES * float(y)) for x, y in zip(x, y)]
    image = Image.new("L", (FINE, FINE))
    ImageDraw.Draw(image).polygon(corners, 255)
    return np.asarray(image) > 0


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Returns noise of mean 0 and about -1..1, with `cells` bumps across the image."""
    values = rng.uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    box = 1.5, 1.5, cells + 1.5, cells + 1.5
    image = Image.fromarray(values).resize((FINE, FINE), Resampling.BICUBIC, box)
    return np.asarray(image)


def reduced(samples: np.ndarray) -> np.ndarray:
    """Returns the mean of the samples of each pixel, [SIZE, SIZE]."""
    blocks = samples.reshape(SIZE, SAMPLES, SIZE, SAMPLES)
    return blocks.mean((1, 3), dtype=np.float32)
