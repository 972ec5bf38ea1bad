"""The style picture: an oil painting of a swirling dusk sky, hills, wheat, cypresses."""

import numpy as np

from nstvis.assets._noise import (
    COLS,
    HEIGHT,
    ROWS,
    WIDTH,
    fbm,
    mix,
    ramp,
    smoothstep,
    to_image,
)

X, Y = COLS / HEIGHT, ROWS / HEIGHT  # painting coordinates: y from 0 to 1
LAYERS = (34, 150, 1.3), (20, 100, 1.8), (12, 64, 1.5), (7, 40, 0.6)
STEP = 0.7  # distance between the samples of a stroke, below a pixel to leave no hole
VORTICES = (0.76, 0.25, 0.19, 1), (0.10, 0.33, 0.12, -1), (0.55, 0.46, 0.10, -1)
STARS = (0.10, 0.09, 0.034), (0.60, 0.07, 0.026), (0.95, 0.09, 0.030)
STARS += (1.24, 0.20, 0.040), (0.74, 0.48, 0.020), (0.21, 0.49, 0.020)
MOON = 0.37, 0.25, 0.075


def bristle_texture(rng):
    """Random hairs: rough across the stroke, smooth along it, unit variance."""
    hairs = rng.normal(size=(1024, 1024))
    for axis, reach in (1, 40), (0, 2):
        hairs = np.sum([np.roll(hairs, k, axis) for k in range(reach)], axis=0)
    return (hairs / hairs.std()).astype(np.float32)


def dusk_sky():
    """Mask, flow angle and tone of the sky: wavy wind with spiral vortices."""
    wave = fbm(X * 1.6, Y * 1.6 + 9, 2)
    flow_x, flow_y = np.ones_like(X), 0.42 * np.sin(X * 6 + Y * 3) + 0.8 * wave
    tone = 0.30 + 0.17 * np.sin(Y * 42 + 4 * wave + 2.2 * np.sin(X * 5)) + 0.1 * wave
    for cx, cy, radius, turn in VORTICES:
        dx, dy = X - cx, Y - cy
        r = np.hypot(dx, dy) + 1e-4
        pull = np.exp(-((r / radius) ** 4))
        flow_x = flow_x * (1 - pull) + pull * (-turn * dy - 0.18 * dx) / r
        flow_y = flow_y * (1 - pull) + pull * (turn * dx - 0.18 * dy) / r
        arms = np.sin(2 * np.arctan2(dy, dx) * turn - 9 * np.log(r + 0.02))
        tone = tone * (1 - pull) + pull * (0.50 + 0.36 * arms)
    tone = tone + 0.45 * smoothstep(0.36, 0.64, Y)
    return np.ones_like(X, bool), np.arctan2(flow_y, flow_x), tone


def disc(cx, cy, radius):
    """Mask, angle and tone of a glowing moon or star, ringed by tangent strokes."""
    r = np.hypot(X - cx, Y - cy) / radius
    tone = 1.02 - 0.42 * r + 0.08 * np.sin(r * 9)
    around = np.arctan2(Y - cy, X - cx) + np.pi / 2
    return r * (1 + 0.25 * fbm(X * 14, Y * 14, 2)) < 2.3, around, tone


def land(crest, bend, bands):
    """Mask, angle and tone of a slope below `crest`, stroked along its curves."""
    below = Y - crest
    slope = np.gradient(crest, axis=1) * HEIGHT * np.exp(-below * 3)
    wobble = fbm(X * 4, Y * 7 + bend, 3)
    tone = 0.5 + 0.28 * np.sin(below * bands + 5 * wobble) + 0.35 * wobble
    return below > 0, np.arctan(slope) + bend * wobble, tone - 0.5 * below


def cypress(cx, top, foot, girth):
    """Mask, angle and tone of a dark flame-shaped tree of writhing strokes."""
    t = np.clip((Y - top) / (foot - top), 0, 1)
    sway = 0.25 * girth * np.sin(t * 9 + cx * 7) * (0.4 + t)
    width = girth * t**0.7 * (1 - 0.45 * t**3) * (1 + 0.16 * np.sin(t * 21 + cx * 9))
    across = np.clip((X - cx - sway) / (width + 1e-3), -2, 2)
    angle = -np.pi / 2 - 0.25 * across + 0.35 * np.sin(t * 16 + across * 2.5)
    tone = 0.34 + 0.3 * np.sin(across * 7 + 4 * np.sin(t * 12)) - 0.15 * across
    ragged = np.abs(across) + 0.5 * np.abs(fbm(X * 16, Y * 7, 3))
    return (ragged < 1.1) & (Y > top) & (Y < foot), angle, tone


