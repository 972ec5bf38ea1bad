"""Gradient descent on pixels for any objective: the loop that all of synthesis uses.

The step is compiled once, its buffers are donated, and it is dispatched from Python
while the ones before it are still running, rather than looped over by `lax.scan`: between
two steps there is a moment to show the picture, to save it, and to stop.
"""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nstvis.synthesis.canvas import cropped, framed

RUN_AHEAD = 2  # steps in flight: enough to hide the dispatch, few enough to stop soon
SMALLEST_DAMPING = 2.0**-20
_NOT_FINITE = (
    "the loss is not finite, however small the step: check the weights, and lower the"
    " learning rate or the loss weights"
)

Metrics = dict[str, Array]
# From a canvas, data and a key to the loss, and metrics.
Objective = Callable[[Array, Any, Array], tuple[Array, Metrics]]
Step = Callable[["State", Any, Array], tuple["State", Metrics]]


class State(NamedTuple):
    """Everything that a run needs to resume, bit for bit.

    Attributes:
        step: Steps done, a scalar.
        canvas: The picture, `[1, height, width, 3]`, 0..255, or its parameters.
        optimizer: The optimiser's state.
        best: The canvas with the lowest loss so far, whose gradient was finite, too.
        best_loss: That loss.
        damping: Factor on the step's length; halved after each non-finite loss.
    """

    step: Array
    canvas: Array
    optimizer: Any
    best: Array
    best_loss: Array
    damping: Array


def start(canvas: Array, optimizer: optax.GradientTransformation) -> State:
    """Returns the state before the first step from `canvas`."""
    state = State(
        step=jnp.int32(0),
        canvas=canvas,
        optimizer=optimizer.init(canvas),
        best=canvas,
        best_loss=jnp.float32(jnp.inf),
        damping=jnp.float32(1),
    )
    # Copies, because a step that donates its state must not find one buffer twice.
    return jax.tree.map(jnp.copy, state)


def enlarge(
    state: State,
    optimizer: optax.GradientTransformation,
    size: tuple[int, int],
    margin: int = 0,
) -> State:
    """Carries a state to a canvas of another height and width, moments included.

    A margin keeps its width: what is in it is drawn anew, as a reflection.

    Losses at two sizes are not comparable, so the best picture is reset; so is an
    optimiser that holds more than moments (L-BFGS keeps whole gradients).
    """
    height, width = (length - 2 * margin for length in size)

    def resized(x: Array, method: str) -> Array:
        inner = jax.image.resize(cropped(x, margin), (1, height, width, 3), method)
        return framed(inner, margin)

    def resize(x: Array) -> Array:
        return resized(x, "linear") if x.shape == state.canvas.shape else x

    canvas = jnp.clip(resized(state.canvas, "cubic"), 0, 255)
    moments, fresh = jax.tree.map(resize, state.optimizer), optimizer.init(canvas)
    fits = jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, fresh)
    return state._replace(
        canvas=canvas,
        optimizer=moments if fits else jax.tree.map(jnp.copy, fresh),
        best=jnp.copy(canvas),
        best_loss=jnp.float32(jnp.inf),
    )


def within_range(canvas: Array) -> Array:
    """Clips a canvas of pixels to 0..255."""
    return jnp.clip(canvas, 0, 255)


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    project: Callable[[Array], Array] = within_range,
    shardings: Any = None,
) -> Step:
    """Returns the jitted step; its first argument is donated.

    The step takes a state, the objective's data and a key that it folds the step
    number into, and returns the next state and the metrics at the state it was given:
    the objective's own, `J`, and the `damping`. When the loss or its gradient is not
    finite, the canvas goes back to the best one and the step's length is halved.

    Args:
        objective: Maps a canvas, data and a key to a loss and a dict of metrics.
        optimizer: Any optax transformation.
        project: Maps an updated canvas to the nearest valid one.
        shardings: Where the state's arrays are, if on several devices.
    """

    def step(state: State, data: Any, key: Array) -> tuple[State, Metrics]:
        key = jax.random.fold_in(key, state.step)
        value_and_gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, metrics), gradient = value_and_gradient(state.canvas, data, key)

        def value(canvas: Array) -> Array:
            return objective(canvas, data, key)[0]

        return _advanced(state, loss, metrics, gradient, optimizer, project, value)

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=shardings and (shardings, None),
    )


