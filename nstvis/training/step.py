"""A training step: batch norm and dropout, the loss, SGD, and the averaged weights.

Batch norm and dropout are there for training alone: `folded` turns the result into the
parameters of the plain network.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from nstvis.layers import Chain

Batch = Mapping[str, Array]


class State(NamedTuple):
    """Everything that changes from step to step."""

    step: Array
    params: Any
    statistics: Any
    optimizer: Any
    # Moving averages of the parameters and statistics: those are evaluated and kept.
    average: Any


class Normalized(nnx.Module):
    """A convolution and batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167)."""

    def __init__(self, conv: nnx.Conv, dtype: Any, rngs: nnx.Rngs):
        self.conv = conv
        self.norm = nnx.BatchNorm(
            conv.out_features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(x))

    def folded(self) -> dict[str, Array]:
        """Returns the parameters of the one convolution that computes the same."""
        norm, conv = self.norm, self.conv
        assert norm.scale is not None and norm.bias is not None
        assert conv.bias is not None  # or `trainable` would not have added this
        scale = norm.scale * jax.lax.rsqrt(norm.var + norm.epsilon)
        bias = norm.bias + (conv.bias - norm.mean) * scale
        return {"kernel": conv.kernel * scale[None, None, None], "bias": bias}


class Dropped(nnx.Module):
    """Dropout (Hinton et al. 2012, arXiv:1207.0580) and a dense layer."""

    def __init__(self, rate: float, linear: nnx.Linear, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.linear = linear

    def __call__(self, x: Array) -> Array:
        return self.linear(self.dropout(x))


def trainable(network: nnx.Module, dropout: float, dtype: Any) -> nnx.Module:
    """Adds batch norm after a chain's convolutions, dropout before its dense layers.

    The first dense layer gets none: only the outputs of hidden dense layers are dropped
    (Krizhevsky et al. 2012, section 4.2). Nothing is added to a convolution without bias,
    into which batch norm could not be folded, nor to a network that is no `Chain`.

    Args:
        network: From `models.network`; it is changed in place.
        dropout: Share of activations to drop.
        dtype: In which layers compute; parameters stay float32.
    """
    if not isinstance(network, Chain):
        return network
    rngs, dense = nnx.Rngs(0), 0
    for name in network.names:
        layer = getattr(network, name)
        if isinstance(layer, nnx.Conv) and layer.bias is not None:
            layer.dtype = dtype
            setattr(network, name, Normalized(layer, dtype, rngs))
        elif isinstance(layer, nnx.Linear):
            layer.dtype, dense = dtype, dense + 1
            if dense > 1:
                setattr(network, name, Dropped(dropout, layer, rngs))
    return network


def zero_logits(network: nnx.Module) -> None:
    """Sets the kernel of a chain's logits to 0, so that all classes are equally likely."""
    if isinstance(network, Chain):
        layer = getattr(network, network.logits)
        if isinstance(layer, nnx.Linear):
            layer.kernel[...] = jnp.zeros_like(layer.kernel[...])


def folded(network: nnx.Module) -> dict[str, Any]:
    """Returns the parameters of the plain network, nested by layer, as `models.load`."""
    if not isinstance(network, Chain):
        return _plain(network)
    params = {}
    for name in network.names:
        layer = getattr(network, name)
        if isinstance(layer, Normalized):
            params[name] = layer.folded()
        elif isinstance(layer, nnx.Module):
            params[name] = _plain(layer.linear if isinstance(layer, Dropped) else layer)
    return params


def _plain(module: nnx.Module) -> dict[str, Any]:
    """Parameters, and the statistics of batch norm that a network has of its own."""
    learned = nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))
    return dict(nnx.to_pure_dict(learned))


def has_batch_norm(network: nnx.Module) -> bool:
    """Tells whether a network has batch norm, added by `trainable` or its own."""
    return any(isinstance(node, nnx.BatchNorm) for _, node in nnx.iter_graph(network))


class Trainer:
    """Stochastic gradient descent on the cross entropy of a network's logits.

    Args:
        network: From `trainable`; the last of its activations are the logits.
        optimizer: From `schedule.optimizer`, or any other of optax.
        smoothing: Share of the target that all classes divide equally (Szegedy et al.
            2015, arXiv:1512.00567).
        ema: Decay per step of the moving average of the weights.
        seed: Of dropout.
    """

    def __init__(
        self,
        network: nnx.Module,
        optimizer: optax.GradientTransformation,
        *,
        smoothing: float,
        ema: float,
        seed: int,
    ):
        self._graph, *self._first = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
        self._optimizer = optimizer
        self._smoothing, self._ema, self._seed = smoothing, ema, seed

    def start(self) -> State:
        """Returns the state before the first step."""
        params, statistics, _ = self._first
        return State(
            jnp.zeros((), jnp.int32),
            params,
            statistics,
            self._optimizer.init(params),
            jax.tree.map(jnp.copy, (params, statistics)),
        )

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        """Takes a step on a batch; to be compiled, and the state donated.

        Returns:
            The new state, and `loss`, `accuracy`, `gradient_norm` and `dead`: the share
            of hidden units that no image of the batch activates.
        """
        losses = jax.value_and_grad(functools.partial(self._loss, state), has_aux=True)
        (_, (statistics, metrics)), gradient = losses(state.params, batch)
        update, optimizer = self._optimizer.update(
            gradient, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, update)
        # A short memory at first, or the random start would stay in the average.
        decay = jnp.minimum(self._ema, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(
            (params, statistics), state.average, 1 - decay
        )
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        new = State(state.step + 1, params, statistics, optimizer, average)
        return new, metrics

    def _loss(
        self, state: State, params: nnx.State, batch: Batch
    ) -> tuple[Array, tuple[nnx.State, dict[str, Array]]]:
        network = self._network(params, state.statistics)
        network.train()
        key = jax.random.fold_in(jax.random.key(self._seed), state.step)
        nnx.reseed(network, default=key)
        activations = network(batch["image"].astype(jnp.float32))
        logits = list(activations.values())[-1].astype(jnp.float32)
        labels = jax.nn.one_hot(batch["label"], logits.shape[-1])
        targets = optax.smooth_labels(labels, self._smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        metrics = {
            "loss": loss,
            "accuracy": (logits.argmax(-1) == batch["label"]).mean(),
            "dead": _dead(activations),
        }
        return loss, (nnx.state(network, nnx.BatchStat), metrics)

    def _network(self, params: nnx.State, statistics: nnx.State) -> nnx.Module:
        rest = self._first[2]
        return nnx.merge(self._graph, params, statistics, rest, copy=True)

    def average(self, state: State) -> dict[str, Any]:
        """Returns the averaged weights as parameters of the plain network."""
        return folded(self._network(*state.average))


def _dead(activations: Mapping[str, Array]) -> Array:
    """Share of the units after a ReLU that are zero at all positions of all images."""
    rectified = [x for name, x in activations.items() if f"{name}_pre" in activations]
    dead = [(x <= 0).all(range(x.ndim - 1)) for x in rectified]
    return jnp.concatenate(dead).mean() if dead else jnp.zeros(())
