"""Style losses: how far a layer's activations are from those of the style.

`--config.style_loss=NAME` picks a function of `STYLE_LOSSES`, or the function
`style_loss` of the Python file at that path. A new one is such a function:

    import jax.numpy as jnp
    from nstvis.synthesis.style_losses import StyleLoss

    def style_loss(styles, shares):
        target = sum(s * x.mean((0, 1, 2)) for s, x in zip(shares, styles))

        def distance(activations, target, key):
            return jnp.sum((activations.mean((0, 1, 2)) - target) ** 2)

        return StyleLoss(target, 1 / jnp.sum(target**2), distance)
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nstvis.runs import registry

TINY = 1e-12  # keeps an all-zero target, as of a black picture, from dividing by zero


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StyleLoss:
    """The style loss of one layer, as a pytree.

    Attributes:
        target: Arrays that are computed once from the style, of any structure.
        scale: Factor of the loss in "balanced" units, which should bring it near 1 for
            a canvas without any style, so that one beta suits every loss and layer.
        distance: Maps activations `[1, height, width, channels]`, the target and a key,
            another one at each step, to a scalar. It may close over no arrays.
    """

    target: Any
    scale: Array | float
    distance: Callable[[Array, Any, Array], Array] = dataclasses.field(
        metadata={"static": True}
    )

    def __call__(self, activations: Array, key: Array) -> Array:
        """Returns the distance of a canvas's activations from the target."""
        return self.distance(activations, self.target, key)


# From each style's activations of a layer, `[1, height, width, channels]`, and the
# styles' shares of the blend, `[styles]`, which sum to 1.
MakeStyleLoss = Callable[[Sequence[Array], Array], StyleLoss]


def gram(styles: Sequence[Array], shares: Array) -> StyleLoss:
    """Gatys et al. 2015: the target is the blend of the styles' Gram matrices, A / M."""
    matrices = jnp.stack([gram_matrix(style) for style in styles])
    target = jnp.tensordot(shares, matrices, 1)
    scale = 4 * len(target) ** 2 / (jnp.sum(target**2) + TINY)
    return StyleLoss(target, scale, gram_distance)


@jax.custom_vjp
def gram_matrix(activations: Array) -> Array:
    """Computes the channels' correlations, averaged over positions: F^T F / M, `[C, C]`.

    The average rather than the paper's sum compares pictures of different sizes.
    """
    matrix = activations.reshape(-1, activations.shape[-1])
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


STYLE_LOSSES: dict[str, MakeStyleLoss] = {"gram": gram}


def find(name: str) -> MakeStyleLoss:
    """Returns a style loss by its name, or by the path of a Python file.

    Raises:
        ValueError: There is none of that name, or none in that file.
        FileNotFoundError: There is no such file.
    """
    if name in STYLE_LOSSES:
        return STYLE_LOSSES[name]
    if not name.endswith(".py"):
        raise ValueError(registry.unknown("style_loss", name, STYLE_LOSSES))
    module = registry.find("style_loss", name, pathlib.Path(__file__).parent)
    if not hasattr(module, "style_loss"):
        raise ValueError(f"{name} has no function style_loss")
    return module.style_loss
