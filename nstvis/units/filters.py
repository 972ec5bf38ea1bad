"""Filters of layers that are linear in the image, as pictures.

All attributions of such a unit are one picture, that of its filter: a patch says nothing
about it that another does not.
"""

from collections.abc import Mapping

import jax
import numpy as np

from nstvis import images
from nstvis.models import Forward, Params

_LIKE = 1e-4  # error, relative to the layer's largest activation, of what is linear


def are_linear(forward: Forward, params: Params, name: str, size: int) -> bool:
    """Whether a layer, before its ReLU if there is one, is an affine map of the image.

    It is where the activations of the mean of two images are the mean of theirs, which
    is tried on random ones.

    Args:
        forward: The network.
        params: Its parameters.
        name: The layer's.
        size: Side of the images, in pixels.
    """
    rng = np.random.default_rng(0)
    pair = rng.uniform(0, 255, (2, size, size, 3)).astype(np.float32)

    def activations(params: Params, pixels: jax.Array) -> jax.Array:
        layers = forward(params, pixels)
        return layers.get(f"{name}_pre", layers[name])

    a, b, middle = np.asarray(
        jax.jit(activations)(params, np.stack([*pair, pair.mean(0)]))
    )
    return bool(np.abs((a + b) / 2 - middle).max() <= _LIKE * np.abs(middle).max())


def pictures(params: Params, name: str) -> dict[int, np.ndarray] | None:
    """Draws the filters of a convolution of an image's three colours.

    Args:
        params: The network's parameters.
        name: The layer's.

    Returns:
        Unit to its filter, uint8 `[1, side, side, 3]`, around `images.GREY` and in full
        contrast at its largest weight; None if the layer has no such square filters.
    """
    layer = params.get(name)
    kernel = layer.get("kernel") if isinstance(layer, Mapping) else None
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] != 3:
        return None
    weights = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
    if weights.shape[1] != weights.shape[2]:
        return None
    largest = np.abs(weights).max((1, 2, 3), keepdims=True)
    scaled = weights / np.maximum(largest, 1e-30)
    drawn = np.rint(images.GREY * (1 + scaled)).astype(np.uint8)
    return dict(enumerate(drawn[:, None]))
