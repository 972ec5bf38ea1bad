"""Masks: which region of the content is painted in the style of which region.

The guidance of Gatys et al. 2017 (arXiv:1611.07865, section 4): region r of a picture has
a guidance channel T_r at each layer, and its Gram matrix is that of T_r F. A mask is a
picture of few plain colours, as large as the picture that it belongs to; each colour is a
region, and regions of the same colour belong together.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor
from PIL.Image import Resampling

from nstvis import images
from nstvis.units.receptive_fields import Fields

MOST_REGIONS = 64
STRIP = 64  # rows of a map that are computed at once

Path = str | os.PathLike


class Regions(NamedTuple):
    """The regions of a content and its styles.

    Attributes:
        colors: Of the regions, `#rrggbb`, sorted.
        content: The region of each of the content's pixels, uint8 `[height, width]`.
        styles: Likewise of each style's.
    """

    colors: tuple[str, ...]
    content: np.ndarray
    styles: list[np.ndarray]


def read(
    content: tuple[int, int],
    content_mask: Path,
    styles: Sequence[tuple[int, int]],
    style_masks: Sequence[Path],
) -> Regions:
    """Reads the masks of a content and its styles.

    They are of any format that `images.read` reads without losses. Their colours are
    taken as stored: neither a colour profile nor opacity is applied.

    Args:
        content: Width and height of the content.
        content_mask: File of its mask.
        styles: Width and height of each style.
        style_masks: Files of their masks, in the same order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not one mask for each style, or a mask is not a picture, of another
            size than its picture's, of more than `MOST_REGIONS` colours, or has a region
            whose colour is not on the other side.
    """
    if len(style_masks) != len(styles):
        raise ValueError(
            f"style_masks has {len(style_masks)} files for {len(styles)} styles: give one"
            " for each, in the same order"
        )
    paths, sizes = [content_mask, *style_masks], [content, *styles]
    masks = [_read_mask(path, size) for path, size in zip(paths, sizes, strict=True)]
    palettes = [_palette(mask, path) for mask, path in zip(masks, paths)]
    _check_pairs(palettes, paths)
    colors = tuple(sorted(palettes[0]))
    of_content, *of_styles = (_indices(mask, colors) for mask in masks)
    return Regions(colors, of_content, of_styles)


def scaled(indices: np.ndarray, count: int, size: tuple[int, int]) -> np.ndarray:
    """Returns how much of each pixel belongs to each region, at another size.

    Args:
        indices: The region of each pixel, as in `Regions`.
        count: Number of regions.
        size: Width and height to scale to, with a triangular filter.

    Returns:
        float32 `[count, height, width]`, 0..1, which sum to 1 at every pixel.
    """
    shares = np.empty((count, *size[::-1]), np.float32)
    for region, share in enumerate(shares):
        alone = Image.fromarray((indices == region).astype(np.float32))
        share[:] = alone.resize(size, Resampling.BILINEAR)
    return shares


def guidance(
    shares: np.ndarray, fields: Fields, shape: tuple[int, int, int]
) -> np.ndarray:
    """Computes a layer's guidance channels: the regions' shares of receptive fields.

    Fields are those of the unit that sees most, as far as they lie in the picture; the
    nearest pixels stand for a field that lies outside.

    Args:
        shares: The regions' shares of the picture's pixels, `[regions, height, width]`.
        fields: The layer's receptive fields.
        shape: Height, width and channels of its map.

    Returns:
        float32 `[regions, map height, map width]`, the means over the fields.

    Raises:
        ValueError: The units see the whole picture.
    """
    height, width, channels = shape
    boxes = fields.boxes(np.arange(channels), np.zeros((channels, 2), int))
    widest = int(np.prod(boxes[:, 2:] - boxes[:, :2], 1).argmax())
    here, there = _boxes(fields, widest, np.array([[0, 0], [1, 1]]))
    if (here == there).all():
        raise ValueError(
            "a layer whose units see the whole picture knows no regions: leave it out of"
            " style_layers, or give no masks"
        )
    down = _boxes(fields, widest, np.arange(height)[:, None] * [1, 0])[:, ::2]
    across = _boxes(fields, widest, np.arange(width)[:, None] * [0, 1])[:, 1::2]
    down, across = map(_within, (down, across), shares.shape[1:])
    guides = np.empty((len(shares), height, width), np.float32)
    # Strips of rows, as sums of a whole large picture take much memory.
    for i in range(0, height, STRIP):
        first, end = down[i, 0], down[i : i + STRIP, 1].max()
        for share, guide in zip(shares[:, first:end], guides[:, i : i + STRIP]):
            rows = down[i : i + STRIP] - first
            guide[:] = _means(_means(share, across).T, rows).T
    return guides


def _read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    mask = images.read_stored(path)
    if mask.size != size:
        sizes = "{} x {} pixels, its picture {} x {}".format(*mask.size, *size)
        raise ValueError(f"{path}: the mask has {sizes}: make them the same")
    return mask


def _palette(mask: Image.Image, path: Path) -> set[str]:
    counted: list[tuple[int, Any]] | None = mask.getcolors(MOST_REGIONS)
    if counted is None:
        raise ValueError(
            f"{path}: more than {MOST_REGIONS} colours: draw each region in one colour"
            " with hard edges (no antialiasing), and save the mask as PNG, not JPEG"
        )
    return {"#" + bytes(color).hex() for _, color in counted}


def _check_pairs(palettes: Sequence[set[str]], paths: Sequence[Path]) -> None:
    """Raises a ValueError if a colour is only in the first palette, or not in it."""
    advice = "regions that belong together have the same colour in both masks"
    (content, *styles), (content_path, *style_paths) = palettes, paths
    for color in sorted(content.difference(*styles)):
        lacking = " or ".join(map(str, style_paths))
        raise ValueError(f"{color} is in {content_path} but not in {lacking}: {advice}")
    for style, path in zip(styles, style_paths, strict=True):
        for color in sorted(style - content):
            raise ValueError(
                f"{color} is in {path} but not in {content_path}: {advice}"
            )


def _indices(mask: Image.Image, colors: Sequence[str]) -> np.ndarray:
    pixels = np.asarray(mask.convert("RGBA")).view(np.uint32)[..., 0]
    indices = np.zeros(pixels.shape, np.uint8)
    for region, color in enumerate(colors):
        rgba = np.array(ImageColor.getcolor(color, "RGBA"), np.uint8)
        indices[pixels == rgba.view(np.uint32)] = region
    return indices


def _boxes(fields: Fields, channel: int, positions: np.ndarray) -> np.ndarray:
    return fields.boxes(np.full(len(positions), channel), positions)


def _within(intervals: np.ndarray, length: int) -> np.ndarray:
    """Cuts intervals [first, end) to 0..length, but leaves one pixel at least."""
    firsts = intervals[:, 0].clip(0, length - 1)
    return np.stack([firsts, intervals[:, 1].clip(firsts + 1, length)], 1)


def _means(x: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Returns the means of each row over intervals of its columns."""
    sums = np.zeros((len(x), x.shape[1] + 1))
    np.cumsum(x, 1, np.float64, sums[:, 1:])
    firsts, ends = intervals.T
    return (sums[:, ends] - sums[:, firsts]) / (ends - firsts)
