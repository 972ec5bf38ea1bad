"""Gram matrices, means and standard deviations (SPST, arXiv:2212.13459)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY, StyleLoss, blend, features
from nstvis.synthesis.style_losses.gram import gram_matrix

WEIGHTS = (1, 0.1, 0.1)  # of Gram matrices, means and deviations
EPSILON = 1e-6  # without it a constant channel's deviation has an infinite gradient


class Moments(NamedTuple):
    """Statistics of a layer's positions.

    Attributes:
        gram: Mean products of two channels, `[C, C]`.
        mean: Of each channel, `[C]`.
        deviation: Standard deviation of each channel, `[C]`.
    """

    gram: Array
    mean: Array
    deviation: Array


def style_loss(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """The target has the moments of the styles' positions in these shares."""
    each = [moments(style) for style in styles]
    gram = blend(shares, [m.gram for m in each])
    mean = blend(shares, [m.mean for m in each])
    squares = [m.deviation**2 + (m.mean - mean) ** 2 for m in each]
    deviation = jnp.sqrt(blend(shares, squares))
    return StyleLoss(Moments(gram, mean, deviation), 1.0, distance)


def moments(activations: Array) -> Moments:
    """Computes the moments of a layer's activations."""
    rows = features(activations)
    deviation = jnp.sqrt(rows.var(0) + EPSILON)
    return Moments(gram_matrix(activations), rows.mean(0), deviation)


def distance(activations: Array, target: Moments, key: Array) -> Array:
    """The moments' weighted squared errors over their squares, 1 without activations."""
    errors = [
        jnp.sum((x - y) ** 2) / (jnp.sum(y**2) + TINY)
        for x, y in zip(moments(activations), target, strict=True)
    ]
    return jnp.average(jnp.stack(errors), weights=jnp.array(WEIGHTS))
