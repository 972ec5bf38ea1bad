"""Top-activating patches as pictures: fetched, cropped, deduplicated.

All boxes are top, left, bottom, right in pixels, the last two exclusive.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Resampling

from nstvis import crops, data, images
from nstvis.data import Source
from nstvis.units.receptive_fields import Fields
from nstvis.units.table import Layer

DRAWN = 96  # pixels, at most, of a patch's side as it is drawn


class Images:
    """Images of data sets in a row as the network sees them, by index, and kept a while.

    Args:
        sources: The data sets.
        size: Side of the images, in pixels.
        memory: Bytes, about, of the images that are kept.

    Attributes:
        size: That side.
    """

    def __init__(self, sources: Sequence[Source], size: int, memory: int = 600_000_000):
        self._sources, self.size = sources, size
        self._ids: dict[int, str] = {}
        self._labels: dict[int, int] = {}
        keep = max(1, memory // (3 * size * size))
        self._centred = functools.lru_cache(keep)(self._fetch)

    def __getitem__(self, index: int) -> np.ndarray:
        """The image, uint8 `[size, size, 3]`.

        Raises:
            ValueError: It is damaged.
        """
        return self._centred(int(index))

    def id(self, index: int) -> str:
        """Returns an image's id; only reads the image if the data set has no index."""
        return self._ids.get(index) or data.id_of(*self._place(index))

    def label(self, index: int) -> int:
        """Returns an image's label; only reads the image if it has not been read."""
        if index not in self._labels:
            self[index]
        return self._labels[index]

    def _fetch(self, index: int) -> np.ndarray:
        source, place = self._place(index)
        example = source[place]
        self._ids[index], self._labels[index] = example.id, example.label
        return np.asarray(crops.centered(example, self.size))

    def _place(self, index: int) -> tuple[Source, int]:
        """Returns the data set that has an image, and its index there."""
        for source in self._sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)


def crop(
    image: np.ndarray,
    box: Sequence[int],
    rows: np.ndarray,
    columns: np.ndarray,
    grey: int = images.GREY,
) -> np.ndarray:
    """Crops what a unit sees of an image; grey where the image does not matter.

    Args:
        image: uint8 `[height, width, 3]`.
        box: The receptive field, which may hang over the border.
        rows: Which rows matter, bool `[height]`.
        columns: Which columns do.
        grey: Which grey.

    Returns:
        uint8 of the box's size; of what the box and the image share in a direction in
        which the box is larger than the image.
    """
    height, width = image.shape[:2]
    top, bottom = _extent(box[0], box[2], height)
    left, right = _extent(box[1], box[3], width)
    patch = np.full((bottom - top, right - left, 3), grey, np.uint8)
    if rows.any() and columns.any():
        y, x = (np.flatnonzero(seen)[[0, -1]] + [0, 1] for seen in (rows, columns))
        patch[slice(*y - top), slice(*x - left)] = image[slice(*y), slice(*x)]
    return patch


def _extent(first: int, end: int, length: int) -> tuple[int, int]:
    """Limits a field that is longer than the image, of `length`, to the image."""
    if end - first > length:
        first, end = np.clip([first, end], 0, length)
    return int(first), int(end)


def fitted(patch: np.ndarray, side: int, grey: int = images.GREY) -> np.ndarray:
    """Scales a patch to a square of `side` pixels, with grey beside if it is none."""
    if patch.shape[:2] == (side, side):
        return patch
    if not patch.size:  # a unit that sees nothing
        return np.full((side, side, 3), grey, np.uint8)
    picture = ImageOps.pad(
        Image.fromarray(patch), (side, side), Resampling.LANCZOS, color=(grey,) * 3
    )
    return np.asarray(picture)


def drawn_side(layer: Layer, fields: Fields) -> int:
    """Returns the side at which a layer's patches are drawn, in pixels.

    It is that of the largest field, as far as that is within an image.
    """
    sides = (max(fields.visible_size(unit)) for unit in range(len(layer.mean)))
    return min(DRAWN, max(1, *sides))


def pick(
    layer: Layer,
    fields: Fields,
    pictures: Images,
    k: int,
    deduplicate: bool,
    first: int = 0,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Picks and crops each unit's top-activating patches.

    Args:
        layer: With more candidates in `top` than are picked, if some may be dropped.
        fields: The layer's receptive fields.
        pictures: Where the images are.
        k: Patches of a unit.
        deduplicate: Whether near-duplicates are dropped; see `distinct`.
        first: The unit to begin with.

    Yields:
        For each unit the ranks of the picked candidates, at most `k`, and uint8
        `[k, side, side, 3]`: the patches at one size, grey where there is none.
    """
    top, side = layer.top, drawn_side(layer, fields)
    for unit in range(first, len(top.score)):

        @functools.cache
        def patch(rank: int, unit: int = unit) -> np.ndarray:
            rows, columns = fields.support(unit, *top.position[unit, rank])
            image = pictures[top.image[unit, rank]]
            return fitted(crop(image, top.box[unit, rank], rows, columns), side)

        ranks = np.flatnonzero(top.image[unit] >= 0).tolist()
        candidates = [(top.image[unit, rank], top.box[unit, rank]) for rank in ranks]
        picked = distinct(candidates, patch, k) if deduplicate else ranks[:k]
        drawn = np.full((k, side, side, 3), images.GREY, np.uint8)
        for place, rank in enumerate(picked):
            drawn[place] = patch(rank)
        yield picked, drawn


def distinct(
    candidates: Sequence[tuple[int, Sequence[int]]],
    patch: Callable[[int], np.ndarray],
    count: int,
) -> list[int]:
    """Picks the first candidates that are no near-duplicates of those before them.

    A near-duplicate is a patch of the same image that overlaps by half, or one that
    hardly differs: by less than 6 grey levels (root mean square). Where there is not
    enough else, the first of them are picked, too.

    Args:
        candidates: (image, box), in order.
        patch: What a candidate looks like, by number.
        count: How many to pick.

    Returns:
        Their numbers, in order.
    """

    def similar(a: int, b: int) -> bool:
        (image, box), (other_image, other_box) = candidates[a], candidates[b]
        overlapping = image == other_image and _overlap(box, other_box) > 0.5
        return overlapping or _difference(patch(a), patch(b)) < 6

    picked: list[int] = []
    for number in range(len(candidates)):
        if len(picked) == count:
            break
        if not any(similar(other, number) for other in picked):
            picked.append(number)
    dropped = [i for i in range(len(candidates)) if i not in picked]
    return sorted(picked + dropped[: count - len(picked)])


def _overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Area of the intersection over that of the union."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, height) * max(0, width)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b) ** 2)))
