"""The kinds of drawn images, each a short function that draws a random shape.

A shape is a list of masks, from bottom to top, and the parameters it was drawn with.
Masks are arrays [FINE, FINE] of samples, 0 (clear) to 1 (painted). Lengths are in
pixels, x to the right and y down from the top left corner; angles are in degrees,
counter-clockwise. An `angle` is the direction in which lines run. Add new kinds at the
end, so that the images of the others do not change.
"""

import math
import string
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

from nstvis.data._faces import face
from nstvis.data._geometry import (
    FINE,
    SAMPLES,
    SIZE,
    frame,
    polar,
    polygon,
    smooth_noise,
    tiles,
    wave,
)

Shape = tuple[list[np.ndarray], dict[str, Any]]
KINDS: dict[str, Callable[[Generator], Shape]] = {}


def kind(function: Callable[[Generator], Shape]) -> Callable[[Generator], Shape]:
    """Adds a function to `KINDS` by its name."""
    KINDS[function.__name__.replace("_", " ")] = function
    return function


@kind
def edge(rng: Generator) -> Shape:
    """Two halves; the second is to the left of the angle."""
    _, left, at = frame(rng)
    softness = rng.choice([0.5, 2.0, 6.0])
    return [np.clip(left / softness + 0.5, 0, 1)], at | {"softness": softness}


@kind
def corner(rng: Generator) -> Shape:
    """A wedge, from the angle counter-clockwise."""
    along, left, at = frame(rng)
    opening = rng.uniform(50, 130)
    turn = math.radians(opening)
    other_side = along * math.sin(turn) - left * math.cos(turn)
    return [(left > 0) & (other_side > 0)], at | {"opening": opening}


@kind
def shade(rng: Generator) -> Shape:
    """One colour fades into another, and that perhaps into a third."""
    along, _, at = frame(rng)
    length, fades = rng.uniform(45, 80), int(rng.integers(1, 3))
    starts = along * fades / length + fades / 2
    masks = [np.clip(starts - fade, 0, 1) for fade in range(fades)]
    return masks, at | {"length": length, "fades": fades}


@kind
def blobs(rng: Generator) -> Shape:
    """One to four soft spots, each of its own colour."""
    masks, spots = [], []
    for _ in range(rng.integers(1, 5)):
        along, left, at = frame(rng, reach=20)
        radius, stretch = rng.uniform(7, 14), rng.uniform(1, 1.7)
        masks.append(np.exp(-(np.hypot(along / stretch, left) ** 4) / radius**4))
        spots.append(at | {"radius": radius, "stretch": stretch})
    return masks, {"spots": spots}


@kind
def bar(rng: Generator) -> Shape:
    """A straight bar."""
    along, left, at = frame(rng, (0, 180))
    width, length = rng.uniform(2, 9), rng.uniform(30, 90)
    mask = (abs(left) < width / 2) & (abs(along) < length / 2)
    return [mask], at | {"width": width, "length": length}


@kind
def cross(rng: Generator) -> Shape:
    """Two bars that cross."""
    along, left, at = frame(rng, (0, 90))
    width, length = rng.uniform(4, 11), rng.uniform(30, 54)
    near, far = np.minimum(abs(along), abs(left)), np.maximum(abs(along), abs(left))
    mask = (near < width / 2) & (far < length / 2)
    return [mask], at | {"width": width, "length": length}


@kind
def grating(rng: Generator) -> Shape:
    """Wide stripes in any direction."""
    _, left, at = frame(rng, (0, 180))
    period, sharpness = rng.uniform(6, 18), rng.choice([0.5, 1.0, 8.0])
    mask = wave(left / period, sharpness)
    return [mask], at | {"period": period, "sharpness": sharpness}


@kind
def fine_lines(rng: Generator) -> Shape:
    """Many thin lines, vertical or nearly so."""
    _, left, at = frame(rng, (82, 98))
    period, sharpness = rng.uniform(2.8, 5), rng.choice([0.5, 8.0])
    mask = wave(left / period, sharpness)
    return [mask], at | {"period": period, "sharpness": sharpness}


