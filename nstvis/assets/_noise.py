"""Noise, colour ramps and the pixel grid that the demo pictures are made of."""

import numpy as np
from PIL import Image

SCALE = 2  # everything is drawn this much larger, then reduced for antialiasing
WIDTH, HEIGHT = 640 * SCALE, 480 * SCALE
ROWS, COLS = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
LATTICE = np.random.default_rng(7).uniform(0, 2 * np.pi, (256, 256)).astype(np.float32)
LATTICE_X, LATTICE_Y = np.cos(LATTICE), np.sin(LATTICE)


def smoothstep(low, high, x):
    """Rises smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, t):
    """Blends colours `a` and `b` by the weight map `t`."""
    t = np.asarray(t)[..., None]
    return np.asarray(a) * (1 - t) + np.asarray(b) * t


def ramp(codes, t):
    """Looks up `t` in [0, 1] on a ramp of evenly spaced `rrggbb` colours."""
    stops = np.array([list(bytes.fromhex(code)) for code in codes.split()]) / 255
    grid = np.linspace(0, 1, len(stops))
    return np.stack(
        [np.interp(t, grid, channel) for channel in stops.T], -1, dtype=np.float32
    )


def noise(x, y):
    """Gradient (Perlin) noise at arbitrary points, about -0.7 to 0.7."""
    x, y = np.broadcast_arrays(np.float32(x), np.float32(y))
    xi, yi = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    xf, yf = x - xi, y - yi

    def corner(i, j):
        at = (yi + j) & 255, (xi + i) & 255
        return LATTICE_X[at] * (xf - i) + LATTICE_Y[at] * (yf - j)

    u, v = (t * t * t * (t * (t * 6 - 15) + 10) for t in (xf, yf))
    top = corner(0, 0) * (1 - u) + corner(1, 0) * u
    return top * (1 - v) + (corner(0, 1) * (1 - u) + corner(1, 1) * u) * v


def fbm(x, y, octaves):
    """Fractal noise: octaves of `noise` at doubling frequency, about -1 to 1."""
    return sum(noise(x * 2**k + 17 * k, y * 2**k) / 2**k for k in range(octaves))


def ridged(x, y, octaves):
    """Ridged fractal noise in [0, 1]: rounded crests that gather the fine detail."""
    total, weight = 0, 1
    for k in range(octaves):
        fold = np.hypot(noise(x * 2**k + 31 * k, y * 2**k), 0.06)
        crest = (1.08 - 1.6 * fold).clip(0) ** 2
        total = total + crest * weight * 0.47**k
        weight = np.clip(crest * 1.5, 0, 1)
    return total / 2


def to_image(colour):
    """Converts a float picture in [0, 1] to a Pillow image."""
    return Image.fromarray((np.clip(colour, 0, 1) * 255).astype(np.uint8))
