"""Draw the two demo pictures from nothing but noise, geometry and brush strokes.

``demo_content.jpg`` is an evening landscape: mountains, a lake, fir trees, a house.
``demo_style.jpg`` is an oil painting: a swirling dusk sky, hills, wheat, cypresses.
Both are deterministic and use no third-party material.  To write them again, run
``python -m nstvis.assets.make_demo``.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SCALE = 2  # everything is drawn this much larger, then reduced for antialiasing
WIDTH, HEIGHT = 640 * SCALE, 480 * SCALE
ROWS, COLS = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
LATTICE = np.random.default_rng(7).uniform(0, 2 * np.pi, (256, 256)).astype(np.float32)
LATTICE_X, LATTICE_Y = np.cos(LATTICE), np.sin(LATTICE)


def smoothstep(low, high, x):
    """Rise smoothly from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, t):
    """Blend colours ``a`` and ``b`` by the weight map ``t``."""
    t = np.asarray(t)[..., None]
    return np.asarray(a) * (1 - t) + np.asarray(b) * t


def ramp(codes, t):
    """Look up ``t`` in [0, 1] on a ramp of evenly spaced ``rrggbb`` colours."""
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
    """Fractal noise: octaves of ``noise`` at doubling frequency, about -1 to 1."""
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
    """Convert a float picture in [0, 1] to a Pillow image."""
    return Image.fromarray((np.clip(colour, 0, 1) * 255).astype(np.uint8))


# ---------------------------------------------------------------- content picture

HORIZON, FOCAL, EYE = 0.5 * HEIGHT, 0.9 * WIDTH, 0.06  # camera; EYE above the lake
SUN_COL, SUN_ROW = 0.34 * WIDTH, 0.29 * HEIGHT


def paint_sky():
    """Evening gradient, glow around the sun and sunlit fractal clouds."""
    up = (HORIZON - ROWS) / HORIZON
    sky = ramp("f9cf9a f3c7a4 c9bfc4 8fa9ca 5b84b8 3a639f 2c4f8a", up)
    away = np.hypot(COLS - SUN_COL, (ROWS - SUN_ROW) * 1.2) / HEIGHT
    sky = mix(sky, [1.0, 0.80, 0.50], 0.75 * np.exp(-away * 4.5))
    depth = 0.42 / (np.maximum(up, 0) + 0.16)  # of a flat cloud layer overhead
    x, y = (COLS - WIDTH / 2) / HEIGHT * depth * 3.2, depth * 4.4
    warp = 0.25 * fbm(x * 1.1 + 5, y * 1.1, 3)

    def density(x, y):
        return smoothstep(-0.15, 0.55, fbm(x + warp + 21, y + warp + 3, 7))

    cloud = density(x, y)
    shadow = density(x + np.clip((SUN_COL - COLS) / 300, -1, 1) * 0.06, y + 0.1)
    shade = ramp("7c7f9e b9a0ab f2c3a0 ffe6c0", 0.55 + 1.6 * (cloud - shadow))
    shade = mix(shade, [1.0, 0.86, 0.62], np.exp(-away * 5))
    sky = mix(sky, shade, cloud * 0.9 * smoothstep(0.0, 0.25, up))
    return mix(sky, [1.0, 0.97, 0.86], smoothstep(0.05, 0.025, away))


def terrain(x, z):
    """Height above the lake: wooded hills at the shore, high mountains behind."""
    shore = 1.35 + 0.25 * fbm(x * 1.5, 3, 3)
    rise = smoothstep(shore, shore + 1.6, z)
    hills = rise * (0.15 + 0.35 * fbm(x * 0.9 + 4, z * 0.9, 6))
    valley = 1 - 0.72 * np.exp(-(((x / z + 0.17) / 0.15) ** 2))
    peaks = smoothstep(2.6, 8, z) * valley * ridged(x * 0.42 + 1.3, z * 0.42, 8)
    return hills + 2.3 * peaks - 0.02 * (1 - rise)


