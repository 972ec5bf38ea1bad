"""Backward pictures of winners: what of its patch activated a unit, in the patch's place.

A unit's activation depends on its receptive field alone, so it is carried back through a
window of the image that holds the field rather than through the whole image.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import images
from nstvis.models import Forward, Params
from nstvis.probes import attribution
from nstvis.units.patches import Pictures, crop, drawn_side, fitted
from nstvis.units.receptive_fields import Fields
from nstvis.units.table import Layer


def project(
    network: Forward,
    params: Params,
    name: str,
    layer: Layer,
    fields: Fields,
    pictures: Pictures,
    batch: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws the backward picture of each of a layer's winners.

    Args:
        network: From `attribution.ruled`.
        params: Its parameters.
        name: The layer's.
        layer: With the winners that are wanted in `top`.
        fields: The layer's receptive fields.
        pictures: Where the images are.
        batch: Whole images that are carried back together; of windows, as many more as
            they are smaller.

    Yields:
        Units `[n]`, ranks `[n]`, and their pictures as `patches.cut` draws patches,
        uint8 `[n, side, side, 3]`: grey where a pixel does not matter, in full contrast
        where it is among the one in a hundred that matter most.
    """
    top, size, shown = layer.top, pictures.size, drawn_side(layer, fields)
    units, ranks = np.nonzero(top.image >= 0)
    field = max(max(fields.size(unit)) for unit in range(len(top.score)))
    small = window(network, params, field, fields.stride, size)

    def carry(some: np.ndarray, side: int) -> tuple[np.ndarray, ...]:
        unit, rank = units[some], ranks[some]
        firsts = _first(top.box[unit, rank, :2], fields.stride, size, side)
        parts = [
            pictures[i][y : y + side, x : x + side]
            for i, (y, x) in zip(top.image[unit, rank], firsts, strict=True)
        ]
        positions = top.position[unit, rank] - firsts // max(1, fields.stride)
        found = _carried(network, name)(params, np.stack(parts), unit, positions)
        return firsts, *map(np.asarray, found)

    count = min(len(units), batch * (size // small) ** 2)
    for start in range(0, len(units), count):
        whole = np.minimum(np.arange(start, start + count), len(units) - 1)
        some = whole[: len(units) - start]
        firsts, found, scores = carry(whole, small)
        known = top.score[units[whole], ranks[whole]]
        if not np.allclose(scores, known, rtol=1e-3, atol=1e-3 * np.abs(known).max()):
            # A network that is not the same at every place of the image.
            firsts, found, scores = carry(whole, size)
        winners = zip(found, firsts, units[some], ranks[some], strict=False)
        cells = [
            fitted(
                _cut(
                    picture,
                    first,
                    top.box[u, r],
                    fields.support(u, *top.position[u, r]),
                ),
                shown,
            )
            for picture, first, u, r in winners
        ]
        yield units[some], ranks[some], np.stack(cells)


@functools.lru_cache(1)
def _carried(network: Forward, layer: str) -> Callable[..., tuple[Array, Array]]:
    """`attribution.pictures`, compiled."""

    def carried(
        params: Params, images: Array, units: Array, places: Array
    ) -> tuple[Array, Array]:
        images = images.astype(jnp.float32)
        return attribution.pictures(network, params, layer, images, units, places)

    return jax.jit(carried)


def window(network: Forward, params: Params, field: int, stride: int, size: int) -> int:
    """Side of a window that holds a field wherever that is, in an image of `size`.

    Windows begin at multiples of the stride, at which the network is the same, and the
    last one ends where the image ends. It is larger than it need be where the network's
    deeper layers take no image that small.
    """
    side = field + stride - 1
    while stride and side < size:
        side += (size - side) % stride
        part = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
        try:
            jax.eval_shape(network, params, part)
        except Exception:  # noqa: BLE001 - whatever a network of one's own raises
            side = side * 3 // 2
        else:
            return side
    return size


def _first(corners: np.ndarray, stride: int, size: int, side: int) -> np.ndarray:
    """Where the windows begin for fields that begin at `corners`; `[n, 2]` in pixels."""
    return np.clip(corners // max(1, stride) * max(1, stride), 0, size - side)


def _cut(
    picture: np.ndarray,
    first: np.ndarray,
    box: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """A patch of a picture around 0, in uint8 around grey."""
    height, width = picture.shape[:2]
    rows, columns = support[0][first[0] :][:height], support[1][first[1] :][:width]
    sizes = np.abs(picture[rows][:, columns])
    largest = np.quantile(sizes, 0.99) if sizes.size else 0
    visible = np.rint(images.GREY * (1 + np.clip(picture / max(largest, 1e-30), -1, 1)))
    seen = visible.astype(np.uint8)
    return crop(seen, (box - np.tile(first, 2)).tolist(), rows, columns)
