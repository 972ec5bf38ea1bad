"""Nearest neighbours among the style's features (NNST, arXiv:2203.13215).

Each position of the canvas is drawn towards the position of the style whose centred
features have the least cosine distance from its own. As in the paper's last phase,
neighbours are found anew at each step, for a sample of positions, layer by layer; no
gradient goes through the choice.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from nstvis.synthesis.style_losses import (
    TINY,
    StyleLoss,
    blend,
    features,
    sample,
    stored,
)

BALANCE = 0.5  # with it, as much content is left as with Gram matrices
POSITIONS = 2048  # of the canvas and of each style, at most, which bounds the memory


# Each style's features, `[positions, channels]`, and the styles' shares.
Target = tuple[list[Array], Array]


def style_loss(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """With several styles, each has a neighbour, whose distances are averaged."""
    target = [stored(style) for style in styles], shares
    square = blend(shares, [jnp.mean(jnp.sum(style**2, -1)) for style in styles])
    return StyleLoss(target, BALANCE / (square + TINY), distance)


def distance(activations: Array, target: Target, key: Array) -> Array:
    """Mean squared distance of a sample of positions from their neighbours."""
    styles, shares = target
    canvas_key, style_key = jax.random.split(key)
    canvas = sample(features(activations), POSITIONS, canvas_key)
    samples = [sample(rows, POSITIONS, style_key) for rows in styles]
    errors = [(canvas - nearest(canvas, others)) ** 2 for others in samples]
    return blend(shares, [jnp.mean(jnp.sum(x, 1)) for x in errors])


def nearest(rows: Array, others: Array) -> Array:
    """Returns for each row the other with the highest cosine, both sets centred."""
    cosines = jnp.matmul(centred(rows), centred(others).T, precision="highest")
    return lax.stop_gradient(others[jnp.argmax(cosines, 1)])


def centred(rows: Array) -> Array:
    """Subtracts the mean row, and scales each row to length 1."""
    rows = lax.stop_gradient(rows - rows.mean(0, keepdims=True))
    return rows / jnp.sqrt(jnp.sum(rows**2, 1, keepdims=True) + TINY)
