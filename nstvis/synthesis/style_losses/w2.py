"""Squared Wasserstein-2 distance of Gaussians (as style-transfer-pytorch has it).

The Gaussians are fitted to the features of a layer's positions. With means m, n and
covariances S, T it is |m - n|^2 + tr(S + T - 2 (T^1/2 S T^1/2)^1/2) (Dowson & Landau
1982, https://doi.org/10.1016/0047-259X(82)90077-X).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from nstvis.synthesis.style_losses import TINY, StyleLoss, blend, features
from nstvis.synthesis.style_losses.gram import gram_matrix

FLOOR = 1e-3  # share of a covariance's norm that is added to its eigenvalues


class Gaussian(NamedTuple):
    """A style's Gaussian.

    Attributes:
        mean: `[C]`.
        trace: Of its covariance.
        root: Square root of its covariance, `[C, C]`.
    """

    mean: Array
    trace: Array
    root: Array


def style_loss(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """The target is fitted to the styles' positions in these shares."""
    each = [fitted(style) for style in styles]
    mean = blend(shares, [m for m, _ in each])
    around = [c + jnp.outer(m - mean, m - mean) for m, c in each]
    covariance = raised(blend(shares, around))
    target = Gaussian(mean, jnp.trace(covariance), roots(covariance)[0])
    return StyleLoss(target, 1 / (mean @ mean + target.trace + TINY), distance)


def distance(activations: Array, target: Gaussian, key: Array) -> Array:
    """The squared distance, of Gaussians whose covariances are both `raised`."""
    mean, covariance = fitted(activations)
    covariance = raised(covariance)
    product = _matmul(_matmul(target.root, covariance), target.root)
    spread = jnp.trace(covariance) + target.trace - 2 * trace_of_root(product)
    return jnp.sum((mean - target.mean) ** 2) + spread


def fitted(activations: Array) -> tuple[Array, Array]:
    """Computes the mean, `[C]`, and the covariance, `[C, C]`, of the positions."""
    rows = features(activations)
    mean = rows.mean(0)
    # First: the mean of squares less the mean's square could have no root.
    return mean, gram_matrix(rows - mean[None])


def raised(covariance: Array) -> Array:
    """Adds `FLOOR` times its norm to a covariance's diagonal.

    A map of fewer positions than channels, or with dead channels, has a singular
    covariance, and its root an infinite gradient.
    """
    return covariance + FLOOR * _norm(covariance) * jnp.eye(len(covariance))


@jax.custom_vjp
def trace_of_root(matrix: Array) -> Array:
    """Returns tr(M^1/2) of a matrix as `roots` takes it; its gradient is M^-1/2 / 2."""
    return jnp.trace(roots(matrix)[0])


def _forward(matrix: Array) -> tuple[Array, Array]:
    root, inverse = roots(matrix)
    return jnp.trace(root), inverse


def _backward(inverse: Array, gradient: Array) -> tuple[Array]:
    return (gradient * inverse / 2,)


trace_of_root.defvjp(_forward, _backward)


def roots(matrix: Array) -> tuple[Array, Array]:
    """Computes the square root of a matrix, and the root's inverse.

    By the coupled Newton-Schulz iteration, with steps as long as the eigenvalues allow
    (Chen & Chow 2014, "A stable scaling of Newton-Schulz").

    Args:
        matrix: Symmetric, its eigenvalues at least `FLOOR`^2 of its norm: a `raised`
            covariance, or a product of such roots.
    """
    norm = _norm(matrix)
    identity = jnp.eye(len(matrix))
    root, inverse = matrix / norm, identity
    # The least eigenvalue of the root, and how near to 1 it comes with every step.
    least = FLOOR
    while least < 1 - 1e-9:
        step = (3 / (1 + least + least**2)) ** 0.5
        least *= step * (3 - (step * least) ** 2) / 2
        factor = step / 2 * (3 * identity - step**2 * _matmul(inverse, root))
        root, inverse = _matmul(root, factor), _matmul(factor, inverse)
    return root * jnp.sqrt(norm), inverse / jnp.sqrt(norm)


def _norm(matrix: Array) -> Array:
    """The Frobenius norm, whose gradient is finite for zeros."""
    return jnp.sqrt(jnp.sum(matrix**2) + TINY**2)


def _matmul(a: Array, b: Array) -> Array:
    # Accelerators would round to 8 or 11 bits, which the iteration does not survive.
    return jnp.matmul(a, b, precision="highest")
