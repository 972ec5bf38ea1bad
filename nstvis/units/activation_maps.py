"""Activation maps: where in the whole image a unit responds, at the map's resolution.

An atlas shows them over the images: the panel `maps`, and the finding `maps`, which says
where in the image a map lies.
"""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nstvis import devices
from nstvis.models import Forward, Params
from nstvis.units import kept_steps
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
    kept: pathlib.Path | None = None,
) -> Iterator[np.ndarray]:
    """Computes a layer's units' maps of their top-activating patches' images.

    Args:
        forward: The network.
        params: Its parameters.
        name: The layer's; its maps are square.
        layer: With the patches that are wanted in `top`.
        pictures: Where the images are.
        batch: Images in a batch.
        kept: File of maps that an interrupted call leaves for the next.

    Yields:
        Each unit's maps, in order, uint8 `[k, side, side, 3]`: from 0 at activations up
        to 0, to 255 at the unit's highest; 0 where there is no image.

    Raises:
        Interrupted: By a signal.
    """
    compute = jax.jit(
        lambda params, images: forward(params, images.astype(jnp.float32))[name],
        compiler_options=devices.compile_options(),
    )
    units, ranks = np.nonzero(layer.top.image >= 0)
    images = layer.top.image[units, ranks]
    if not len(distinct := np.unique(images)):
        return
    pixels = jax.ShapeDtypeStruct((1, pictures.size, pictures.size, 3), np.uint8)
    side = jax.eval_shape(compute, params, pixels).shape[1:3]
    maps = np.zeros((*layer.top.image.shape, *side), np.float32)
    # Each image once, for all units that it is among the top of.
    count = -(-len(distinct) // batch)
    for step in kept_steps.steps(kept, {"maps": maps}, count, f"maps of {name}"):
        start = step * batch
        # The last batch repeats its last image: one program takes one shape.
        some = distinct[np.minimum(np.arange(start, start + batch), len(distinct) - 1)]
        found = np.asarray(compute(params, np.stack([pictures[i] for i in some])))
        here = np.flatnonzero((images >= some[0]) & (images <= some[-1]))
        rows = np.searchsorted(some, images[here])
        maps[units[here], ranks[here]] = found[rows, :, :, units[here]]
    for scores, of_unit in zip(layer.top.score, maps, strict=True):
        share = np.clip(of_unit / max(float(scores.max()), 1e-30), 0, 1)
        yield np.repeat(np.rint(255 * share).astype(np.uint8)[..., None], 3, -1)


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
