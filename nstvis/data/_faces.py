"""Drawn faces, with the boxes of their eyes, nose and mouth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator

from nstvis.data._geometry import SAMPLES, frame, tiles

# Masks of what is painted in the light colour, and of the ink on top of it.
Part = tuple[np.ndarray, np.ndarray]

CHOICES = {
    "style": ("filled", "inked", "outlined", "hatched", "dotted"),
    "eyes": ("dots", "rings", "round", "almonds", "smiling", "sleeping"),
    "nose": ("dot", "ball", "line", "hook", "triangle", "nostrils"),
    "mouth": ("line", "open", "ring", "grin", "lips"),
    "hair": ("none", "cap", "parted", "fringe", "long"),
}


def face(rng: Generator) -> tuple[list[np.ndarray], dict[str, Any]]:
    """A head with two eyes, a nose and a mouth, perhaps with brows, ears and hair.

    Its parameter `boxes` has the box of each part: top, left, bottom and right of all
    pixels that it touches, the last two exclusive. The left eye is the one on the left
    of the image. No two boxes overlap.
    """
    along, left, at = frame(rng, (-9, 9), reach=4)
    height, stroke = rng.uniform(19, 26), rng.uniform(1.5, 2.6)
    width = height * rng.uniform(0.76, 1)
    depth = _depth(along, left, width, height, rng)
    chosen = {name: str(rng.choice(kinds)) for name, kinds in CHOICES.items()}
    head = _head(chosen["style"], along, left, depth, stroke)
    hair = _hair(chosen["hair"], along, left, depth, width, height)
    parts = _parts(chosen, along, left, width, height, stroke, rng)
    light, ink = painted(parts)
    if chosen["style"] == "inked":
        ink = np.maximum(ink, (abs(depth) < stroke / 2) & ~hair)
    if rng.random() < 0.6:
        ink = np.maximum(ink, _brows(along, left, width, height, stroke, rng))
    masks = [mask for mask in (head, hair, light, ink) if mask.any()]
    boxes = {name: box(parts[name]) for name in parts}
    sizes = {"width": width, "height": height, "stroke": stroke}
    return masks, at | sizes | chosen | {"boxes": boxes}


def painted(parts: Mapping[str, Part]) -> Part:
    """Returns the union of all parts."""
    light, ink = zip(*parts.values())
    return np.maximum.reduce(light), np.maximum.reduce(ink)


def box(part: Part) -> list[int]:
    """Returns top, left, bottom and right of the pixels that a part touches."""
    touched = part[0] | part[1]
    rows, columns = (np.flatnonzero(touched.any(axis)) // SAMPLES for axis in (1, 0))
    return [int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1]


def _depth(
    x: np.ndarray, y: np.ndarray, width: float, height: float, rng: Generator
) -> np.ndarray:
    """Returns signed distances from the outline of head and ears, in about pixels."""
    power, taper = rng.choice([2.0, 2.0, 2.5, 4.0]), rng.uniform(-0.02, 0.22)
    across = abs(x) / width / (1 + taper * y / height)
    level = (across**power + abs(y / height) ** power) ** (1 / power)
    depth = (level - 1) * width
    if rng.random() < 0.5:
        ears = np.hypot(abs(x) - width, y) - rng.uniform(0.14, 0.24) * height
        depth = np.minimum(depth, ears)
    return depth


def _head(
    style: str, x: np.ndarray, y: np.ndarray, depth: np.ndarray, stroke: float
) -> np.ndarray:
    outline, inside = abs(depth) < stroke / 2, depth < 0
    lines = abs(tiles(x + y, 5)) < 1.2
    dots = np.hypot(tiles(x + y, 5), tiles(x - y, 5)) < 1.4
    return {
        "filled": inside,
        "inked": inside,
        "outlined": outline,
        "hatched": np.maximum(outline, 0.5 * (inside & lines)),
        "dotted": np.maximum(outline, 0.5 * (inside & dots)),
    }[style]


def _hair(
    style: str,
    x: np.ndarray,
    y: np.ndarray,
    depth: np.ndarray,
    width: float,
    height: float,
) -> np.ndarray:
    line = 0.66 * height - 0.3 * height * (x / width) ** 2
    above, cap = depth < 0.1 * height, y > line
    zigzag = 0.58 * height + 0.7 * abs(tiles(x, width / 2.5))
    parted = line - 0.1 * height + 0.35 * abs(x - 0.4 * width)
    strands = (depth > 0) & (depth < 0.28 * height) & (y > -0.75 * height)
    return {
        "none": above & False,
        "cap": above & cap,
        "parted": above & (y > parted),
        "fringe": above & (y > zigzag),
        "long": above & cap | strands,
    }[style]


def _parts(
    chosen: Mapping[str, str],
    x: np.ndarray,
    y: np.ndarray,
    width: float,
    height: float,
    stroke: float,
    rng: Generator,
) -> dict[str, Part]:
    """Draws eyes, nose and mouth."""
    eye, apart = rng.uniform(0.15, 0.21) * width, rng.uniform(0.43, 0.48) * width
    level, look = rng.uniform(0.19, 0.26) * height, rng.uniform(-0.35, 0.35)
    nose, mouth = rng.uniform(0.12, 0.17) * height, rng.uniform(0.28, 0.5) * width
    rise = rng.uniform(-0.16, 0.1) * height
    wink = "smiling" if rng.random() < 0.1 else chosen["eyes"]
    return {
        "left eye": _eye(chosen["eyes"], x + apart, y - level, eye, stroke, look),
        "right eye": _eye(wink, x - apart, y - level, eye, stroke, look),
        "nose": _nose(chosen["nose"], x, y + 0.19 * height, nose, stroke),
        "mouth": _mouth(chosen["mouth"], x, y + 0.64 * height, mouth, stroke, rise),
    }


def _eye(
    kind: str, x: np.ndarray, y: np.ndarray, size: float, stroke: float, look: float
) -> Part:
    distance, none = np.hypot(x, y), np.zeros(x.shape, bool)
    pupil = np.hypot(x - look * size, y) < 0.45 * size
    wide, rise = 1.15 * size, 0.75 * size
    lids = abs(y) < rise * (1 - (x / wide) ** 2)
    lash = _bow(x, y - rise / 2, wide, rise, stroke)
    return {
        "dots": (none, distance < 0.7 * size),
        "rings": (none, abs(distance - 0.8 * size) < stroke / 2),
        "round": (distance < size, pupil | (abs(distance - size) < stroke / 3)),
        "almonds": (lids, lids & pupil | lash),
        "smiling": (none, _bow(x, y, wide, rise, stroke)),
        "sleeping": (none, _bow(x, y, wide, -0.5 * size, stroke)),
    }[kind]


def _nose(kind: str, x: np.ndarray, y: np.ndarray, size: float, stroke: float) -> Part:
    distance, none = np.hypot(x, y), np.zeros(x.shape, bool)
    line = (abs(x) < stroke / 2) & (abs(y) < size)
    foot = (abs(y + 0.8 * size) < stroke / 2) & (abs(x - 0.3 * size) < 0.4 * size)
    rim = abs(distance - 0.65 * size) < stroke / 3
    return {
        "dot": (none, distance < 0.6 * size),
        "ball": (distance < 0.65 * size, rim),
        "line": (none, line),
        "hook": (none, line & (y > -0.8 * size) | foot),
        "triangle": (none, (y > -0.8 * size) & (abs(x) < 0.45 * (0.8 * size - y))),
        "nostrils": (none, np.hypot(abs(x) - 0.55 * size, y) < 0.35 * size),
    }[kind]


def _mouth(
    kind: str, x: np.ndarray, y: np.ndarray, size: float, stroke: float, rise: float
) -> Part:
    none, low = np.zeros(x.shape, bool), y - 0.25 * size
    grin = (np.hypot(x / size, low / size / 0.65) < 1) & (low < 0)
    teeth = grin & (low > -0.3 * size) & (abs(x) < 0.85 * size)
    lips = abs(y) < 0.35 * size * (1 - (x / size) ** 2)
    return {
        "line": (none, _bow(x, y, size, rise, stroke)),
        "open": (none, np.hypot(x, 2 * y) < 0.8 * size),
        "ring": (none, abs(np.hypot(x, y) - 0.3 * size) < stroke / 2),
        "grin": (teeth, grin & ~teeth),
        "lips": (lips, _bow(x, y, size, 0.3 * rise, stroke / 1.5)),
    }[kind]


def _brows(
    x: np.ndarray,
    y: np.ndarray,
    width: float,
    height: float,
    stroke: float,
    rng: Generator,
) -> np.ndarray:
    """Draws brows above the eyes, which rise outwards or inwards."""
    x = abs(x) - 0.42 * width
    y = y - rng.uniform(0.48, 0.54) * height - rng.uniform(-0.3, 0.3) * x
    return _bow(x, y, 0.24 * width, rng.uniform(0, 0.08) * height, stroke)


def _bow(
    x: np.ndarray, y: np.ndarray, reach: float, rise: float, stroke: float
) -> np.ndarray:
    """Draws a bow whose middle is `rise` higher than its ends."""
    middle = rise * (0.5 - (x / reach) ** 2)
    return (abs(y - middle) < stroke / 2) & (abs(x) < reach)
