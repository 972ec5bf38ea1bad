"""The content picture: an evening landscape with mountains, a lake, firs, a house."""

import numpy as np
from PIL import ImageChops, ImageDraw, ImageFilter

from nstvis.assets._noise import (
    COLS,
    HEIGHT,
    ROWS,
    WIDTH,
    fbm,
    mix,
    noise,
    ramp,
    ridged,
    smoothstep,
    to_image,
)

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
    """Finds where each pixel's ray meets the terrain, shades it, returns the depths."""
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
    """Scatters small firs in clumps over the near hills, the farthest first."""
    rows, cols = np.nonzero(depth < 3.6)
    z = depth[rows, cols]
    chance = smoothstep(-0.3, 0.2, noise(cols * z / 130, z * 5)) + 0.01
    picks = rng.choice(len(rows), 1600, replace=False, p=chance / chance.sum())
    for k in picks[np.argsort(-z[picks])]:
        height = FOCAL * rng.uniform(0.02, 0.045) / z[k]
        draw_fir(draw, rng, cols[k], rows[k], height, haze=0.10 + 0.12 * z[k])


def paint_lake(picture, depth):
    """Mirrors the far shore in rippled water with a glitter path under the sun."""
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
    """Grass and flowers from `start` (0, far edge) to `stop` (1, the viewer)."""
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
    """Composes the landscape from back to front."""
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
