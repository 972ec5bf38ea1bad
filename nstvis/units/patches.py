"""The winners' pictures: fetched again, proved, cut out, and told apart.

All boxes are top, left, bottom, right in pixels, the last two exclusive.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image, ImageOps
from PIL.Image import Resampling

from nstvis import crops, images
from nstvis.data import Example, Source
from nstvis.models import Forward, Params
from nstvis.units import maxima
from nstvis.units.receptive_fields import Fields
from nstvis.units.table import Layer

DRAWN = 96  # pixels, at most, of a patch's side as it is drawn


class Pictures:
    """Images of data sets in a row as the network sees them, by index, and kept a while.

    Args:
        sources: The data sets.
        size: Side of the images, in pixels.

    Attributes:
        size: That side.
    """

    def __init__(self, sources: Sequence[Source], size: int):
        self._sources, self.size = sources, size
        # About 600 MB.
        keep = max(256, 600_000_000 // (3 * size * size))
        self._centred = functools.lru_cache(keep)(self._fetch)

    def __getitem__(self, index: int) -> np.ndarray:
        """The image, uint8 `[size, size, 3]`.

        Raises:
            ValueError: It is damaged.
        """
        return self._centred(int(index))

    def _fetch(self, index: int) -> np.ndarray:
        return np.asarray(crops.centered(self.example(index), self.size))

    def example(self, index: int) -> Example:
        """What the data set has there.

        Raises:
            IndexError: Nothing.
        """
        for source in self._sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def verify(
    forward: Forward,
    params: Params,
    layers: Mapping[str, int],
    best: maxima.Best,
    pictures: Pictures,
    batch: int,
) -> Iterator[int]:
    """Recomputes the activations of winners from their images, fetched again.

    Args:
        forward: The network.
        params: Its parameters.
        layers: Layer to number of units.
        best: The winners, `[n, units]`, in NumPy.
        pictures: Where the images are.
        batch: Images in a batch.

    Yields:
        How many of the images are done, of all as the first number.

    Raises:
        ValueError: One is not what was recorded, within rounding.
    """
    claims, slots = _claims(best)
    winners = np.unique(claims[:, 0])
    yield len(winners)
    compute = jax.jit(functools.partial(_activations_at, forward, layers))
    scale = np.abs(np.where(np.isfinite(best.score), best.score, 0)).max(0)
    for first in range(0, len(winners), batch):
        some = winners[first : first + batch]
        mine = slice(*np.searchsorted(claims[:, 0], [some[0], some[-1] + 1]))
        image, slot, unit, position, row = claims[mine].T
        place = np.searchsorted(some, image)
        positions = np.zeros((batch, slots, best.score.shape[1]), np.int32)
        positions[place, slot, unit] = position
        blank = np.zeros_like(pictures[some[0]])
        images = [pictures[i] for i in some] + [blank] * (batch - len(some))
        found = np.asarray(compute(params, np.stack(images), positions))
        recorded = best.score[row, unit]
        error = np.abs(found[place, slot, unit] - recorded)
        wrong = np.flatnonzero(~(error <= 1e-4 * scale[unit] + 1e-6))
        if len(wrong):
            i = wrong[0]
            layer, number = unit_name(layers, int(unit[i]))
            raise ValueError(
                f"{layer}:{number} was {recorded[i]:.6g} for"
                f" {pictures.example(int(image[i])).id} and is"
                f" {found[place[i], slot[i], unit[i]]:.6g} now: the network is not a"
                " function of the image alone, or the data set has changed"
            )
        yield first + len(some)


def _claims(best: maxima.Best) -> tuple[np.ndarray, int]:
    """RankedPatches as rows: image, slot, unit, position, rank; and the number of slots.

    Those of the same image and unit have different slots.
    """
    rank, unit = np.nonzero(best.image != maxima.SENTINEL)
    image, position = (part[rank, unit] for part in (best.image, best.position))
    order = np.lexsort((position, unit, image))
    image, unit, position, rank = (x[order] for x in (image, unit, position, rank))
    new = np.r_[True, (np.diff(image) != 0) | (np.diff(unit) != 0)][: len(image)]
    start = np.maximum.accumulate(np.where(new, np.arange(len(image)), 0))
    slot = np.arange(len(image)) - start
    return np.stack([image, slot, unit, position, rank], 1), int(
        slot.max(initial=0)
    ) + 1


def _activations_at(
    forward: Forward,
    layers: Mapping[str, int],
    params: Params,
    images: Array,
    positions: Array,
) -> Array:
    """Activations at positions `[batch, slots, units]` of all layers in a row."""
    activations, found, first = forward(params, images.astype(jnp.float32)), [], 0
    for name, units in layers.items():
        x = activations[name].reshape(len(images), -1, units)
        own = positions[..., first : first + units]
        found.append(jnp.take_along_axis(x, own, 1))
        first += units
    return jnp.concatenate(found, -1)


def unit_name(layers: Mapping[str, int], unit: int) -> tuple[str, int]:
    """Layer and number of a unit of all layers in a row."""
    for name, units in layers.items():
        if unit < units:
            return name, unit
        unit -= units
    raise IndexError(unit)


def crop(
    image: np.ndarray, box: Sequence[int], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """What a unit sees of an image; grey where its field has no pixel of it.

    Args:
        image: uint8 `[height, width, 3]`.
        box: The receptive field, which may hang over the border.
        rows: Which rows matter, bool `[height]`.
        columns: Which columns do.

    Returns:
        uint8 of the box's size.
    """
    top, left, bottom, right = (int(side) for side in box)
    patch = np.full((bottom - top, right - left, 3), images.GREY, np.uint8)
    if not (rows.any() and columns.any()):
        return patch
    (first, last), (start, end) = (np.flatnonzero(x)[[0, -1]] for x in (rows, columns))
    part = image[first : last + 1, start : end + 1]
    patch[first - top : last + 1 - top, start - left : end + 1 - left] = part
    return patch


def fitted(patch: np.ndarray, side: int) -> np.ndarray:
    """A patch at `side` x `side` pixels, with grey beside one that is no square."""
    if patch.shape[:2] == (side, side):
        return patch
    grey = (images.GREY, images.GREY, images.GREY)
    picture = ImageOps.pad(
        Image.fromarray(patch), (side, side), Resampling.LANCZOS, color=grey
    )
    return np.asarray(picture)


def drawn_side(layer: Layer, fields: Fields) -> int:
    """Side at which a layer's patches are drawn, in pixels: that of the largest field."""
    units = range(len(layer.mean))
    return min(DRAWN, max(max(fields.size(unit)) for unit in units))


