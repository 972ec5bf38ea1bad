"""Gram matrices, means and standard deviations (SPST, arXiv:2212.13459)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY, Moments, StyleLoss, blend
from nstvis.synthesis.style_losses import moment_sums as statistics

__all__ = ["statistics", "style_loss"]

WEIGHTS = (1, 0.1, 0.1)  # of Gram matrices, means and deviations
# Without it a constant channel's deviation has an infinite gradient; and the share of a
# mean square below which a variance is a rounding error.
EPSILON, ROUNDING = 1e-6, 1e-6


class Target(NamedTuple):
    """What is compared.

    Attributes:
        gram: Mean products of two channels, `[C, C]`.
        mean: Of each channel, `[C]`.
        deviation: Standard deviation of each channel, `[C]`.
    """

    gram: Array
    mean: Array
    deviation: Array


def style_loss(styles: Sequence[Moments], shares: Array) -> StyleLoss:
    """The target has the moments of the styles' positions in these shares."""
    mean = blend(shares, [style.mean for style in styles])
    gram = blend(shares, [style.gram for style in styles])
    return StyleLoss(Target(gram, mean, deviations(mean, gram)), 1.0, distance)


def deviations(mean: Array, gram: Array) -> Array:
    """Returns each channel's standard deviation."""
    squares = jnp.diag(gram)
    return jnp.sqrt(jnp.maximum(squares - mean**2, ROUNDING * squares) + EPSILON)


def distance(canvas: Moments, target: Target, key: Array) -> Array:
    """The moments' weighted squared errors over their squares, 1 without activations."""
    found = Target(canvas.gram, canvas.mean, deviations(canvas.mean, canvas.gram))
    errors = [
        jnp.sum((x - y) ** 2) / (jnp.sum(y**2) + TINY)
        for x, y in zip(found, target, strict=True)
    ]
    return jnp.average(jnp.stack(errors), weights=jnp.array(WEIGHTS))
