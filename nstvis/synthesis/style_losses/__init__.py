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
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

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


def find(name: str) -> MakeStyleLoss:
    """Returns a style loss by its name, or by the path of a Python file.

    Raises:
        ValueError: There is none of that name, or none in that file.
        FileNotFoundError: There is no such file.
    """
    module = registry.find("style_loss", name, pathlib.Path(__file__).parent)
    if not hasattr(module, "style_loss"):
        raise ValueError(f"{name} has no function style_loss")
    return module.style_loss


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
