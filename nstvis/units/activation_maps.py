"""Activation maps: where in the whole image a unit responds, at the map's resolution.

An atlas shows them over the images: the panel `maps`, and the finding `maps`, which says
where in the image a map lies.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices
from nstvis.models import Forward, Params
from nstvis.units.measurements import Finding, Layer
from nstvis.units.patches import Images
from nstvis.units.receptive_fields import Fields


def project(
    forward: Forward,
    params: Params,
    name: str,
    layer: Layer,
    pictures: Images,
    batch: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Computes a layer's units' maps of their top-activating patches' images.

    Args:
        forward: The network.
        params: Its parameters.
        name: The layer's; its maps are square.
        layer: With the patches that are wanted in `top`.
        pictures: Where the images are.
        batch: Images in a batch.

    Yields:
        Each unit, in order, and its maps, uint8 `[k, side, side, 3]`: from 0 at
        activations up to 0, to 255 at the unit's highest; 0 where there is no image.
    """
    units, ranks = np.nonzero(layer.top.image >= 0)

    @jax.jit(compiler_options=devices.compile_options())
    def maps_of(params: Params, images: Array, channels: Array) -> Array:
        maps = forward(params, images.astype(jnp.float32))[name]
        chosen = channels[:, None, None, None]
        return jnp.take_along_axis(maps, chosen, axis=-1)[..., 0]

    maps: dict[tuple[int, int], np.ndarray] = {}
    done = 0
    for start in range(0, len(units), batch):
        # The last batch repeats its last patch: one program takes one shape.
        some = np.minimum(np.arange(start, start + batch), len(units) - 1)
        index = layer.top.image[units[some], ranks[some]]
        found = maps_of(params, np.stack([pictures[i] for i in index]), units[some])
        maps |= zip(zip(units[some], ranks[some]), np.asarray(found))
        ended = start + batch >= len(units)
        whole = len(layer.mean) if ended else units[some[-1]]
        for unit in range(done, whole):
            yield unit, _drawn(layer, unit, maps)
        done = whole
        maps = {place: x for place, x in maps.items() if place[0] >= done}


def _drawn(
    layer: Layer, unit: int, maps: dict[tuple[int, int], np.ndarray]
) -> np.ndarray:
    """Draws the maps of a unit at one scale."""
    side = len(next(iter(maps.values())))
    drawn = np.zeros((layer.top.image.shape[1], side, side, 3), np.uint8)
    highest = max(float(layer.top.score[unit].max()), 1e-30)
    for rank in np.flatnonzero(layer.top.image[unit] >= 0):
        share = np.clip(maps[unit, int(rank)] / highest, 0, 1)
        drawn[rank] = np.rint(255 * share)[..., None]
    return drawn


def extent(layer: Layer, fields: Fields, side: int) -> Finding:
    """Says where in the image maps lie, each position in the middle of its field.

    Args:
        layer: The layer.
        fields: Its receptive fields, of a stride that is not 0.
        side: Of its maps, in positions.

    Returns:
        `box`, float32 `[units, 4]`: top, left, bottom, right in pixels.
    """
    units = np.arange(len(layer.mean))
    first = fields.boxes(units[:, None], np.zeros((len(units), 1, 2), int))[:, 0]
    middle = (first[:, :2] + first[:, 2:]) / 2
    corner = middle - fields.stride / 2
    box = np.concatenate([corner, corner + side * fields.stride], 1)
    return {"box": box.astype(np.float32)}
