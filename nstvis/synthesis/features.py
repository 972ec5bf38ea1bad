"""Feature visualisation by activation maximisation: pictures that excite units.

Erhan et al. 2009 ("Visualizing Higher-Layer Features of a Deep Network"), with the
canvas and the random transforms of Olah, Mordvintsev & Schubert 2017 ("Feature
Visualization", https://doi.org/10.23915/distill.00007).
"""

import dataclasses
import functools
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from nstvis import devices, models
from nstvis.hoisting import hoisted
from nstvis.runs import config
from nstvis.runs.config import Seed, bounded, chosen
from nstvis.synthesis import canvas, losses, minimize, transforms

logger = logging.getLogger(__name__)

OBJECTIVES = ("unit", "channel")


@dataclasses.dataclass(kw_only=True)
class Settings(Seed):
    """How to optimise a unit's picture. The defaults suit the bundled network."""

    # What is maximised: unit, at the centre of its map, or channel, the map's mean.
    objective: str = chosen(*OBJECTIVES)
    # Side of the pictures, in pixels: a bit more than a unit's receptive field.
    size: int = bounded(96, least=1, most=4096)
    # What is optimised: Fourier coefficients, pixels, or maco: the phases of Fourier
    # coefficients, whose magnitudes are natural images'.
    canvas: str = chosen(*canvas.KINDS)
    # Adam's steps for each picture.
    steps: int = bounded(64, least=1, most=1_000_000)
    # Length of a step.
    learning_rate: float = bounded(0.1, above=0, most=1e6)
    # Largest random shift of the picture at every step, in pixels.
    jitter: int = bounded(8, least=0, most=1024)
    # Largest random change of its size at every step, as a fraction.
    scale: float = bounded(0.1, least=0, below=1)
    # Largest random rotation at every step, in degrees.
    rotate: float = bounded(5.0, least=0, most=180)
    # Weight of the pixels' mean squared distance from grey, in 0..1.
    l2: float = bounded(0.0, least=0, most=1e12)
    # Weight of the mean squared difference of neighbouring pixels, in 0..1, which
    # smooths. A channel, whose mean is lower than its peaks, needs less, about 30.
    tv: float = bounded(300.0, least=0, most=1e12)


class Visualization(NamedTuple):
    """A unit's picture.

    Attributes:
        picture: uint8 `[size, size, 3]`.
        activation: The highest in the unit's map for this very picture.
    """

    picture: np.ndarray
    activation: float


