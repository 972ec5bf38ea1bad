"""Optimisers of pixels: Adam with a smoothed gradient, L-BFGS, gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

LEARNING_RATES = {"adam": 10.0, "lbfgs": 1.0, "gd": 1e4}


def make_optimizer(
    name: str, learning_rate: float, smoothing: float, b2: float = 0.99, period: int = 0
) -> optax.GradientTransformation:
    """Returns an optimiser.

    Args:
        name: One of `LEARNING_RATES`.
        learning_rate: Length of a step; 0 for the optimiser's default.
        smoothing: Power of `smooth_gradient`, which only Adam's gradients go through.
        b2: Adam's.
        period: Steps, in each of which Adam's steps shorten to nothing, along half a
            cosine; 0 to keep their length.
    """
    rate = learning_rate or LEARNING_RATES[name]
    if name == "adam":
        falling = optax.cosine_decay_schedule(rate, period or 1)
        length = (lambda count: falling(count % period)) if period else rate
        return optax.chain(smooth_gradient(smoothing), optax.adam(length, b2=b2))
    if name == "lbfgs":
        return optax.lbfgs(rate, memory_size=10)
    return optax.sgd(rate)


def smooth_gradient(power: float) -> optax.GradientTransformation:
    """Divides each spatial frequency f of the gradient by f^power.

    Pictures have most of their energy in low frequencies, gradients of networks with
    strides in high ones, as grids of dots. The largest factor is 1.
    """
    if not power:
        return optax.identity()

    def smooth(gradient: Array) -> Array:
        height, width = gradient.shape[1:3]
        rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
        least = 1 / max(height, width)
        factors = (np.maximum(np.hypot(rows, columns), least) / least) ** -power
        spectrum = jnp.fft.rfft2(gradient, axes=(1, 2))
        spectrum *= factors[None, :, :, None].astype(np.float32)
        return jnp.fft.irfft2(spectrum, (height, width), axes=(1, 2))

    return optax.stateless(lambda updates, params: jax.tree.map(smooth, updates))
