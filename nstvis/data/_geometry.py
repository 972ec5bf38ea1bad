"""The sheet of samples that shapes are drawn on, and what is drawn on it with."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Resampling

# Pixels across a picture, samples across a pixel, samples across a picture.
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
    """Coordinates along a random direction and to its left, around a random point.

    Args:
        rng: Where the randomness comes from.
        angles: Lowest and highest direction, in degrees counter-clockwise.
        reach: How far the point may be from `center` in x and in y, in pixels.
        center: x to the right and y down, in pixels from the top left corner.

    Returns:
        Pixels [FINE, FINE] from the point along the direction, the same to the left of
        it, and the `angle` and the point's `x` and `y`.
    """
    angle = rng.uniform(*angles)
    x, y = (middle + rng.uniform(-reach, reach) for middle in center)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    right, up = _COLUMNS - x, y - _ROWS
    along, left = right * cosine + up * sine, up * cosine - right * sine
    return along, left, {"angle": angle, "x": x, "y": y}


def polar(along: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the point of a frame, and the direction in radians."""
    return np.hypot(along, left), np.arctan2(left, along)


def wave(phase: np.ndarray, sharpness: float) -> np.ndarray:
    """A wave of 0..1 and period 1: a sine (`sharpness` 0.5) to a square (large)."""
    return np.clip(np.sin(2 * math.pi * phase) * sharpness + 0.5, 0, 1)


def tiles(value: np.ndarray, size: float) -> np.ndarray:
    """Distance, with its sign, from the middle of the nearest tile of a row."""
    return value - size * np.rint(value / size)


def polygon(
    angles: np.ndarray, radii: np.ndarray | float, at: dict[str, float]
) -> np.ndarray:
    """A filled polygon, [FINE, FINE] of booleans.

    Args:
        angles: Directions of its corners, in degrees from `at["angle"]`.
        radii: Their distances from the point `at["x"]`, `at["y"]`, in pixels.
        at: What `frame` returned.
    """
    turned = np.deg2rad(angles + at["angle"])
    x, y = at["x"] + radii * np.cos(turned), at["y"] - radii * np.sin(turned)
    corners = [(SAMPLES * float(x), SAMPLES * float(y)) for x, y in zip(x, y)]
    image = Image.new("L", (FINE, FINE))
    ImageDraw.Draw(image).polygon(corners, 255)
    return np.asarray(image) > 0


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Noise of mean 0 and about -1..1, with `cells` bumps across the picture."""
    values = rng.uniform(-1, 1, (cells + 3, cells + 3)).astype(np.float32)
    box = 1.5, 1.5, cells + 1.5, cells + 1.5
    image = Image.fromarray(values).resize((FINE, FINE), Resampling.BICUBIC, box)
    return np.asarray(image)


def reduced(samples: np.ndarray) -> np.ndarray:
    """Means [SIZE, SIZE] of the samples of each pixel."""
    blocks = samples.reshape(SIZE, SAMPLES, SIZE, SAMPLES)
    return blocks.mean((1, 3), dtype=np.float32)
