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

from nstvis.synthesis.style_losses import TINY, Moments, StyleLoss, blend
from nstvis.synthesis.style_losses import moment_sums as statistics

__all__ = ["statistics", "style_loss"]

FLOOR = 1e-3  # share of a covariance's norm that is added to its eigenvalues
ROUNDING = 1e-6  # of the second moments, of which a covariance is a difference


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


def style_loss(styles: Sequence[Moments], shares: Array) -> StyleLoss:
    """The target is fitted to the styles' positions in these shares."""
    mean = blend(shares, [style.mean for style in styles])
    second = blend(shares, [style.gram for style in styles])
    covariance = raised(mean, second)
    target = Gaussian(mean, jnp.trace(covariance), roots(covariance)[0])
    return StyleLoss(target, 1 / (mean @ mean + target.trace + TINY), distance)


def distance(canvas: Moments, target: Gaussian, key: Array) -> Array:
    """The squared distance, of Gaussians whose covariances are both `raised`."""
    covariance = raised(canvas.mean, canvas.gram)
    product = _matmul(_matmul(target.root, covariance), target.root)
    spread = jnp.trace(covariance) + target.trace - 2 * trace_of_root(product)
    return jnp.sum((canvas.mean - target.mean) ** 2) + spread


def raised(mean: Array, second: Array) -> Array:
    """Returns a covariance with `FLOOR` times its norm added to its diagonal.

    A map of fewer positions than channels, or with dead channels, has a singular
    covariance, and its root an infinite gradient. That of a nearly constant map is all
    rounding errors, which have to be exceeded, too.

    Args:
        mean: `[C]`.
        second: Mean products of two channels, `[C, C]`.
    """
    covariance = second - jnp.outer(mean, mean)
    least = FLOOR * _norm(covariance) + ROUNDING * _norm(second)
    return covariance + least * jnp.eye(len(mean))


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