def paint_terrain(picture):
    """Find where each pixel's ray meets the terrain, shade it, return the depths."""
    depths = np.geomspace(1.1, 13, 500, dtype=np.float32)[:, None]
    across = (COLS - WIDTH / 2) / FOCAL
    rows = HORIZON - FOCAL * (terrain(across[:1] * depths, depths) - EYE) / depths
    skyline = -np.minimum.accumulate(rows, 0)
    columns = zip(-ROWS.T, skyline.T, strict=True)
    depth = [np.interp(r, s, depths[:, 0], right=np.inf) for r, s in columns]
    depth = np.where(ROWS < HORIZON + FOCAL * EYE / 1.12, np.transpose(depth), np.inf)
    hit = np.isfinite(depth)
    z = depth[hit]
    x = across[hit] * z
    height, step = terrain(x, z), 0.004 * z
    slope_x = (terrain(x + step, z) - height) / step
    slope_z = (terrain(x, z + step) - height) / step
    level = 1 / np.sqrt(1 + slope_x**2 + slope_z**2)
    grain = fbm(x * 9, z * 9 + height * 20, 5)
    ground = ramp("26381f 3c4f2a 66663a", 0.5 + 0.5 * grain)
    rock = ramp("4a4548 6d6461 8d8078", 0.5 + 0.7 * grain)
    ground = mix(ground, rock, smoothstep(0.35, 0.7, height + 0.25 * grain))
    snow = smoothstep(0.62, 0.95, height + 0.35 * grain + 0.5 * level - 0.38)
    ground = mix(ground, [0.93, 0.95, 1.0], snow * smoothstep(0.35, 0.6, level))
    sunlit = np.clip((0.5 + 0.72 * slope_x + 0.48 * slope_z) * level, 0, 1)
    colour = ground * mix([0.25, 0.31, 0.45], [1.55, 1.22, 1.02], sunlit)
    glow = np.exp(-np.abs(COLS[hit] - SUN_COL) / (0.3 * WIDTH))
    haze = mix([0.62, 0.68, 0.80], [0.98, 0.80, 0.62], glow)
    picture[hit] = mix(colour, haze, 1 - np.exp(-0.13 * z - 0.25 * glow * (z > 2)))
    return depth