class Search:
    """The search for pictures of one layer's units, compiled once for all chunks.

    Each of this host's devices optimises as many of a chunk's pictures.

    Attributes:
        layer: Its name.
        chunk: Units whose pictures are optimised together.
        flops: Floating-point operations of a step, by XLA's count.
    """

    def __init__(
        self,
        forward: models.Forward,
        params: models.Params,
        layer: str,
        settings: Settings,
        chunk: int,
        magnitudes: np.ndarray | None = None,
    ):
        """Compiles the search.

        Args:
            forward: The network.
            params: Its parameters.
            layer: Name of the layer.
            settings: How to optimise.
            chunk: Units whose pictures are optimised together.
            magnitudes: From `canvas.mean_magnitudes`, which the canvas `maco` needs.

        Raises:
            ValueError: A setting is out of its bounds.
        """
        config.check(settings)
        self.layer, self.chunk = layer, chunk
        self._settings = settings
        self._canvas = _canvas(settings, magnitudes)
        self._optimizer = optax.adam(settings.learning_rate)
        mesh = _mesh(chunk)
        self._divided, self._common = (
            NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ())
        )
        shape = chunk // mesh.size, settings.size, settings.size, 3
        prepare, network = hoisted(
            forward, params, jax.ShapeDtypeStruct(shape, jnp.float32)
        )
        self._params = jax.device_put(params, self._common)
        self._prepared = jax.device_put(jax.jit(prepare)(params), self._common)
        self._compile(mesh, forward, network)

    def _compile(
        self, mesh: jax.sharding.Mesh, forward: models.Forward, network: models.Forward
    ) -> None:
        """Compiles the step, of the prepared network, and the measurement."""
        of_each, of_all = PartitionSpec("data"), PartitionSpec()
        divide = functools.partial(
            jax.shard_map, mesh=mesh, out_specs=of_each, check_vma=False
        )
        objectives = make_objectives(network, self.layer, self._canvas, self._settings)
        step = minimize.make_batched_step(objectives, self._optimizer, lambda x: x)
        step = divide(step, in_specs=(of_each, (of_all, of_each), of_each))
        measure = make_measure(forward, self.layer, self._canvas)
        measure = divide(measure, in_specs=(of_all, of_each, of_each))
        keys, units = self._keys(range(1)), self._padded(range(1))
        states = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._divided),
            jax.eval_shape(self._from_noise, keys),
        )
        options = dict[str, bool | str](devices.compile_options())
        lowered = jax.jit(step, donate_argnums=0).lower(
            states, (self._prepared, units), keys
        )
        self._step = lowered.compile(options)
        self.flops = (self._step.cost_analysis() or {}).get("flops", 0.0)
        lowered = jax.jit(measure).lower(self._params, states.canvas, units)
        self._measure = lowered.compile(options)

    def run(
        self, units: Sequence[int], pictures: np.ndarray | None = None
    ) -> Iterator[minimize.State]:
        """Yields the state after each step, valid until the next.

        Args:
            units: Numbers of at most `chunk` units.
            pictures: What to start from, `[units, size, size, 3]`, RGB 0..255; noise by
                default.
        """
        keys, data = self._keys(units), (self._prepared, self._padded(units))
        steps = range(self._settings.steps)
        start, given = self._from_noise, keys
        if pictures is not None:
            start, given = self._from_pictures, self._padded(pictures)
        states = jax.jit(start, out_shardings=self._divided)(given)
        for state, _ in minimize.minimize(self._step, states, data, keys, steps):
            yield state

    def found(self, state: minimize.State, units: Sequence[int]) -> list[Visualization]:
        """Returns the units' pictures in the last state, with their activations."""
        measured = self._measure(self._params, state.canvas, self._padded(units))
        pictures, activations = jax.device_get(measured)
        return [
            Visualization(picture.astype(np.uint8), float(activation))
            for _, picture, activation in zip(units, pictures, activations)
        ]

    def _from_noise(self, keys: Array) -> minimize.State:
        return self._started(jax.vmap(self._canvas.start)(keys))

    def _from_pictures(self, pictures: Array) -> minimize.State:
        return self._started(jax.vmap(self._canvas.encode)(pictures[:, None]))

    def _started(self, canvases: Array) -> minimize.State:
        return jax.vmap(lambda x: minimize.start(x, self._optimizer))(canvases)

    def _padded(self, values: Sequence[int] | np.ndarray) -> Array:
        """Repeats what is the last unit's until the chunk is full."""
        values = np.asarray(values)
        margins = [(0, self.chunk - len(values)), *[(0, 0)] * (values.ndim - 1)]
        return jax.device_put(np.pad(values, margins, "edge"), self._divided)

    def _keys(self, units: Sequence[int]) -> Array:
        """A key for each unit, whatever else its chunk holds."""
        layer = zlib.crc32(self.layer.encode())
        key = jax.random.fold_in(jax.random.key(self._settings.seed), layer)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, self._padded(units))
        return jax.device_put(keys, self._divided)


def _canvas(settings: Settings, magnitudes: np.ndarray | None) -> canvas.Canvas:
    if settings.canvas in canvas.PLAIN:
        return canvas.PLAIN[settings.canvas](settings.size, settings.size)
    if magnitudes is None:
        raise ValueError(f"canvas={settings.canvas} needs magnitudes of natural images")
    return canvas.maco(magnitudes, settings.size)


def _mesh(chunk: int) -> jax.sharding.Mesh:
    """Returns as many of this host's devices as divide a chunk."""
    count = max(n for n in range(1, jax.local_device_count() + 1) if not chunk % n)
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((count,), ("data",), auto, devices=jax.local_devices()[:count])


