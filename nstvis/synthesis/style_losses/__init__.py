"""Style losses, one file each: how far a layer's activations are from the style's.

`--config.style_loss=NAME` picks a file of this folder, or the Python file at that path.
A new one is a file with a function `style_loss`:

    import jax.numpy as jnp
    from nstvis.synthesis.style_losses import StyleLoss

    def style_loss(styles, shares):
        target = sum(s * x.mean((0, 1, 2)) for s, x in zip(shares, styles))

        def distance(activations, target, key):
            return jnp.sum((activations.mean((0, 1, 2)) - target) ** 2)

        return StyleLoss(target, 1 / jnp.sum(target**2), distance)

A loss of sums over positions works in blocks, on several devices and with masks, too, if
it says what to sum: a function `statistics(activations, guidance)`, such as `moment_sums`.
What that returns then takes the place of the activations.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from nstvis.runs import registry

STORED = 65536  # positions, of a style that is compared position by position
TINY = 1e-12  # keeps an all-zero target, as of a black picture, from dividing by zero


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StyleLoss:
    """The style loss of one layer, as a pytree.

    Attributes:
        target: Arrays that are computed once from the style, of any structure.
        scale: Factor of the loss in "balanced" units, which should bring it near 1 for
            a canvas without any style, so that one beta suits every loss and layer.
        distance: Maps activations `[1, height, width, channels]`, or their statistics,
            the target and a key, another one at each step, to a scalar. It may close
            over no arrays.
    """

    target: Any
    scale: Array | float
    distance: Callable[[Any, Any, Array], Array] = dataclasses.field(
        metadata={"static": True}
    )

    def __call__(self, canvas: Any, key: Array) -> Array:
        """Returns the distance of a canvas's activations, or statistics, from them."""
        return self.distance(canvas, self.target, key)


class Kind(NamedTuple):
    """A kind of style loss, as its file has it.

    Attributes:
        make: From each style's activations of a layer, or their statistics, and the
            styles' shares of the blend, `[styles]`, which sum to 1.
        statistics: From activations `[1, height, width, channels]` and their guidance
            `[height, width]`, or None, to sums over positions, nested in any way; None
            for a loss that compares positions.
    """

    make: Callable[[Sequence[Any], Array], StyleLoss]
    statistics: Callable[[Array, Array | None], Any] | None


def find(name: str) -> Kind:
    """Returns a kind of style loss by its name, or by the path of a Python file.

    Raises:
        ValueError: There is none of that name, or none in that file.
        FileNotFoundError: There is no such file.
    """
    module = registry.find("style_loss", name, pathlib.Path(__file__).parent)
    if not hasattr(module, "style_loss"):
        raise ValueError(f"{name} has no function style_loss")
    return Kind(module.style_loss, getattr(module, "statistics", None))


class Moments(NamedTuple):
    """Sums over positions, of which each counts as often as its guidance T squared.

    (As in Gatys et al. 2017, arXiv:1611.07865, where F becomes T F.)

    Attributes:
        weight: Sum of T^2: the number of positions, without guidance.
        first: Sum of T^2 F, `[C]`.
        second: Sum of T^2 F F^T, `[C, C]`.
    """

    weight: Array
    first: Array
    second: Array

    @property
    def mean(self) -> Array:
        """The positions' mean, `[C]`."""
        return self.first / jnp.maximum(self.weight, TINY)

    @property
    def gram(self) -> Array:
        """Their mean products of two channels, `[C, C]`: the Gram matrix over M."""
        return self.second / jnp.maximum(self.weight, TINY)


def moment_sums(activations: Array, guidance: Array | None = None) -> Moments:
    """Computes a layer's moments, from activations `[1, height, width, C]`.

    Args:
        activations: Of one layer.
        guidance: T, `[height, width]`; 1 by default.
    """
    rows = features(activations)
    if guidance is None:
        count = jnp.float32(len(rows))
        return Moments(count, rows.sum(0, dtype=_wide(rows)), products(rows))
    guide = guidance.reshape(-1)
    guided = guide.astype(rows.dtype)[:, None] * rows
    first = _matmul(guide, guided)
    return Moments(jnp.sum(guide**2), first, products(guided))


@jax.custom_vjp
def products(rows: Array) -> Array:
    """Computes F^T F of `[positions, C]`."""
    return _matmul(rows.T, rows)


def _products_forward(rows):
    return products(rows), rows


def _products_backward(rows, gradient):
    """One product, where JAX has one for each of the factors."""
    return (_matmul(rows, gradient + gradient.T).astype(rows.dtype),)


products.defvjp(_products_forward, _products_backward)


def _matmul(a: Array, b: Array) -> Array:
    # Accelerators would round to 8 or 11 bits here, in which styles differ.
    return jnp.matmul(a, b, precision="highest", preferred_element_type=_wide(b))


def _wide(x: Array) -> Any:
    """Returns the type in which sums are kept: float32, even of narrower numbers."""
    return jnp.promote_types(x.dtype, jnp.float32)


def features(activations: Array) -> Array:
    """Returns the activations of each position, `[positions, channels]`."""
    return activations.reshape(-1, activations.shape[-1])


def blend(shares: Array, arrays: Sequence[Array]) -> Array:
    """Averages one array of each style, weighted by the styles' shares."""
    return jnp.tensordot(shares, jnp.stack(arrays), 1, precision="highest")


def stored(style: Array) -> Array:
    """Returns the features of a style's positions, of the largest maps a sample."""
    return sample(features(style), STORED, jax.random.key(0))


def sample(rows: Array, most: int, key: Array) -> Array:
    """Picks at most `most` rows, evenly spaced, from a random one on; all, if so few."""
    # An odd stride seldom divides a map's width, so not always the same columns.
    stride = -(-len(rows) // most) | 1
    reach = max(0, len(rows) // stride - 1) * stride + 1
    start = jax.random.randint(key, (), 0, len(rows) - reach + 1)
    return lax.dynamic_slice_in_dim(rows, start, reach)[::stride]
