"""Histograms of activations, whose bins are found by the bits of floats.

They have four bins to an octave: the first two bits of a mantissa.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_SHIFT, _LOWEST, _OCTAVES = 21, 2.0**-8, 24


def edges() -> list[float]:
    """Returns the bins' borders: from about -2^16 to 2^16, the middle bin is 0's."""
    octaves = _LOWEST * 2.0 ** np.arange(_OCTAVES)
    quarters = (octaves[:, None] * (1 + np.arange(4) / 4)).ravel()
    above = [*quarters, octaves[-1] * 2]
    return [-x for x in reversed(above)] + above


def bins(x: Array) -> Array:
    """Where activations fall in the histogram: the bits of a float are its logarithm."""
    base = int(np.float32(_LOWEST).view(np.int32)) >> _SHIFT
    quarter = lax.bitcast_convert_type(abs(x), jnp.int32) >> _SHIFT
    bin = jnp.clip(quarter - base + 1, 0, 4 * _OCTAVES)
    return 4 * _OCTAVES + jnp.where(x < 0, -bin, bin)