def make_objectives(
    forward: models.Forward, layer: str, canvas: canvas.Canvas, settings: Settings
) -> minimize.Objective:
    """Returns minus the activations plus the penalties, for `make_batched_step`.

    Their data are the network's parameters and the units' numbers `[n]`. The activations
    are those before the ReLU, where an inactive unit has a gradient, if the network
    returns them.
    """
    amplitudes = transforms.Amplitudes(
        jitter=settings.jitter, scale=settings.scale, rotate=settings.rotate
    )

    def objectives(numbers: Array, data: tuple, keys: Array) -> tuple[Array, dict]:
        params, units = data
        pictures = jax.vmap(canvas.draw)(numbers)
        move = functools.partial(transforms.random, limits=amplitudes)
        seen = forward(params, jax.vmap(move)(keys, pictures)[:, 0])
        maps = seen.get(f"{layer}_pre", seen[layer])
        return jax.vmap(objective)(pictures, maps, units)

    def objective(picture: Array, maps: Array, unit: Array) -> tuple[Array, dict]:
        activations = maps[..., unit]
        if activations.ndim and settings.objective == "unit":
            height, width = activations.shape
            activations = activations[height // 2, width // 2]
        activation = activations.mean()
        small = picture / 255
        loss = settings.l2 * jnp.mean((small - 0.5) ** 2) - activation
        loss += settings.tv * losses.total_variation(small, 2) / small.size
        return loss, {"activation": activation}

    return objectives


def make_measure(forward: models.Forward, layer: str, canvas: canvas.Canvas):
    """Returns the function from parameters, canvases and units to results.

    They are the pictures as they are written, `[n, height, width, 3]` of whole numbers,
    and the units' highest activations for them, `[n]`.
    """

    def measure(params: models.Params, numbers: Array, units: Array):
        pictures = jnp.rint(jax.vmap(canvas.draw)(numbers))[:, 0]
        maps = forward(params, pictures)[layer]
        highest = maps.reshape(len(maps), -1, maps.shape[-1]).max(1)
        return pictures, jnp.take_along_axis(highest, units[:, None], 1)[:, 0]

    return measure


class Row(NamedTuple):
    """What a table says of a unit.

    Attributes:
        unit: Its number.
        activation: That of its picture.
        maximum: The highest that a data set reached; NaN if unknown.
        name: The class of a logit; empty if unknown.
    """

    unit: int
    activation: float
    maximum: float
    name: str = ""

    @property
    def activated(self) -> bool:
        """Whether the picture activates the unit at all; a dead unit has none."""
        return self.activation > 0

    @property
    def ratio(self) -> float:
        """Activation over maximum; NaN if there is none."""
        return self.activation / self.maximum if self.maximum > 0 else math.nan

    @property
    def cells(self) -> list[str]:
        """The table's cells: activation, maximum, ratio, and whether it is activated."""
        numbers = self.activation, self.maximum, self.ratio
        cells = ["" if math.isnan(x) else f"{x:.6g}" for x in numbers]
        return [*cells, "yes" if self.activated else "no"]

    @property
    def label(self) -> str:
        """What a sheet says of the picture."""
        name = f" {self.name}" if self.name else ""
        if not self.activated:
            return f"{self.unit}{name}  dead"
        ratio = "" if math.isnan(self.ratio) else f"  {self.ratio:.1f} x"
        return f"{self.unit}{name}{ratio}"


def log_summary(layer: str, rows: Sequence[Row]) -> None:
    """Logs how high a layer's activations are, and which of its units stay dead."""
    dead = [f"{layer}:{x.unit} ({x.activation:.3g})" for x in rows if not x.activated]
    if dead:
        logger.warning(
            "%d of %d units of %s could not be activated: %s",
            len(dead),
            len(rows),
            layer,
            ", ".join(dead),
        )
    median = np.median([row.activation for row in rows])
    logger.info("%s: %d units, median activation %.3g", layer, len(rows), median)
    ratios = np.array([row.ratio for row in rows if row.maximum > 0])
    if len(ratios):
        logger.info(
            "%s: as high as the data set's maximum for %d of %d live units; median %.2f"
            " times as high",
            layer,
            (ratios >= 1).sum(),
            len(ratios),
            np.median(ratios),
        )
