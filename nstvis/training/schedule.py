"""The learning-rate schedule, and the optimizer."""

from typing import Any

import jax
import optax


def learning_rate(highest: float, warmup: float, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise from 0, then a cosine to 0.

    Loshchilov & Hutter 2016 (arXiv:1608.03983), without restarts.

    Args:
        highest: The learning rate after the rise.
        warmup: Share of the steps in which it rises, from 0 to 1.
        steps: Steps of the whole training.
    """
    rise = min(round(warmup * steps), steps - 1)
    return optax.warmup_cosine_decay_schedule(0, highest, rise, steps)


def optimizer(
    rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """Returns SGD with Nesterov momentum 0.9 and weight decay of the kernels."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _kernels),
        optax.sgd(rate, momentum=0.9, nesterov=True),
    )


def _kernels(params: Any) -> Any:
    """Selects the parameters that decay: kernels, not biases and scales."""
    return jax.tree.map(lambda x: x.ndim > 1, params)