def make_batched_step(
    objectives: Objective,
    optimizer: optax.GradientTransformation,
    project: Callable[[Array], Array] = within_range,
) -> Step:
    """Returns the step for many canvases at once, each with its own loss.

    It takes `jax.vmap(start)`'s states, data and a key for each canvas; best picture,
    damping and metrics are each canvas's own.

    Args:
        objectives: Maps canvases, data and keys to losses `[n]`, each of which depends
            on its own canvas alone, and a dict of metrics `[n]`.
        optimizer: An optax transformation that needs no more than gradients.
        project: Maps an updated canvas to the nearest valid one.
    """

    def step(states: State, data: Any, keys: Array) -> tuple[State, Metrics]:
        keys = jax.vmap(jax.random.fold_in)(keys, states.step)

        def total(canvases: Array) -> tuple[Array, tuple[Array, Metrics]]:
            losses, metrics = objectives(canvases, data, keys)
            return losses.sum(), (losses, metrics)

        gradients, (losses, metrics) = jax.grad(total, has_aux=True)(states.canvas)
        advanced = functools.partial(_advanced, optimizer=optimizer, project=project)
        return jax.vmap(advanced)(states, losses, metrics, gradients)

    return jax.jit(step, donate_argnums=0)


def _advanced(
    state: State,
    loss: Array,
    metrics: Metrics,
    gradient: Array,
    optimizer: optax.GradientTransformation,
    project: Callable[[Array], Array],
    value: Callable[[Array], Array] | None = None,
) -> tuple[State, Metrics]:
    """Returns the next state, and the metrics with those of the loop."""
    sound = jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient))
    updates, moments = optax.with_extra_args_support(optimizer).update(
        gradient,
        state.optimizer,
        state.canvas,
        value=loss,
        grad=gradient,
        value_fn=value,
    )
    moments = optax.tree.where(sound, moments, state.optimizer)
    better = sound & (loss < state.best_loss)
    best = jnp.where(better, state.canvas, state.best)
    moved = project(state.canvas + state.damping * jnp.asarray(updates))
    following = State(
        step=state.step + 1,
        # If not sound, the best before, which this is, too; asked for itself, XLA copies it.
        canvas=jnp.where(sound, moved, best),
        optimizer=moments,
        best=best,
        best_loss=jnp.where(better, loss, state.best_loss),
        damping=jnp.where(sound, state.damping, state.damping / 2),
    )
    metrics = {"step": following.step, "J": loss} | metrics
    return following, metrics | {"damping": following.damping}


def minimize(
    step: Step,
    state: State,
    data: Any,
    key: Array,
    steps: range,
    ahead: int = RUN_AHEAD,
) -> Iterator[tuple[State, Metrics]]:
    """Takes the steps with these numbers, so many of them in flight at a time.

    Yields:
        The state after each step (valid until the next turn, which donates it) and the
        step's metrics, both still on the device and perhaps still being computed.

    Raises:
        FloatingPointError: The loss, in a batch every loss, stayed non-finite whatever
            the step's length, or at every step.
    """
    in_flight: collections.deque[Metrics] = collections.deque()
    for _ in steps:
        if len(in_flight) == ahead:
            _wait(in_flight)  # before the next step donates the state that is held
        state, metrics = step(state, data, key)
        in_flight.append(metrics)
        yield state, metrics
    while in_flight:
        _wait(in_flight)
    if steps and not np.isfinite(state.best_loss).any():
        raise FloatingPointError(_NOT_FINITE)


def _wait(in_flight: collections.deque[Metrics]) -> None:
    """Waits for the oldest step in flight."""
    if np.max(in_flight.popleft()["damping"]) < SMALLEST_DAMPING:
        raise FloatingPointError(_NOT_FINITE)
