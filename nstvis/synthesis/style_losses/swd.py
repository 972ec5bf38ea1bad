"""Sliced Wasserstein distance (Heitz et al. 2021, arXiv:2006.07229).

Features are projected on random directions, other ones at each step; along each, the
squared Wasserstein-2 distance of two sets of numbers is that of the sorted numbers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis.synthesis.style_losses import (
    TINY,
    StyleLoss,
    blend,
    features,
    sample,
    stored,
)

DIRECTIONS = 64
BALANCE = 2  # with it, as much content is left as with Gram matrices
POSITIONS = 1024  # at most, others at each step: sorting is slow


# Each style's features, `[positions, channels]`, and the styles' shares.
Target = tuple[list[Array], Array]


def style_loss(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """The target is the styles' barycenter: along a direction, their mean quantiles."""
    square = blend(shares, [jnp.mean(style**2) for style in styles])
    target = [stored(style) for style in styles], shares
    return StyleLoss(target, BALANCE / (square + TINY), distance)


def distance(activations: Array, target: Target, key: Array) -> Array:
    """Estimates the squared distance, averaged over all directions."""
    styles, shares = target
    canvas_key, style_key, key = jax.random.split(key, 3)
    directions = jax.random.normal(key, (activations.shape[-1], DIRECTIONS))
    directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
    found = projected(features(activations), directions, canvas_key)
    ordered = [projected(rows, directions, style_key) for rows in styles]
    wanted = blend(shares, [quantiles(x, found.shape[1]) for x in ordered])
    return jnp.mean((found - wanted) ** 2)


def projected(rows: Array, directions: Array, key: Array) -> Array:
    """Projects a sample of the rows and sorts it: `[directions, positions]`."""
    rows = sample(rows, POSITIONS, key)
    # Accelerators would round to 8 or 11 bits, in which styles differ.
    return jnp.sort(jnp.matmul(rows, directions, precision="highest").T)


def quantiles(ordered: Array, count: int) -> Array:
    """Interpolates rows of sorted numbers, `[directions, n]`, to `count` numbers each."""
    total = ordered.shape[1]
    places = (np.arange(count) + 0.5) * total / count - 0.5
    places = np.clip(places, 0, total - 1)
    low = places.astype(int)
    high = np.minimum(low + 1, total - 1)
    part = jnp.asarray(places - low, ordered.dtype)[None]
    return (1 - part) * ordered[:, low] + part * ordered[:, high]
