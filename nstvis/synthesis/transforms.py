"""Random shifts, scalings and rotations of a picture while it is optimised.

They suppress high-frequency patterns, which come from a network's strides (Olah,
Mordvintsev & Schubert 2017, "Feature Visualization", https://doi.org/10.23915/distill.00007).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amplitudes:
    """Limits of the random transforms, which are uniformly distributed."""

    # Pixels, in each direction.
    jitter: int
    # Fraction of the size.
    scale: float
    # Degrees, either way.
    rotate: float


def moved(images: Array, shift: Array, factor: Array, degrees: Array) -> Array:
    """Shifts pictures, then scales and rotates them around their centre.

    Interpolation is bilinear; what leaves on one side enters on the other.

    Args:
        images: `[1, height, width, 3]`.
        shift: Pixels down and to the right, `[2]`.
        factor: Above 1 enlarges.
        degrees: Counterclockwise.
    """
    _, height, width, _ = images.shape
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2]).reshape(2, 1, 1)
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, (height, width)), indexing="ij"))
    angle = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    back = jnp.array([[cosine, sine], [-sine, cosine]]) / factor
    sources = jnp.tensordot(back, places - middle, 1, precision="highest")
    sources += middle - shift.reshape(2, 1, 1)
    sample = jax.vmap(
        lambda channel: map_coordinates(channel, list(sources), 1, mode="wrap"), -1, -1
    )
    return sample(images[0])[None]


def random(key: Array, images: Array, limits: Amplitudes) -> Array:
    """Transforms pictures, `[1, height, width, 3]`, by amounts drawn from the key."""
    shift_key, scale_key, rotate_key = jax.random.split(key, 3)
    shift = jax.random.randint(shift_key, (2,), -limits.jitter, limits.jitter + 1)
    if not (limits.scale or limits.rotate):
        return jnp.roll(images, shift, (1, 2))
    factor = 1 + limits.scale * jax.random.uniform(scale_key, minval=-1)
    degrees = limits.rotate * jax.random.uniform(rotate_key, minval=-1)
    return moved(images, shift, factor, degrees)
