"""What a picture is asked to be: losses on activations and on pixels.

Activations are `[1, height, width, channels]`; C counts channels, M positions. All
losses are in the units of Gatys, Ecker & Bethge 2015 (arXiv:1508.06576), and `UNITS`
converts them to those of the tools that people come from.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


def content_loss(features: Array, target: Array) -> Array:
    """J_content = 1/2 sum (F - P)^2 (Gatys et al. 2015, equation 1)."""
    return 0.5 * jnp.sum((features - target) ** 2)


def gram(features: Array) -> Array:
    """Correlations of the channels, averaged over positions: F^T F / M, `[C, C]`.

    The average rather than the paper's sum compares pictures of different sizes.
    """
    matrix = features.reshape(-1, features.shape[-1])
    # Accelerators would round to 8 or 11 bits here, in which styles differ.
    return jnp.matmul(matrix.T, matrix, precision="highest") / len(matrix)


def style_loss(features: Array, target: Array) -> Array:
    """E_l = sum (G - A)^2 / (4 C^2 M^2) (Gatys et al. 2015, equation 4).

    Args:
        features: Activations of one layer, whose Gram matrix is M times `gram`.
        target: `gram` of the style picture's activations.
    """
    return jnp.sum((gram(features) - target) ** 2) / (4 * features.shape[-1] ** 2)


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
        style: From a layer's style target A / M.
        variation: From the picture.
    """

    content: Callable[[Array], Array | float]
    style: Callable[[Array], Array | float]
    variation: Callable[[Array], float] = lambda image: 1.0


_TINY = 1e-12  # keeps an all-zero target, as of a black picture, from dividing by zero

UNITS = {
    "gatys2015": Units(lambda p: 1.0, lambda a: 1.0),
    # neural-style and neural-style-pt: mean squared errors of F and of F^T F / (C M).
    "neural_style": Units(lambda p: 2 / p.size, lambda a: 4 / len(a) ** 2),
    # Ng's course: 1 / (4 C M) sum (F - P)^2, and E_l.
    "ng": Units(lambda p: 1 / (2 * p.size), lambda a: 1.0),
    # Each layer's squared error over its target's sum of squares, and the mean over
    # the pixels of TV: numbers near 1 at any size.
    "balanced": Units(
        lambda p: 2 / (jnp.sum(p**2) + _TINY),
        lambda a: 4 * len(a) ** 2 / (jnp.sum(a**2) + _TINY),
        lambda image: 1 / image.size,
    ),
}
