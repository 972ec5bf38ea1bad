"""Units as pictures: blocks of patches, as the lecture draws them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from nstvis import images
from nstvis.units.table import Layer

PAPER = (255, 255, 255)


def block(patches: np.ndarray, side: int, gap: int = 2) -> Image.Image:
    """One unit: its patches in a square, row by row, the highest activation first.

    Args:
        patches: uint8 `[k, height, width, 3]`.
        side: At which each is drawn, in pixels.
        gap: Pixels between them.
    """
    columns = math.ceil(math.sqrt(len(patches)))
    rows = math.ceil(len(patches) / columns)
    pitch = side + gap
    picture = Image.new("RGB", (columns * pitch - gap, rows * pitch - gap), PAPER)
    for i, patch in enumerate(patches):
        cell = Image.fromarray(patch).resize((side, side), Resampling.BICUBIC)
        picture.paste(cell, (i % columns * pitch, i // columns * pitch))
    return picture


def sheet(
    layer: str,
    patches: np.ndarray,
    units: Sequence[int],
    side: int,
    columns: int,
    projected: Mapping[int, np.ndarray] | None = None,
) -> Image.Image:
    """Blocks of units, each with its name below it.

    With backward pictures they are blocks in pairs, as in Zeiler & Fergus's Figure 2.

    Args:
        layer: The units' layer.
        patches: Those of all its units, uint8 `[units, k, height, width, 3]`.
        units: Which units to draw.
        side: At which a patch is drawn, in pixels.
        columns: Blocks in a row.
        projected: The units' backward pictures; drawn to the patches' left.
    """
    parts = [projected, patches] if projected else [patches]
    blocks = [row([block(part[unit], side) for part in parts], 4) for unit in units]
    names = [f"{layer}:{unit}" for unit in units]
    return images.sheet(blocks, names, columns, max(8, side // 3), PAPER)


def row(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures of one height side by side, with `gap` pixels between them."""
    width = sum(picture.width + gap for picture in pictures) - gap
    joined, left = Image.new("RGB", (width, pictures[0].height), PAPER), 0
    for picture in pictures:
        joined.paste(picture, (left, 0))
        left += picture.width + gap
    return joined


def representative(
    layer: Layer, patches: np.ndarray, count: int, seed: int
) -> list[int]:
    """Picks units that are strong and that look different from one another.

    Strong is the third of the units whose winners stand out most from the images'
    mean, in standard deviations. From a first one at random, each further one is the
    farthest from those before it, by its patches' mean at 8 x 8 pixels.

    Args:
        layer: What was found of the units.
        patches: uint8 `[units, k, height, width, 3]`.
        count: How many to pick; fewer if fewer are not dead.
        seed: Of the first one.

    Returns:
        Their numbers, in order.
    """
    best = layer.top.score.mean(1)
    strength = (best - layer.mean) / np.maximum(layer.std, 1e-12)
    alive = np.flatnonzero((layer.sparsity < 1) & (layer.std > 0))
    strongest = alive[np.argsort(-strength[alive], kind="stable")]
    pool = strongest[: max(count, len(strongest) // 3)]
    if len(pool) <= count:
        return sorted(map(int, pool))
    looks = np.stack([_look(patches[unit]) for unit in pool])
    picked = [int(np.random.default_rng(seed).integers(len(pool)))]
    distance = np.full(len(pool), np.inf)
    while len(picked) < count:
        distance = np.minimum(distance, ((looks - looks[picked[-1]]) ** 2).sum(1))
        distance[picked] = -1
        picked.append(int(distance.argmax()))
    return sorted(int(pool[i]) for i in picked)


def _look(patches: np.ndarray) -> np.ndarray:
    """What a unit's patches have in common, in few numbers."""
    small = [
        np.asarray(Image.fromarray(patch).resize((8, 8), Resampling.BOX), float)
        for patch in patches
    ]
    return np.mean(small, 0).ravel()
