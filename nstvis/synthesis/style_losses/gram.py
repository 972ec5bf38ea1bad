"""Gram matrices (Gatys, Ecker & Bethge 2015, arXiv:1508.06576)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY, StyleLoss, blend, features


def style_loss(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """The target is the blend of the styles' Gram matrices, A / M."""
    target = blend(shares, [gram_matrix(style) for style in styles])
    scale = 4 * len(target) ** 2 / (jnp.sum(target**2) + TINY)
    return StyleLoss(target, scale, gram_distance)


@jax.custom_vjp
def gram_matrix(activations: Array) -> Array:
    """Computes the channels' correlations, averaged over positions: F^T F / M, `[C, C]`.

    The average rather than the paper's sum compares pictures of different sizes.
    """
    matrix = features(activations)
    # Accelerators would round to 8 or 11 bits here, in which styles differ.
    return jnp.matmul(matrix.T, matrix, precision="highest") / len(matrix)


def _gram_matrix_forward(activations):
    return gram_matrix(activations), activations


def _gram_matrix_backward(activations, gradient):
    """One product, where JAX has one for each of the factors."""
    matrix = activations.reshape(-1, activations.shape[-1])
    both = (gradient + gradient.T) / len(matrix)
    product = jnp.matmul(matrix, both, precision="highest")
    return (product.reshape(activations.shape),)


gram_matrix.defvjp(_gram_matrix_forward, _gram_matrix_backward)


def gram_distance(activations: Array, target: Array, key: Array) -> Array:
    """E_l = sum (G - A)^2 / (4 C^2 M^2) (Gatys et al. 2015, equation 4).

    Args:
        activations: Of one layer; their Gram matrix is M times `gram_matrix`.
        target: `gram_matrix` of the style's activations.
        key: Not used.
    """
    difference = gram_matrix(activations) - target
    return jnp.sum(difference**2) / (4 * activations.shape[-1] ** 2)