def cut(
    layer: Layer, fields: Fields, pictures: Pictures, k: int, deduplicate: bool
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Picks and cuts out each unit's patches.

    Args:
        layer: With more candidates for the top than are picked, if some may be dropped.
        fields: The layer's receptive fields.
        pictures: Where the images are.
        k: Patches of a unit.
        deduplicate: Whether near-duplicates are dropped; see `distinct`.

    Yields:
        For each unit the picked candidates' numbers, at most `k`, and uint8
        `[k, side, side, 3]`: the patches at one size, grey where there is none.
    """
    top, side = layer.top, drawn_side(layer, fields)
    for unit in range(len(top.score)):

        @functools.cache
        def patch(rank: int, unit: int = unit) -> np.ndarray:
            rows, columns = fields.support(unit, *top.position[unit, rank])
            image = pictures[top.image[unit, rank]]
            return fitted(crop(image, top.box[unit, rank], rows, columns), side)

        known = np.flatnonzero(top.image[unit] >= 0).tolist()
        candidates = [(top.image[unit, rank], top.box[unit, rank]) for rank in known]
        picked = distinct(candidates, patch, k) if deduplicate else known[:k]
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
    picked: list[int] = []
    for number, (image, box) in enumerate(candidates):
        if len(picked) == count:
            break
        near = (
            (
                candidates[other][0] == image
                and _overlap(candidates[other][1], box) > 0.5
            )
            or _difference(patch(other), patch(number)) < 6
            for other in picked
        )
        if not any(near):
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
