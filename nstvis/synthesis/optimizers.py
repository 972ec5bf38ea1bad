"""Optimisers of pixels: Adam with a smoothed gradient, L-BFGS, gradient descent."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from nstvis.synthesis.layouts import Layout

LEARNING_RATES = {"adam": 10.0, "lbfgs": 1.0, "gd": 1e4}


def make_optimizer(
    name: str,
    learning_rate: float,
    smoothing: float,
    layout: Layout,
    *,
    b2: float = 0.99,
    annealed: range | None = None,
) -> optax.GradientTransformation:
    """Returns an optimiser.

    Args:
        name: One of `LEARNING_RATES`.
        learning_rate: Length of a step; 0 for the optimiser's default.
        smoothing: Power of `smooth_gradient`, which only Adam's gradients go through.
        layout: Of the pictures.
        b2: Adam's.
        annealed: Numbers of the steps over which Adam's steps shorten to nothing, along
            half a cosine; None to keep their length.
    """
    rate = learning_rate or LEARNING_RATES[name]
    if name == "adam":
        length = rate
        if annealed:
            falling = optax.cosine_decay_schedule(rate, len(annealed))
            length = lambda count: falling(count - annealed.start)
        return optax.chain(
            smooth_gradient(smoothing, layout), optax.adam(length, b2=b2)
        )
    if name == "lbfgs":
        return optax.lbfgs(rate, memory_size=10)
    return optax.sgd(rate)


def smooth_gradient(power: float, layout: Layout) -> optax.GradientTransformation:
    """Divides each spatial frequency f of the gradient by f^power.

    Pictures have most of their energy in low frequencies, gradients of networks with
    strides in high ones, as grids of dots. The largest factor is 1.
    """
    if not power:
        return optax.identity()
    least = 1 / max(layout.size)

    def factors(down: Array, across: Array) -> Array:
        frequency = jnp.hypot(down[:, None], across[None])
        return (jnp.maximum(frequency, least) / least) ** -power

    def smooth(gradient: Array) -> Array:
        return layout.filtered(gradient, factors)

    return optax.stateless(lambda updates, params: jax.tree.map(smooth, updates))