def paint_strokes(canvas, relief, rng, bristles, region, colours, brush, count):
    """Brushes `count` curved strokes, started inside a region, onto the canvas."""
    (mask, angle, tones), (width, length) = region, brush
    steps, half = int(length / STEP), np.arange(-width / 2, width / 2, STEP)
    along, rim = np.linspace(0, 1, steps)[:, None], np.abs(half) / half.max()
    limits = np.array([[HEIGHT], [WIDTH]]) - 1
    starts = rng.choice(np.flatnonzero(mask), count)
    for part in np.array_split(starts, 1 + count * steps * len(half) // 3_000_000):
        tone = tones.flat[part] + rng.normal(0, 0.11, len(part))
        other = tone + rng.normal(0.06, 0.20, len(part))  # second paint on the brush
        y, x = np.divmod(part, WIDTH)
        y = y - length / 2 * np.sin(angle.flat[part])
        x = x - length / 2 * np.cos(angle.flat[part])
        path = np.empty((4, len(part), steps, 1), np.float32)
        for k in range(steps):
            row, col = np.clip([y, x], 0, limits).astype(int)
            c, s = np.cos(angle[row, col]), np.sin(angle[row, col])
            path[:, :, k, 0] = x, y, c, s
            x, y = x + STEP * c, y + STEP * s
        x, y, c, s = path
        col, row = (x - s * half).astype(int), (y + c * half).astype(int)
        i, j = rng.integers(0, 1024, (2, len(part), 1, 1))
        i, j = i + np.arange(len(half)), j + np.arange(steps)[:, None]
        hair = bristles[i % 1024, j % 1024]
        keep = rim**2 < 1.05 - (2 * along - 1) ** 6 + 0.2 * hair
        keep &= hair > 4 * along - 4.6  # the brush runs dry
        keep &= (col >= 0) & (col < WIDTH) & (row >= 0) & (row < HEIGHT)
        first, second = (ramp(colours, t)[:, None, None] for t in (tone, other))
        paint = mix(first, second, smoothstep(-0.4, 1.2, hair))
        thick = 0.5 + 0.22 * hair + 0.35 * rim**4 + 0.3 * along**6
        row, col = row[keep], col[keep]
        canvas[row, col] = paint[keep]  # where strokes overlap, the last one wins
        relief[row, col] = thick[keep] * min(1, width / 14)


def style_picture():
    """Paints every region, back to front and broad to fine, and lights the relief."""
    rng = np.random.default_rng(5)
    bristles = bristle_texture(rng)
    wave = fbm(X * 1.3, 2, 3)
    far = land(0.61 + 0.06 * np.sin(X * 5 + 3.4) + 0.06 * wave, 0.6, 60)
    near = land(0.71 + 0.06 * np.sin(X * 3.4 + 1.2) + 0.03 * wave, 0.8, 45)
    wheat = land(0.83 - 0.05 * np.sin(X * 2.6 + 2.2), 0.9, 30)
    poppies = wheat[0] & (fbm(X * 12, Y * 22, 4) > 0.36)
    dusk = "0b1640 14276b 1d3f95 2a63b5 3f8fc4 6dbcc4 b4d6b4 f0d68a f0b052"
    glow = "2f74ad 57a8b0 9cc59a d9b840 f0a828 f7c93e fbe27a fff6c8"
    leaf = "050d14 0b201c 14352a 2a4c26 55601f 8a6a20"
    regions = [
        (dusk_sky(), 1, dusk),
        *((disc(*star), 0.6, glow) for star in STARS),
        (disc(*MOON), 1, glow),
        (far, 1, "10204f 1a3a78 24568c 2f7a93 5aa39a 9cbf9a"),
        (near, 1, "0d2b35 17493f 2c6b45 5c8a3e 9a9c3c d0b04a"),
        (cypress(0.17, 0.60, 0.80, 0.022), 0.5, leaf),
        (cypress(0.23, 0.66, 0.80, 0.016), 0.5, leaf),
        (wheat, 1, "7a4216 a8641a c98a1e e0ab2c f0c84e f8e08a"),
        ((poppies, *wheat[1:]), 0.3, "8e1f14 c23a1a e2571f f0812f"),
        (cypress(0.97, 0.46, 0.97, 0.050), 0.8, leaf),
        (cypress(1.09, 0.08, 0.99, 0.085), 0.8, leaf),
    ]
    canvas, relief = np.zeros((HEIGHT, WIDTH, 3), np.float32), np.zeros_like(X)
    for region, scale, colours in regions:
        canvas[region[0]] = ramp(colours, region[2][region[0]])
        for width, length, cover in LAYERS:
            brush = width * scale, length * scale
            count = int(cover * region[0].sum() / (brush[0] * brush[1]))
            paint_strokes(canvas, relief, rng, bristles, region, colours, brush, count)
    slope = relief - np.roll(relief, (2, 2), (0, 1))
    shine = 0.25 * np.clip(slope - 0.25, 0, 1)
    return to_image(canvas * (1 + 0.38 * slope[..., None]) + shine[..., None])
