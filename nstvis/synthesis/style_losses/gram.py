"""Gram matrices (Gatys, Ecker & Bethge 2015, arXiv:1508.06576).

They are averaged over positions, where the paper sums, as pictures of different sizes
are compared.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY, Moments, StyleLoss, blend
from nstvis.synthesis.style_losses import moment_sums as statistics

__all__ = ["statistics", "style_loss"]


def style_loss(styles: Sequence[Moments], shares: Array) -> StyleLoss:
    """The target is the blend of the styles' Gram matrices, A / M."""
    target = blend(shares, [style.gram for style in styles])
    scale = 4 * len(target) ** 2 / (jnp.sum(target**2) + TINY)
    return StyleLoss(target, scale, distance)


def distance(canvas: Moments, target: Array, key: Array) -> Array:
    """E_l = sum (G - A)^2 / (4 C^2 M^2) (Gatys et al. 2015, equation 4)."""
    return jnp.sum((canvas.gram - target) ** 2) / (4 * len(target) ** 2)