@kind
def plaid(rng: Generator) -> Shape:
    """Two sets of translucent stripes that cross."""
    along, left, at = frame(rng, (0, 90))
    periods, share = rng.uniform(8, 18, 2).tolist(), rng.uniform(0.25, 0.5)
    stripes = zip((along, left), periods)
    masks = [0.75 * (value / period % 1 < share) for value, period in stripes]
    return masks, at | {"periods": periods, "share": share}


@kind
def checkerboard(rng: Generator) -> Shape:
    """Squares of two colours."""
    along, left, at = frame(rng, (0, 90))
    side = rng.uniform(4, 11)
    return [(along // side + left // side) % 2 == 0], at | {"side": side}


@kind
def grid(rng: Generator) -> Shape:
    """Thin lines both ways."""
    along, left, at = frame(rng, (0, 90))
    spacing, width = rng.uniform(6, 15), rng.uniform(1, 2.2)
    nearest = np.minimum(abs(tiles(along, spacing)), abs(tiles(left, spacing)))
    return [nearest < width / 2], at | {"spacing": spacing, "width": width}


@kind
def honeycomb(rng: Generator) -> Shape:
    """Hexagons with walls between them."""
    along, left, at = frame(rng, (0, 60))
    spacing, wall = rng.uniform(8, 17), rng.uniform(1, 2.5)
    height = spacing * math.sqrt(3)
    depths = []  # within the hexagons of even rows, and of odd rows
    for shift in (0, 0.5):
        x = abs(tiles(along - shift * spacing, spacing))
        y = abs(tiles(left - shift * height, height))
        depths.append(spacing / 2 - np.maximum(x, x / 2 + y * math.sqrt(3) / 2))
    mask = np.maximum(*depths) > wall / 2
    return [mask], at | {"spacing": spacing, "wall": wall}


@kind
def dots(rng: Generator) -> Shape:
    """Polka dots."""
    along, left, at = frame(rng, (0, 90))
    spacing = rng.uniform(8, 18)
    radius = spacing * rng.uniform(0.22, 0.38)
    row = np.floor(left / spacing + 0.5)
    shift = rng.choice([0.0, 0.5]) * spacing * (row % 2)
    distance = np.hypot(tiles(along - shift, spacing), tiles(left, spacing))
    return [distance < radius], at | {"spacing": spacing, "radius": radius}


@kind
def circle_left(rng: Generator) -> Shape:
    """A disc or a ring on the left."""
    return circle(rng, 18)


@kind
def circle_right(rng: Generator) -> Shape:
    """A disc or a ring on the right."""
    return circle(rng, 46)


def circle(rng: Generator, x: float) -> Shape:
    """A disc or a ring around a point near x."""
    along, left, at = frame(rng, reach=6, center=(x, 32))
    radius, hole = rng.uniform(8, 15), rng.choice([0.0, 0.0, 0.6])
    distance = np.hypot(along, left)
    mask = (distance < radius) & (distance >= hole * radius)
    return [mask], {"x": at["x"], "y": at["y"], "radius": radius, "hole": hole}


@kind
def rings(rng: Generator) -> Shape:
    """Waves around a point."""
    along, left, at = frame(rng, reach=12)
    period, sharpness = rng.uniform(5, 14), rng.choice([0.5, 1.0, 8.0])
    mask = wave(np.hypot(along, left) / period + rng.random(), sharpness)
    return [mask], {"x": at["x"], "y": at["y"], "period": period}


@kind
def spiral(rng: Generator) -> Shape:
    """One to three arms, winding outwards in either direction."""
    along, left, at = frame(rng)
    distance, direction = polar(along, left)
    period, arms = rng.uniform(8, 18), int(rng.integers(1, 4))
    hand = int(rng.choice([-1, 1]))
    phase = distance / period - hand * arms * direction / (2 * math.pi)
    parameters = {"period": period, "arms": arms, "hand": hand}
    return [wave(phase, rng.choice([1.0, 8.0]))], at | parameters


@kind
def wheel(rng: Generator) -> Shape:
    """A rim, spokes and a hub."""
    along, left, at = frame(rng)
    distance, direction = polar(along, left)
    radius, width = rng.uniform(17, 27), rng.uniform(2, 4)
    spokes = int(rng.integers(5, 13))
    apart = distance * abs(np.sin(direction * spokes / 2)) * 2 / spokes
    spoke = (apart < width / 3) & (distance < radius)
    rim, hub = abs(distance - radius) < width, distance < 1.5 * width
    parameters = {"radius": radius, "width": width, "spokes": spokes}
    return [spoke | hub, rim], at | parameters


@kind
def text(rng: Generator) -> Shape:
    """Lines of letters and digits."""
    size, angle = rng.uniform(10, 30), rng.uniform(-20, 20)
    font = ImageFont.load_default(size * SAMPLES)
    rows, columns = int(72 // size), int(140 // size)
    letters = rng.choice(list(string.ascii_letters + string.digits), (rows, columns))
    gaps = rng.random((rows, columns)) < 0.15
    lines = "\n".join("".join(row) for row in np.where(gaps, " ", letters))
    image = Image.new("L", (FINE, FINE))
    middle = FINE / 2, FINE / 2
    ImageDraw.Draw(image).text(middle, lines, 255, font, "mm", align="center")
    image = image.rotate(angle, Resampling.BILINEAR)
    parameters = {"text": lines, "size": size, "angle": angle}
    return [np.asarray(image, np.float32) / 255], parameters


@kind
def flower(rng: Generator) -> Shape:
    """Petals around a centre."""
    along, left, at = frame(rng)
    distance, direction = polar(along, left)
    radius, petals = rng.uniform(18, 28), int(rng.integers(4, 10))
    swing = abs(np.cos(direction * petals / 2)) ** rng.uniform(0.5, 1.2)
    mask = distance < radius * (0.35 + 0.65 * swing)
    heart = distance < radius * rng.uniform(0.22, 0.34)
    return [mask, heart], at | {"radius": radius, "petals": petals}


@kind
def star(rng: Generator) -> Shape:
    """Four to seven points."""
    _, _, at = frame(rng)
    radius, points = rng.uniform(16, 28), int(rng.integers(4, 8))
    depth = rng.uniform(0.3, 0.5)
    radii = np.tile([radius, radius * depth], points)
    mask = polygon(np.arange(2 * points) * 180 / points, radii, at)
    return [mask], at | {"radius": radius, "points": points, "depth": depth}


@kind
def triangle(rng: Generator) -> Shape:
    """Three corners, the first in the direction of the angle."""
    _, _, at = frame(rng)
    radius, angles = rng.uniform(16, 28), np.array([0, 120, 240])
    angles = angles + rng.uniform(-20, 20, 3) * [0, 1, 1]
    parameters = {"radius": radius, "corners": angles.tolist()}
    return [polygon(angles, radius, at)], at | parameters


@kind
def waves(rng: Generator) -> Shape:
    """Wavy stripes."""
    along, left, at = frame(rng, (0, 180))
    period, length = rng.uniform(7, 15), rng.uniform(18, 40)
    amplitude = length * rng.uniform(0.12, 0.22)
    bent = left + amplitude * np.sin(2 * math.pi * along / length)
    parameters = {"period": period, "length": length, "amplitude": amplitude}
    return [wave(bent / period, rng.choice([1.0, 8.0]))], at | parameters


@kind
def noise(rng: Generator) -> Shape:
    """Fractal noise, coarse as clouds to fine as sand."""
    cells, roughness = int(rng.integers(3, 17)), rng.uniform(0.3, 0.8)
    octaves = [smooth_noise(rng, cells * 2**k) * roughness**k for k in range(3)]
    mask = np.clip(0.5 + 0.6 * sum(octaves), 0, 1)
    return [mask], {"cells": cells, "roughness": roughness}


@kind
def fur(rng: Generator) -> Shape:
    """Many hairs in about one direction, in three shades."""
    angle, length, spread = rng.uniform(0, 360), rng.uniform(8, 18), rng.uniform(5, 20)
    masks = []
    for _ in range(3):
        image = Image.new("L", (FINE, FINE))
        draw = ImageDraw.Draw(image)
        x, y = rng.uniform(-length, SIZE + length, (2, 160))
        turned = np.deg2rad(angle + rng.normal(0, spread, 160))
        tips = x + length * np.cos(turned), y - length * np.sin(turned)
        for hair in np.stack([x, y, *tips], -1) * SAMPLES:
            draw.line(hair.tolist(), 255, SAMPLES)
        masks.append(np.asarray(image) > 0)
    return masks, {"angle": angle, "length": length, "spread": spread}


@kind
def eye(rng: Generator) -> Shape:
    """Iris and pupil between two lids."""
    along, left, at = frame(rng, (-25, 25))
    width, openness = rng.uniform(20, 29), rng.uniform(0.55, 1)
    distance = np.hypot(along, left)
    lids = abs(left) < openness * width * (1 - (along / width) ** 2)
    iris, pupil = width * rng.uniform(0.4, 0.55), width * rng.uniform(0.15, 0.28)
    parameters = {"width": width, "openness": openness, "iris": iris, "pupil": pupil}
    return [lids, lids & (distance < iris), lids & (distance < pupil)], at | parameters


@kind
def fence(rng: Generator) -> Shape:
    """Pointed boards on two rails."""
    along, left, at = frame(rng, (-8, 8), reach=4)
    spacing = rng.uniform(7, 14)
    board, height = spacing * rng.uniform(0.45, 0.7), rng.uniform(36, 50)
    across = abs(tiles(along, spacing))
    boards = (across < board / 2) & (left < height / 2 - across)
    rails = abs(abs(left) - height / 4) < rng.uniform(1.5, 2.5)
    parameters = {"spacing": spacing, "board": board, "height": height}
    return [rails, boards & (left > -height / 2)], at | parameters


@kind
def keyboard(rng: Generator) -> Shape:
    """Shifted rows of keys, each with a smaller top."""
    along, left, at = frame(rng, (-30, 30))
    spacing, gap = rng.uniform(8, 15), rng.uniform(1.2, 2.2)
    shift = rng.uniform(0.2, 0.5) * spacing * np.floor(left / spacing + 0.5)
    x, y = abs(tiles(along - shift, spacing)), abs(tiles(left, spacing))
    # A norm below the maximum norm rounds the corners.
    distance = (x**6 + y**6) ** (1 / 6)
    keys, tops = distance < (spacing - gap) / 2, distance < spacing / 2 - 1.3 * gap
    return [keys, tops], at | {"spacing": spacing, "gap": gap}


@kind
def ripples(rng: Generator) -> Shape:
    """Fading waves from two or three points, superposed."""
    period, reach = rng.uniform(5, 10), rng.uniform(12, 24)
    drops, total = [], np.float32(0)
    for _ in range(rng.integers(2, 4)):
        along, left, at = frame(rng, reach=26)
        distance = np.hypot(along, left)
        swing = np.cos(2 * math.pi * distance / period)
        total = total + swing * np.exp(-distance / reach)
        drops.append({"x": at["x"], "y": at["y"]})
    mask = np.clip(0.5 + total, 0, 1)
    return [mask], {"period": period, "reach": reach, "drops": drops}


@kind
def zebra(rng: Generator) -> Shape:
    """Stripes that bend and fork."""
    _, left, at = frame(rng, (0, 180))
    period, bend = rng.uniform(7, 14), rng.uniform(6, 14)
    bent = left + bend * smooth_noise(rng, 3)
    return [wave(bent / period, 6.0)], at | {"period": period, "bend": bend}


kind(face)
