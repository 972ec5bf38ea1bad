"""Activation maximisation: the picture that a unit wants to see.

Erhan et al. 2009 ("Visualizing Higher-Layer Features of a Deep Network"), with the
canvas and the movements of Olah, Mordvintsev & Schubert 2017 ("Feature Visualization",
https://doi.org/10.23915/distill.00007).
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from nstvis import devices, models
from nstvis.runs.registry import unknown
from nstvis.synthesis import canvas, losses, minimize, transforms

OBJECTIVES = ("unit", "channel")


@dataclasses.dataclass(kw_only=True)
class Settings:
    """How to look for a unit's picture. The defaults suit the bundled network."""

    # What is made large: unit, at the middle of its map, or channel, the map's mean.
    objective: str = "unit"
    # Side of the pictures, in pixels: a bit more than what a unit sees.
    size: int = 96
    # What is optimised: fourier coefficients or pixels.
    canvas: str = "fourier"
    # Adam's steps for each picture.
    steps: int = 64
    # Length of a step.
    learning_rate: float = 0.1
    # At every step the picture is moved at random, at most by: pixels,
    jitter: int = 8
    # part of its size,
    scale: float = 0.1
    # degrees.
    rotate: float = 5.0
    # Weight of the pixels' mean squared distance from grey, in 0..1.
    l2: float = 0.0
    # Weight of the mean squared difference of neighbouring pixels, in 0..1, which
    # smooths; a channel, whose mean is lower than its peaks, wants less, about 30.
    tv: float = 300.0
    # Seed of all randomness.
    seed: int = 0


def check(settings: Settings) -> None:
    """Raises a ValueError if a setting makes no sense."""
    for field, choices in {"objective": OBJECTIVES, "canvas": canvas.KINDS}.items():
        if getattr(settings, field) not in choices:
            raise ValueError(unknown(field, getattr(settings, field), choices))
    for field, least in {"size": 1, "steps": 1, "jitter": 0}.items():
        if getattr(settings, field) < least:
            raise ValueError(f"{field} should be at least {least}")
    for field in ("scale", "rotate", "l2", "tv"):
        if getattr(settings, field) < 0:
            raise ValueError(f"{field} should not be negative")
    if settings.scale >= 1:
        raise ValueError("scale should be below 1")
    if settings.learning_rate <= 0:
        raise ValueError("learning_rate should be positive")


class Found(NamedTuple):
    """What was found for a unit.

    Attributes:
        picture: uint8 `[size, size, 3]`.
        activation: The highest in the unit's map for this very picture.
    """

    picture: np.ndarray
    activation: float


class Search:
    """One layer's units: a program, compiled once, for every `chunk` of them.

    Attributes:
        layer: Its name.
        chunk: Units whose pictures are looked for together.
    """

    def __init__(
        self,
        forward: models.Forward,
        params: models.Params,
        layer: str,
        settings: Settings,
        chunk: int,
    ):
        self.layer, self.chunk = layer, chunk
        self._params, self._settings = params, settings
        self._canvas = canvas.KINDS[settings.canvas](settings.size, settings.size)
        self._optimizer = optax.adam(settings.learning_rate)
        objective = make_objective(forward, layer, self._canvas, settings)
        step = minimize.make_step(objective, self._optimizer, lambda canvas: canvas)
        options = dict[str, bool | str](devices.compile_options())
        keys, units = self._keys(range(1)), self._padded(range(1))
        states = jax.eval_shape(self._start, keys)
        data = params, units
        self._step = (
            minimize.batched(step, (None, 0)).lower(states, data, keys).compile(options)
        )
        measure = jax.jit(make_measure(forward, layer, self._canvas))
        self._measure = measure.lower(params, states.canvas, units).compile(options)

    @property
    def flops(self) -> float:
        """Floating point operations of a step, by XLA's account."""
        return (self._step.cost_analysis() or {}).get("flops", 0.0)

    def run(self, units: Sequence[int]) -> Iterator[minimize.State]:
        """Yields the state after each step, valid until the next.

        Args:
            units: Numbers of at most `chunk` units.
        """
        keys, data = self._keys(units), (self._params, self._padded(units))
        steps = range(self._settings.steps)
        states = jax.jit(self._start)(keys)
        for state, _ in minimize.minimize(self._step, states, data, keys, steps):
            yield state

    def found(self, state: minimize.State, units: Sequence[int]) -> list[Found]:
        """What the last state holds for the units."""
        told = self._measure(self._params, state.canvas, self._padded(units))
        pictures, activations = jax.device_get(told)
        return [
            Found(picture.astype(np.uint8), float(activation))
            for _, picture, activation in zip(units, pictures, activations)
        ]

    def _start(self, keys: Array) -> minimize.State:
        def start(key: Array) -> minimize.State:
            return minimize.start(self._canvas.start(key), self._optimizer)

        return jax.vmap(start)(keys)

    def _padded(self, units: Sequence[int]) -> Array:
        """The last unit again and again until the chunk is full."""
        return jnp.asarray(np.pad(units, (0, self.chunk - len(units)), "edge"))

    def _keys(self, units: Sequence[int]) -> Array:
        """A key for each unit that neither its chunk nor other layers have a say in."""
        layer = zlib.crc32(self.layer.encode())
        key = jax.random.fold_in(jax.random.key(self._settings.seed), layer)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, self._padded(units))


def make_objective(
    forward: models.Forward, layer: str, canvas: canvas.Canvas, settings: Settings
) -> minimize.Objective:
    """Returns minus the activation plus the penalties, for `minimize`.

    Its data are the network's parameters and the unit's number. The activation is the
    one before the ReLU, where a unit that is off has a gradient, if the network tells.
    """
    most = transforms.Amplitudes(
        jitter=settings.jitter, scale=settings.scale, rotate=settings.rotate
    )

    def objective(numbers: Array, data: tuple, key: Array) -> tuple[Array, dict]:
        params, unit = data
        picture = canvas.draw(numbers)
        seen = forward(params, transforms.random(key, picture, most))
        map = seen.get(f"{layer}_pre", seen[layer])[0, ..., unit]
        if map.ndim and settings.objective == "unit":
            map = map[map.shape[0] // 2, map.shape[1] // 2]
        activation = map.mean()
        small = picture / 255
        loss = settings.l2 * jnp.mean((small - 0.5) ** 2) - activation
        loss += settings.tv * losses.total_variation(small, 2) / small.size
        return loss, {"activation": activation}

    return objective


def make_measure(forward: models.Forward, layer: str, canvas: canvas.Canvas):
    """Returns the function from parameters, canvases and units to pictures as they are
    written, `[n, height, width, 3]` of whole numbers, and their highest activations."""

    def measure(params: models.Params, numbers: Array, units: Array):
        pictures = jnp.rint(jax.vmap(canvas.draw)(numbers))[:, 0]
        maps = forward(params, pictures)[layer]
        highest = maps.reshape(len(maps), -1, maps.shape[-1]).max(1)
        return pictures, jnp.take_along_axis(highest, units[:, None], 1)[:, 0]

    return measure
