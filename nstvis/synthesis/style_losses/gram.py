"""Gram matrices (Gatys, Ecker & Bethge 2015, arXiv:1508.06576)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY, StyleLoss, blend, features


def style_loss(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """The target is the blend of the styles' Gram matrices, A / M."""
    target = blend(shares, [gram_matrix(style) for style in styles])
    scale = 4 * len(target) ** 2 / (jnp.sum(target**2) + TINY)
    return StyleLoss(target, scale, gram_distance)


def gram_matrix(activations: Array) -> Array:
    """Computes the channels' correlations, averaged over positions: F^T F / M, `[C, C]`.

    The average rather than the paper's sum compares pictures of different sizes.
    """
    matrix = features(activations)
    # Accelerators would round to 8 or 11 bits here, in which styles differ.
    return jnp.matmul(matrix.T, matrix, precision="highest") / len(matrix)


def gram_distance(activations: Array, target: Array, key: Array) -> Array:
    """E_l = sum (G - A)^2 / (4 C^2 M^2) (Gatys et al. 2015, equation 4).

    Args:
        activations: Of one layer; their Gram matrix is M times `gram_matrix`.
        target: `gram_matrix` of the style's activations.
        key: Not used.
    """
    difference = gram_matrix(activations) - target
    return jnp.sum(difference**2) / (4 * activations.shape[-1] ** 2)
