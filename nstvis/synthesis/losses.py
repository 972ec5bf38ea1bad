"""Losses on activations and pixels; those of style are in `style_losses`.

Activations are `[1, height, width, channels]`; C counts channels, M positions. All
losses are in the units of Gatys, Ecker & Bethge 2015 (arXiv:1508.06576), and `UNITS`
converts them to those of other implementations.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY


def content_loss(activations: Array, target: Array) -> Array:
    """J_content = 1/2 sum (F - P)^2 (Gatys et al. 2015, equation 1)."""
    return 0.5 * jnp.sum((activations - target) ** 2)


def total_variation(images: Array, power: int) -> Array:
    """Sum of neighbouring pixels' absolute differences to the power 1 or 2.

    Power 1 is neural-style-pt's; 2 is smoother (Mahendran & Vedaldi 2015).
    """
    down, right = jnp.diff(images, axis=1), jnp.diff(images, axis=2)
    return jnp.sum(jnp.abs(down) ** power) + jnp.sum(jnp.abs(right) ** power)


class Units(NamedTuple):
    """Factors on canonical losses.

    Attributes:
        content: From a layer's content target P.
        style: From a layer's number of channels, for Gram losses; None for the scale
            that each style loss has itself.
        variation: From the picture.
        white: The value of white that the network is shown.
    """

    content: Callable[[Array], Array | float]
    style: Callable[[int], float] | None
    variation: Callable[[Array], float] = lambda image: 1.0
    white: float = 255.0


UNITS = {
    # Each layer's squared error over its target's sum of squares, and the mean over
    # the pixels of TV: numbers near 1 at any size.
    "balanced": Units(
        lambda p: 2 / (jnp.sum(p**2) + TINY), None, lambda image: 1 / image.size
    ),
    "gatys2015": Units(lambda p: 1.0, lambda channels: 1.0),
    # neural-style and neural-style-pt: mean squared errors of F and of F^T F / (C M), of
    # pictures that they scale to 0..256.
    "neural_style": Units(
        lambda p: 2 / p.size,
        lambda channels: 4 / channels**2,
        lambda image: 256 / 255,
        white=256.0,
    ),
    # Ng's course: 1 / (4 C M) sum (F - P)^2, and E_l.
    "ng": Units(lambda p: 1 / (2 * p.size), lambda channels: 1.0),
}
