"""Contact sheets: blocks of units' patches, as the lecture draws them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from nstvis import images
from nstvis.units import sprites
from nstvis.units.table import Layer

PAPER = (255, 255, 255)

# Unit to pictures, or uint8 `[units, n, height, width, 3]`.
Pictures = Mapping[int, Sequence[Image.Image]] | sprites.Sprites | np.ndarray


def block(
    patches: Sequence[Image.Image] | np.ndarray, side: int, gap: int = 2
) -> Image.Image:
    """Draws one unit: its patches in a square, the highest activation first.

    Args:
        patches: Pictures, or uint8 `[k, height, width, 3]`.
        side: Side at which each is drawn, in pixels.
        gap: Pixels between them.
    """
    columns = math.ceil(math.sqrt(len(patches)))
    rows = math.ceil(len(patches) / columns)
    pitch = side + gap
    picture = Image.new("RGB", (columns * pitch - gap, rows * pitch - gap), PAPER)
    for i, patch in enumerate(patches):
        cell = _picture(patch).resize((side, side), Resampling.BICUBIC)
        picture.paste(cell, (i % columns * pitch, i // columns * pitch))
    return picture


def blocks(unit: Sequence[Sequence[Image.Image]], side: int) -> Image.Image:
    """Draws one unit's patches and, beside them, its other pictures."""
    return row([block(pictures, side, 4) for pictures in unit], 8)


def sheet(
    labels: Sequence[str],
    parts: Sequence[Pictures],
    units: Sequence[int],
    side: int,
    columns: int,
) -> Image.Image:
    """Draws blocks of units side by side, with the units' labels below.

    Attributions and patches are pairs as in Zeiler & Fergus's Figure 2.

    Args:
        labels: Of all of the layer's units.
        parts: What is shown of a unit, from left to right.
        units: Which units to draw.
        side: Side at which a patch is drawn, in pixels.
        columns: Units in a row.
    """

    def pair(unit: int) -> Image.Image:
        return row([block(part[unit], side) for part in parts], 4)

    names, gap = [labels[unit] for unit in units], max(8, side // 3)
    cell = pair(units[0]).size  # which all have
    return images.sheet(map(pair, units), names, columns, gap, PAPER, cell)


def row(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Puts pictures of one height side by side, with `gap` pixels between them."""
    width = sum(picture.width + gap for picture in pictures) - gap
    joined, left = Image.new("RGB", (width, pictures[0].height), PAPER), 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + gap
    return joined


def representative(layer: Layer, patches: Pictures, count: int, seed: int) -> list[int]:
    """Picks units with strong activations and patches unlike one another's.

    The candidates are the third of the units whose top activations are the most
    standard deviations above their mean. The first pick is random; each further one is
    the farthest from those before it, by the mean of its patches at 8 x 8 pixels.

    Args:
        layer: What was measured of the units.
        patches: Those of its units.
        count: How many to pick; the result has fewer if fewer are not dead.
        seed: Of the first pick.

    Returns:
        Their numbers, in order.
    """
    strength = (layer.top.score.mean(1) - layer.mean) / np.maximum(layer.std, 1e-12)
    alive = np.flatnonzero((layer.sparsity < 1) & (layer.std > 0))
    strongest = alive[np.argsort(-strength[alive], kind="stable")]
    candidates = strongest[: max(count, len(strongest) // 3)]
    if len(candidates) <= count:
        return sorted(map(int, candidates))
    # In the order of the units, as those of a file are read together.
    small = {unit: _thumbnail(patches[unit]) for unit in np.sort(candidates)}
    thumbnails = np.stack([small[unit] for unit in candidates])
    picked = [int(np.random.default_rng(seed).integers(len(candidates)))]
    distance = np.full(len(candidates), np.inf)
    while len(picked) < count:
        squares = (thumbnails - thumbnails[picked[-1]]) ** 2
        distance = np.minimum(distance, squares.sum(1))
        distance[picked] = -1
        picked.append(int(distance.argmax()))
    return sorted(int(candidates[i]) for i in picked)


def _thumbnail(patches: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
    """Averages a unit's patches at 8 x 8 pixels."""
    small = [
        np.asarray(_picture(patch).resize((8, 8), Resampling.BOX), float)
        for patch in patches
    ]
    return np.mean(small, 0).ravel()


def _picture(patch: Image.Image | np.ndarray) -> Image.Image:
    return Image.fromarray(patch) if isinstance(patch, np.ndarray) else patch