def draw_fir(draw, rng, x, base, height, haze=0.0):
    """A fir tree: whorls of drooping, needled branches, lit on the side of the sun."""
    foot = height / 50
    draw.polygon([x - foot, base, x, base - height * 1.02, x + foot, base], "#241d16")
    whorls = int(3 + 0.9 * height**0.5)
    for t in np.linspace(0.95, 0.0, whorls) + rng.uniform(0, 0.04, whorls):
        crown = base - height * (1 - 0.93 * t)
        reach = height * (0.015 + 0.24 * t**0.85)
        for u in sorted(rng.uniform(-1, 1, 5 + whorls // 2), key=abs, reverse=True):
            tip = u * reach * rng.uniform(0.7, 1.2)
            drop = reach * (0.7 - 0.35 * abs(u)) * rng.uniform(0.8, 1.2)
            count = int(4 + reach / 3)
            for along in np.linspace(0, 1, count) + rng.uniform(0, 0.08, count):
                px, py = x + tip * along, crown + drop * along**1.4
                size = (1.5 + 0.04 * height * (0.3 + t)) * (1.15 - 0.6 * along)
                light = 0.25 + along * (0.55 - 0.3 * u) + rng.normal(0, 0.12)
                colour = np.array([44, 70, 42]) * max(light + 0.15, 0.2)
                colour += np.array([62, 50, 14]) * max(0, light - 0.45)
                colour = colour * (1 - haze) + np.array([150, 152, 165]) * haze
                dx = size * (np.sign(u) * 0.5 + rng.normal(0, 0.5))
                line = [px, py, px + dx, py + size * rng.uniform(0.3, 1.0)]
                draw.line(line, tuple(colour.astype(int)), 1 + int(height > 120))


def draw_forest(draw, rng, depth):
    """Scatter small firs in clumps over the near hills, the farthest first."""
    rows, cols = np.nonzero(depth < 3.6)
    z = depth[rows, cols]
    chance = smoothstep(-0.3, 0.2, noise(cols * z / 130, z * 5)) + 0.01
    picks = rng.choice(len(rows), 1600, replace=False, p=chance / chance.sum())
    for k in picks[np.argsort(-z[picks])]:
        height = FOCAL * rng.uniform(0.02, 0.045) / z[k]
        draw_fir(draw, rng, cols[k], rows[k], height, haze=0.10 + 0.12 * z[k])


def paint_lake(picture, depth):
    """Mirror the far shore in rippled water with a glitter path under the sun."""
    shore = np.where(np.isfinite(depth), ROWS, 0).max(0)
    rows, cols = np.nonzero((ROWS > shore) & (ROWS > HORIZON))
    below = rows - shore[cols]
    z = FOCAL * EYE / (rows - HORIZON + 1)
    x = (cols - WIDTH / 2) * z / FOCAL
    ripple = fbm(x * 40, z * 110, 4)
    calm = smoothstep(-0.3, 0.3, fbm(x * 3, z * 6, 3))
    swell = ripple * (0.06 + 0.10 * calm) * (below + 25)
    shift = np.clip(cols + swell * 0.5, 0, WIDTH - 1).astype(int)
    source = np.clip(shore[cols] - below * 0.95 + swell * 2, 0, shore[shift])
    mirrored = picture[source.astype(int), shift] * [0.84, 0.88, 0.92]
    deep = 0.12 + 0.5 * smoothstep(0, 0.45 * HEIGHT, below)
    colour = mix(mirrored, [0.10, 0.22, 0.30], deep)
    colour += 0.10 * np.clip(ripple, 0, 1)[:, None] * [1.0, 0.9, 0.8]
    spread = np.exp(-(((cols - SUN_COL) / (28 + 0.28 * below)) ** 2))
    glitter = smoothstep(0.08, 0.4, noise(x * 90, z * 260) + 0.3 * ripple) * spread
    picture[rows, cols] = mix(colour, [1.0, 0.86, 0.60], 0.85 * glitter)


def meadow_edge(col):
    """Row where the meadow meets the lake; a bank rises on the right."""
    u = col / WIDTH
    bank = 0.86 - 0.15 * smoothstep(0.35, 0.8, u) - 0.03 * smoothstep(0.25, 0.0, u)
    return HEIGHT * (bank + 0.012 * fbm(u * 6, 9, 4))


def draw_meadow(image, rng, start, stop, count):
    """Grass and flowers from ``start`` (0, far edge) to ``stop`` (1, the viewer)."""
    draw = ImageDraw.Draw(image)
    cols, near = rng.uniform(0, WIDTH, count), np.sort(rng.uniform(start, stop, count))
    rows = meadow_edge(cols) * (1 - near) + near * HEIGHT * 1.04
    patch = fbm(cols / 160, rows / 50, 4)
    tone = 0.42 + 0.45 * patch - 0.1 * near + rng.normal(0, 0.13, count)
    tone = ramp("27331a 3b4d22 58682c 7d8236 a89c4a d6bd68", tone) * 255
    bend = rng.normal(0.15, 0.35, count) + 0.3 * patch
    size = (6 + 34 * near) * rng.uniform(0.5, 1.2, count)
    blooms = rng.random(count) < 0.02 * smoothstep(0.0, 0.3, patch)
    for k in range(count):
        x, y, lean, length = cols[k], rows[k], bend[k] * size[k], size[k]
        blade = [(x, y), (x + lean * 0.3, y - length * 0.6), (x + lean, y - length)]
        draw.line(blade, tuple(tone[k].astype(int)), 1 + int(length > 22))
        if blooms[k]:
            petal = ("#f4efe2", "#f2c53d", "#d8503a")[k % 3]
            draw.circle(blade[2], 1 + length / 12, petal)


def draw_house(image, left, base, size):
    """A timber house seen from its corner, its windows lit."""
    draw = ImageDraw.Draw(image)

    def at(*uv):
        return [(left + size * u, base - size * v) for u, v in np.reshape(uv, (-1, 2))]

    draw.polygon(at(0.42, 0, 1.25, 0.05, 1.25, 0.4, 0.42, 0.42), "#543829")
    draw.polygon(at(0, 0.04, 0.42, 0, 0.42, 0.42, 0.21, 0.72, 0, 0.42), "#b07a4c")
    for v in np.arange(0.03, 0.42, 0.035):
        draw.line(at(0.42, v, 1.25, 0.05 + v * 0.83), "#42291e", 2)
        draw.line(at(0.0, 0.04 + v * 0.9, 0.42, v), "#8d5a37", 2)
    draw.polygon(at(0.98, 0.62, 1.08, 0.62, 1.08, 0.9, 0.98, 0.9), "#6e4a40")
    draw.polygon(at(0.98, 0.62, 1.01, 0.62, 1.01, 0.9, 0.98, 0.9), "#b07a60")
    tiles = "#4c251d", "#6b3a30", "#75433a", "#6b3a30", "#75433a"
    for k, t in enumerate(np.linspace(0, 1, 50)):  # the roof, from its ridge down
        course = at(0.21 + 0.26 * t, 0.77 - 0.4 * t, 1.05 + 0.28 * t, 0.73 - 0.37 * t)
        draw.line(course, tiles[k % 5], 4)
    draw.line(at(-0.05, 0.38, 0.21, 0.77, 0.47, 0.37), "#e2b98a", 9, joint="curve")
    draw.polygon(at(0.8, 0.03, 0.92, 0.03, 0.92, 0.29, 0.8, 0.29), "#2f5a5e")
    for u, v in (0.12, 0.16), (0.55, 0.17), (1.0, 0.18), (0.14, 0.45):
        pane = at(u, v + 0.15, u + 0.15, v)
        draw.rectangle(pane, "#ffd877", outline="#efe0c4", width=4)
        draw.line(at(u + 0.075, v + 0.02, u + 0.075, v + 0.13), "#8a5a34", 3)
        draw.line(at(u + 0.02, v + 0.075, u + 0.13, v + 0.075), "#8a5a34", 3)


def content_picture():
    """Compose the landscape from back to front."""
    rng = np.random.default_rng(11)
    picture = paint_sky()
    depth = paint_terrain(picture)
    image = to_image(picture)
    draw_forest(ImageDraw.Draw(image), rng, depth)
    picture = np.asarray(image) / 255
    paint_lake(picture, depth)
    picture[meadow_edge(COLS[:1]) < ROWS] = ramp("39451f", 0)
    image = to_image(picture)
    draw = ImageDraw.Draw(image)
    for u, h in (0.62, 0.30), (0.97, 0.44), (0.88, 0.36), (0.56, 0.2):
        base = meadow_edge(u * WIDTH) + 0.02 * HEIGHT
        draw_fir(draw, rng, u * WIDTH, base, h * HEIGHT)
    draw_meadow(image, rng, 0.0, 0.3, 14000)
    draw_house(image, 0.60 * WIDTH, 0.785 * HEIGHT, 0.26 * HEIGHT)
    draw_meadow(image, rng, 0.22, 0.8, 18000)
    for u, v, h in (0.075, 0.93, 0.66), (0.20, 0.97, 0.34), (0.95, 0.97, 0.40):
        draw_fir(draw, rng, u * WIDTH, v * HEIGHT, h * HEIGHT)
    draw_meadow(image, rng, 0.78, 1.0, 7000)
    glow = image.point([max(0, p - 190) for p in range(256)] * 3).filter(
        ImageFilter.GaussianBlur(14)
    )
    return ImageChops.add(image, glow)


# ------------------------------------------------------------------ style picture

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
    """Mask, angle and tone of a slope below ``crest``, stroked along its curves."""
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
    """Brush ``count`` curved strokes, started inside a region, onto the canvas."""
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
    """Paint every region, back to front and broad to fine, and light the relief."""
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


def main():
    """Write both pictures, reduced to their final size, next to this file."""
    for name, picture in ("content", content_picture), ("style", style_picture):
        path = Path(__file__).with_name(f"demo_{name}.jpg")
        picture().reduce(SCALE).save(path, quality=92, optimize=True)


if __name__ == "__main__":
    main()
