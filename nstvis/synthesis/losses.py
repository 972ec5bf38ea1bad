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


def content_loss(
    activations: Array, target: Array, owned: Array | None = None
) -> Array:
    """J_content = 1/2 sum (F - P)^2 (Gatys et al. 2015, equation 1).

    Args:
        activations: F.
        target: P.
        owned: 1 for the positions that count, `[height, width]`; all by default.
    """
    squares = (activations.astype(jnp.float32) - target.astype(jnp.float32)) ** 2
    return 0.5 * jnp.sum(squares if owned is None else owned[..., None] * squares)


def total_variation(images: Array, power: int, owned: Array | None = None) -> Array:
    """Sum of neighbouring pixels' absolute differences to the power 1 or 2.

    Power 1 is neural-style-pt's; 2 is smoother (Mahendran & Vedaldi 2015).

    Args:
        images: `[n, height, width, channels]`.
        power: 1 or 2.
        owned: 1 for the pixels whose differences from those below them and to their right
            count, `[height, width]`; all by default.
    """
    down, right = (jnp.abs(jnp.diff(images, axis=axis)) ** power for axis in (1, 2))
    if owned is not None:
        down, right = down * _like(owned[:-1]), right * _like(owned[:, :-1])
    return jnp.sum(down) + jnp.sum(right)


def _like(owned: Array) -> Array:
    return owned[None, :, :, None]


class Units(NamedTuple):
    """Factors on canonical losses.

    Attributes:
        content: From the sum of squares of a layer's content target P, and the number
            of its activations.
        style: From a layer's number of channels, for Gram losses; None for the scale
            that each style loss has itself.
        variation: From the number of values in the picture.
        white: The value of white that the network is shown.
    """

    content: Callable[[Array, int], Array | float]
    style: Callable[[int], float] | None
    variation: Callable[[int], float] = lambda size: 1.0
    white: float = 255.0


UNITS = {
    # Each layer's squared error over its target's sum of squares, and the mean over
    # the pixels of TV: numbers near 1 at any size.
    "balanced": Units(
        lambda squares, count: 2 / (squares + TINY), None, lambda size: 1 / size
    ),
    "gatys2015": Units(lambda squares, count: 1.0, lambda channels: 1.0),
    # neural-style and neural-style-pt: mean squared errors of F and of F^T F / (C M), of
    # pictures that they scale to 0..256.
    "neural_style": Units(
        lambda squares, count: 2 / count,
        lambda channels: 4 / channels**2,
        lambda size: 256 / 255,
        white=256.0,
    ),
    # Ng's course: 1 / (4 C M) sum (F - P)^2, and E_l.
    "ng": Units(lambda squares, count: 1 / (2 * count), lambda channels: 1.0),
}
